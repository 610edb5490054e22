"""`vtcompress serve` as a process: what it refuses before it loads, where it serves, how it stops."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from export.runtime.runtime import Runtime
from tests.models import make_picture
from tests.serving import asking, data_url, post, wait_for
from vtcompress.last_resort import _shown

Vt = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parent.parent
KEY = "a-key-of-more-than-sixteen"


@contextmanager
def running(
    artifact: Path, log: Path, *options: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run the command until the block ends; yield the process and its address."""
    command = [sys.executable, "-m", "vtcompress", "serve", str(artifact), "--port", "0", *options]
    given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with log.open("wb") as said:
        process = subprocess.Popen(command, stderr=said, stdout=subprocess.PIPE, env=given)
    try:
        wait_for(lambda: process.poll() is not None or b" at http://" in log.read_bytes(), 60)
        found = re.search(r"serving .* at (http://\S+)/v1;", log.read_text())
        assert found, log.read_text()
        wait_for(lambda: healthy(found[1]))
        yield process, found[1]
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health") as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.mark.filterwarnings("ignore::compressor.errors.ArtifactWarning")
def test_the_command_answers_and_stops_with_sigterm(tiny_artifact: Path, tmp_path: Path) -> None:
    picture = make_picture(tmp_path / "0.png", seed=300)
    wanted = Runtime.load(tiny_artifact).answer("what is it", [picture], max_new_tokens=4).text
    key_file = tmp_path / "key"
    key_file.write_text(f"{KEY}\n")
    log = tmp_path / "log"
    options = ("--api-key-file", str(key_file), "--host", "localhost", "--threads", "1")
    with running(tiny_artifact, log, *options) as (process, url):
        body = asking("what is it", data_url(picture), max_tokens=4) | {"model": "tiny"}
        assert post(url, body)[0] == 401
        status, _, found = post(url, body, Authorization=f"Bearer {KEY}")
        assert status == 200
        assert found["choices"][0]["message"]["content"] == wanted
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stdout is not None
        assert process.stdout.read() == b""
    lines = log.read_text().splitlines()
    assert next(line for line in lines if line.startswith("POST ")).startswith(
        "POST /v1/chat/completions 401"
    )
    # Whether the answer counts as one that is still given depends on the moment.
    assert [line for line in lines if line.startswith("stopping (SIGTERM)")]
    assert lines[-1] == "stopped"
    assert KEY not in log.read_text()


def test_two_signals_at_once_are_a_stop_as_well(tiny_artifact: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(tiny_artifact, log, "--queue", "4") as (process, _):
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        assert process.wait(20) == 0
        assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--host", "0.0.0.0"],
            "host 0.0.0.0: can be reached from other machines, so an API key is needed",
        ),
        (["--api-key", "short"], "API key: 16 to 4,096 visible ASCII characters"),
        (
            ["--api-key-file", "none"],
            "none: No such file or directory; give the file of the API key",
        ),
        (["--allow-files", "none"], "none: no such folder"),
        (["--host", "no.such.host.invalid"], "host no.such.host.invalid: no such address"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_loaded(
    vt: Vt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], said: str
) -> None:
    monkeypatch.setattr(
        "vtcompress.cli.serving.command.loaded", lambda *_, **__: pytest.fail("loaded")
    )
    monkeypatch.delenv("VTCOMPRESS_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    code, out, err = vt("serve", tmp_path / "artifact", *options)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith(f"error: {said}")
    assert len([line for line in err.splitlines() if line.startswith("error")]) == 1


def test_a_key_is_given_once_and_the_variable_gives_way_to_the_file(
    vt: Vt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def noted(*given: Any, **_: Any) -> None:
        seen.append(given[2].key)

    monkeypatch.setattr("vtcompress.stages.serving.run.serve", noted)
    monkeypatch.delenv("VTCOMPRESS_API_KEY", raising=False)
    (tmp_path / "key").write_text(f"{KEY}-file\n")
    file = ("--api-key-file", tmp_path / "key")
    code, _, err = vt("serve", tmp_path, "--api-key", KEY, *file)
    assert code == 2
    assert "--api-key and --api-key-file say the same" in err
    code, _, err = vt("serve", tmp_path, "--api-key", KEY)
    assert code == 0
    assert "can be read by who lists processes" in err
    monkeypatch.setenv("VTCOMPRESS_API_KEY", f"{KEY}-variable")
    assert vt("serve", tmp_path)[::2] == (0, "")
    assert vt("serve", tmp_path, *file)[0] == 0
    assert seen == [KEY, f"{KEY}-variable", f"{KEY}-file"]


def test_a_trace_that_is_handed_on_holds_no_key() -> None:
    given = ["serve", "a", "--api-key", KEY, f"--api-key={KEY}", "--port", "1"]
    assert _shown(given) == ["serve", "a", "--api-key", "...", "--api-key=...", "--port", "1"]


def test_without_the_extra_the_command_says_what_to_install(
    vt: Vt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in [name for name in sys.modules if name.startswith("export.server.http")]:
        monkeypatch.delitem(sys.modules, name)
    code, _, err = vt("serve", tmp_path)
    assert code == 1
    assert (
        "serving an artifact needs packages that are not installed: pip install '.[serve]'" in err
    )
