"""Full disks and places that cannot be written: one line, exit code 1, nothing half-written, the old intact.

A small tmpfs where this may be mounted (as root), which is the real thing. Elsewhere a limit on the size of
files (RLIMIT_FSIZE, in a child process) and a folder without write permission stand in.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compressor.disk.files import write_text
from compressor.disk.locks import STAGING_MARK, exclusive
from compressor.errors import VtcompressError
from export.artifact.staging import staged
from tests.artifacts import write_result

ROOT = Path(__file__).parent.parent
SIZE = 3 << 20


def mounted(folder: Path, options: str) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    return (
        shutil.which("mount") is not None
        and not subprocess.run(command, capture_output=True, check=False).returncode
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mounted(folder, f"size={SIZE}"):
        pytest.skip("a tmpfs may not be mounted here; the limit on file sizes stands in")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def old(small_disk: Path) -> Path:
    """An old artifact on the small disk."""
    return write_result(small_disk / "out", a="old")


def as_it_was(output: Path) -> bool:
    return [p.name for p in output.parent.iterdir()] == ["out"] and (
        (output / "a").read_text() == "old"
    )


def test_a_disk_that_fills_up_while_an_artifact_is_written_keeps_the_old_one(old):
    def write() -> None:
        with staged(old, overwrite=True) as folder:
            (folder / "weights.bin").write_bytes(bytes(2 * SIZE))

    with pytest.raises(VtcompressError) as caught:
        write()
    assert (
        str(caught.value)
        == f"{old}: cannot write: No space left on device; make room, or choose another place"
    )
    assert as_it_was(old)


def test_libraries_in_rust_that_fill_the_disk_end_in_the_same_line(old):
    import numpy as np
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models

    def weights(folder: Path) -> None:
        save_file({"w": np.zeros(2 * SIZE, np.uint8)}, folder / "w.safetensors")

    def tokenizer(folder: Path) -> None:
        vocabulary = {f"a long word, number {i}": i for i in range(120_000)}
        Tokenizer(models.WordLevel(vocabulary, unk_token="x")).save(str(folder / "t.json"))

    for write in (weights, tokenizer):

        def fill(write=write) -> None:
            with staged(old, overwrite=True) as folder:
                write(folder)

        with pytest.raises(VtcompressError) as caught:
            fill()
        assert (
            str(caught.value)
            == f"{old}: cannot write: No space left on device; make room, or choose another place"
        )
        assert as_it_was(old)


def test_a_file_that_does_not_fit_any_more_leaves_the_old_one(small_disk):
    path = small_disk / "profile.json"
    write_text(path, "old")
    with pytest.raises(VtcompressError) as caught:
        write_text(path, "x" * 2 * SIZE)
    assert (
        str(caught.value)
        == f"{path}: cannot write: No space left on device; make room, or choose another place"
    )
    assert path.read_text() == "old"
    assert list(small_disk.iterdir()) == [path]


def test_a_place_is_locked_on_a_disk_without_a_free_byte(small_disk):
    with pytest.raises(OSError, match="No space"):
        (small_disk / "filler").write_bytes(bytes(2 * SIZE))
    refused = pytest.raises(VtcompressError, match="another run")
    with exclusive(small_disk / "out"), refused, exclusive(small_disk / "out"):
        pytest.fail("the block must not run")
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_export_refuses_a_disk_that_is_too_small_before_it_writes(small_disk, tiny_model):
    code, said = vtcompress("export", "--recipe", "identity", "--model", tiny_model,
                            "--output", small_disk / "out")  # fmt: skip
    assert code == 1
    assert said.startswith(f"error: {small_disk}: ")
    remedy = "make room or choose another --output, or a smaller export.dtype, such as float16\n"
    assert said.endswith(f"are free; {remedy}")
    assert said.count("\n") == 1
    assert list(small_disk.iterdir()) == []


def vtcompress(*arguments: object) -> tuple[int, str]:
    """Run the command line in a process of its own; return exit code and the error lines."""
    done = subprocess.run(
        [sys.executable, "-m", "vtcompress", "-q", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_a_limit_on_the_size_of_files_is_one_line_too(tmp_path):
    """Where no small disk can be mounted: the system's refusal comes while a file is written."""
    output = write_result(tmp_path / "out", a="old")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, SIZE))
            with staged(output, overwrite=True) as folder:
                (folder / "weights.bin").write_bytes(bytes(2 * SIZE))
        except VtcompressError as error:
            code = (
                0
                if str(error) == f"{output}: cannot write: File too large; choose another place"
                else 2
            )
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert as_it_was(output)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nothing can be written, even by root where that may mount."""
    folder = tmp_path / "fixed"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
    elif mounted(folder, "ro,size=1m"):
        yield folder
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    else:
        pytest.skip("root writes everywhere, and may not mount here")


def test_a_read_only_target_is_one_line(read_only, capsys):
    from vtcompress.cli.main import run_command

    with pytest.raises(VtcompressError, match="cannot write: "), staged(read_only / "out"):
        pytest.fail("the block must not run")
    with pytest.raises(VtcompressError, match="cannot write: "):
        write_text(read_only / "plan.json", "x")
    arguments = ["calibrate", "--recipe", "shortv", "--model", "no/model", "--output"]
    assert run_command([*arguments, str(read_only / "profile.json")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {read_only / 'profile.json'}: cannot write: ")
    assert said.count("\n") == 1
    assert list(read_only.iterdir()) == []


def test_nothing_of_a_failed_write_is_left_in_staging(tmp_path):
    def fail() -> None:
        with staged(tmp_path / "out") as folder:
            (folder / "half").write_text("x")
            raise RuntimeError("a library's own error (os error 28)")

    with pytest.raises(VtcompressError, match="No space left on device"):
        fail()
    assert not [path for path in tmp_path.iterdir() if STAGING_MARK in path.name]
