"""One run at a time on one place, whatever happens to the run that was there before."""

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from compressor.disk.files import write_text
from compressor.disk.locks import LOCK_MARK, exclusive
from compressor.errors import VtcompressError
from export.artifact.staging import staged
from vtcompress.cli.main import run_command

ROOT = Path(__file__).parent.parent
HOLD = (
    "import sys; from pathlib import Path; from {module} import {name} as held\n"
    "with held(Path(sys.argv[1])):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


def holder(target: Path, module: str = "compressor.disk.locks", name: str = "exclusive"):
    """Start another process that holds a place until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(module=module, name=name), str(target)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def let_go(process) -> None:
    process.stdin.close()
    assert process.wait(60) == 0
    process.stdout.close()


def refusal(target: Path, taking=exclusive) -> str:
    with pytest.raises(VtcompressError) as caught, taking(target):
        pytest.fail("the block must not run")
    return str(caught.value)


def test_a_second_run_is_refused_in_one_line_that_names_the_first(tmp_path):
    target = tmp_path / "out"
    process = holder(target, "export.artifact.staging", "staged")
    said = (
        f"{target}: is being written by another run (pid {process.pid}); "
        "wait for it or choose another `output`"
    )
    before = sorted(tmp_path.iterdir())
    assert refusal(target, staged) == said
    assert refusal(target) == said
    assert sorted(tmp_path.iterdir()) == before, "the first run's files were touched"
    let_go(process)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_calibrating_into_a_profile_in_use_is_exit_code_1_before_the_model_is_loaded(
    tmp_path, capsys
):
    process = holder(tmp_path / "profile.json")
    arguments = ["calibrate", "--recipe", "shortv", "--model", "no/model", "--output"]
    assert run_command([*arguments, str(tmp_path / "profile.json")]) == 1
    assert re.fullmatch(
        rf"error: .*profile\.json: is being written by another run \(pid {process.pid}\); .*\n",
        capsys.readouterr().err,
    )
    let_go(process)
    assert list(tmp_path.iterdir()) == []


def test_other_places_in_the_same_folder_are_free(tmp_path):
    process = holder(tmp_path / "out")
    with exclusive(tmp_path / "out2"), exclusive(tmp_path / ".out"):
        pass
    let_go(process)


def test_a_killed_runs_lock_file_does_not_block_the_next_run_and_is_removed(tmp_path):
    process = holder(tmp_path / "out")
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert [path.name for path in tmp_path.iterdir()] == [f".out{LOCK_MARK}"]
    with exclusive(tmp_path / "out"):
        assert (tmp_path / f".out{LOCK_MARK}").read_text() == f"{os.getpid()}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_the_lock_goes_on_every_exit(tmp_path, failure):
    def work() -> None:
        with exclusive(tmp_path / "out"):
            raise failure

    with pytest.raises(type(failure)):
        work()
    assert list(tmp_path.iterdir()) == []
    with exclusive(tmp_path / "out"):
        pass


def test_a_folder_that_another_run_took_away_before_the_lock_is_made_again(tmp_path, monkeypatch):
    """A run without a result removes the empty folders that it made; others may have come to use them."""
    from compressor.disk import files

    make = files.make_parent

    def taken_away(path: Path) -> None:
        make(path)
        path.parent.rmdir()

    monkeypatch.setattr(files, "make_parent", taken_away)
    with staged(tmp_path / "deep" / "out") as folder:
        (folder / "a").write_text("new")
    assert (tmp_path / "deep" / "out" / "a").read_text() == "new"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a file system of Linux")
def test_a_folder_in_which_no_file_can_be_made_is_one_line():
    assert refusal(Path("/proc/out"), staged).startswith("/proc/out: cannot write: ")


def test_many_runs_on_one_place_are_never_two_at_once(tmp_path):
    inside, most, done = 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most, done
        for _ in range(200):
            try:
                with exclusive(tmp_path / "out"):
                    with guard:
                        inside += 1
                        most = max(most, inside)
                    with guard:
                        inside -= 1
                        done += 1
            except VtcompressError:
                continue

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert done > 0
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / f".out{LOCK_MARK}").symlink_to(tmp_path / "victim")
    assert "cannot write" in refusal(tmp_path / "out")
    assert (tmp_path / "victim").read_text() == "precious"


def test_what_a_killed_writer_of_a_file_left_is_removed_and_a_living_writers_is_not(tmp_path):
    import fcntl

    (tmp_path / ".plan.json.dead.tmp").write_text("half")
    (tmp_path / ".other.json.dead.tmp").write_text("another file's")
    living = (tmp_path / ".plan.json.living.tmp").open("w")
    fcntl.flock(living, fcntl.LOCK_EX)
    write_text(tmp_path / "plan.json", "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".other.json.dead.tmp", ".plan.json.living.tmp", "plan.json",
    ]  # fmt: skip
    living.close()
    write_text(tmp_path / "plan.json", "again")
    assert (tmp_path / "plan.json").read_text() == "again"
    assert not (tmp_path / ".plan.json.living.tmp").exists()


def test_where_the_system_has_no_locks_files_are_written_and_nothing_is_locked(tmp_path):
    """Windows has neither module; what runs there instead runs here."""
    (tmp_path / ".plan.json.other.tmp").write_text("another writer's, perhaps")
    code = (
        "import sys; sys.modules.update(fcntl=None, resource=None)\n"
        "from pathlib import Path; from compressor.disk.files import write_text\n"
        "from compressor.disk.locks import exclusive\n"
        "from export.artifact.artifact import peak_memory_bytes\n"
        "target = Path(sys.argv[1])\n"
        "with exclusive(target), exclusive(target):\n"
        "    write_text(target, 'whole')\n"
        "print(sorted(path.name for path in target.parent.iterdir()), peak_memory_bytes())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "plan.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "['.plan.json.other.tmp', 'plan.json'] 0\n", done.stderr
