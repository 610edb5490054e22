"""No command asks the network for anything or writes elsewhere than it says, as the kernel sees it.

Native code is not seen by Python's audit hooks, so system calls are traced. Without `CI` in the environment:
packages that report their use leave it where that is set.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.models import make_picture

ROOT = Path(__file__).parent.parent
AFTER_S = 15  # ONNX Runtime asked for its host twelve seconds after a load
ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
CHANGES = "openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat"
NETWORK = "connect,sendto,sendmsg,sendmmsg,bind"
DRIVER = """
import json, sys, time
from vtcompress.cli.main import run_command
begun = None
for asked in json.loads(sys.argv[1]):
    code = run_command(asked)
    begun = begun or time.monotonic()
    if code:
        sys.exit(f"{asked} ended with {code}")
time.sleep(max(0.0, float(sys.argv[2]) + begun - time.monotonic()))
"""


def traced(work: Path, commands: list[list[str]]) -> list[str]:
    """Run commands in one process and return its system calls that change files or reach for the network."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    for name in ("home", "tmp"):
        (work / name).mkdir()
    record = work / "record"
    given = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    own = {
        "HOME": str(work / "home"),
        "USER": "somebody",  # else it is looked up where names of hosts are, too
        "TMPDIR": str(work / "tmp"),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    strace = ["strace", "-f", "-y", "-qq", "--seccomp-bpf", "-o", str(record)]
    strace += ["-e", f"trace={CHANGES},{NETWORK}", "-e", "signal=none"]
    code = [sys.executable, "-c", DRIVER, json.dumps(commands), str(AFTER_S)]
    done = subprocess.run(
        [*strace, *code], cwd=work, env=given | own, capture_output=True, text=True, check=False
    )
    if "ptrace" in done.stderr and "not permitted" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr[-2000:]
    return record.read_text(encoding="utf-8", errors="replace").splitlines()


def network_calls(calls: list[str]) -> list[str]:
    """Return calls to the network, and questions for addresses of names."""
    return [c for c in calls if re.search(r"AF_INET6?\b|/nscd/", c) and "openat" not in c]


def changed(calls: list[str], work: Path) -> set[str]:
    """Return the files and folders that calls made or opened to write."""
    found = set()
    for call in calls:
        if re.search(r"= -1 E| (connect|send\w*|bind)\(", call):
            continue
        if re.search(r"\bopen(at)?\(", call) and not re.search(r"O_(WRONLY|RDWR|CREAT)", call):
            continue
        for folder, name in re.findall(r'(?:(?:AT_FDCWD|\d+)<([^>]*)>, )?"([^"]*)"', call):
            found.add(os.path.normpath(Path(folder or work) / name))
    return found


def outside(calls: list[str], work: Path, allowed: list[Path]) -> list[str]:
    """Return what was changed in none of the folders that are allowed."""
    roots = [*allowed, Path("/dev"), Path("/proc")]
    paths = [Path(name) for name in changed(calls, work)]
    # A folder on the way to a cache may be made for it.
    return sorted(
        str(path)
        for path in paths
        if not any(path.is_relative_to(root) for root in roots)
        and not any(root.is_relative_to(path) and path.is_relative_to(work) for root in allowed)
    )


def test_no_command_reaches_for_the_network_or_writes_elsewhere(
    tiny_model: Path, questions: Path, tmp_path: Path
) -> None:
    out, picture = tmp_path / "out", str(make_picture(tmp_path / "picture.png"))
    asked = [str(out), "--image", picture, "--prompt", "what is this", "--max-new-tokens", "2"]
    recipe = ["--recipe", "identity", "--validate-data", str(questions), "--bench-rounds", "1"]
    recipe += ["--set", "validate.max_new_tokens=2", "--set", "validate.keep_pictures=all"]
    commands = [
        ["-q", "export", "--model", str(tiny_model), *recipe, "--output", str(out)],
        ["-q", "validate", str(out)],
        ["-q", "bench", str(out), "--rounds", "1"],
        ["-q", "generate", *asked],
        ["-q", "doctor"],
    ]
    if find_spec("openvino"):
        commands += [["-q", "validate", str(out), "--backend", "openvino"]]
        commands += [["-q", "generate", *asked, "--backend", "openvino"]]
    calls = traced(tmp_path, commands)
    assert any(str(out) in call for call in calls), "nothing was traced"
    assert network_calls(calls) == []
    cache = tmp_path / "home" / ".cache" / "vtcompress"
    # What becomes the artifact, and the lock, lie beside it while it is written.
    found = outside(calls, tmp_path, [out, tmp_path / "tmp", cache])
    assert [path for path in found if not path.startswith(f"{tmp_path}/.out.vtcompress-")] == []
