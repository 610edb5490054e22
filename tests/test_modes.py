"""Files as any program writes them: of the mode that the user's umask leaves, in folders that are made."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compressor.disk.files import write_text
from vtcompress.cli.main import run_command

ROOT = Path(__file__).parent.parent
UMASKS = [0o022, 0o027, 0o077, 0o002]


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {
        path.relative_to(folder).as_posix(): stat.S_IMODE(path.stat().st_mode)
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("umask", UMASKS, indirect=True, ids=oct)
def test_a_file_has_the_mode_that_the_umask_leaves_also_where_one_was_before(
    tmp_path: Path, umask: int
) -> None:
    path = tmp_path / "new" / "folder" / "p.json"
    for _ in range(2):
        write_text(path, "x")
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("umask", [0o027], indirect=True, ids=oct)
def test_every_command_makes_folders_and_writes_files_of_the_users_mode(
    tiny_model: Path,
    questions: Path,
    tmp_path: Path,
    umask: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = ["--recipe", "shortv", "--model", tiny_model, "--data", questions, "--samples", 1]
    profile, plan = tmp_path / "a" / "b" / "profile.json", tmp_path / "c" / "d" / "plan.json"
    small, artifact = tmp_path / "e" / "f" / "small", tmp_path / "g" / "h" / "artifact"
    pages, drawing = tmp_path / "i" / "j", tmp_path / "k" / "l" / "drawing"
    checked = ["--validate-data", questions, "--validate-samples", 1, "--bench-rounds", 0]
    for command in (
        ["calibrate", *recipe, "--output", profile],
        ["plan", *recipe, "--profile", profile, "--output", plan],
        ["compress", *recipe, "--plan", plan, "--profile", profile, "--output", small],
        ["compress", *recipe, "--plan", plan, "--output", small, "--overwrite"],
        ["export", *recipe, "--profile", profile, *checked, "--output", artifact],
        ["report", artifact, "--html", pages / "report.html"],
        ["compare", artifact, artifact, "--html", pages / "two.html", "--plot", drawing],
    ):
        code = run_command(["-q", *map(str, command)])
        assert code in (0, 3), capsys.readouterr().err
    found = modes(tmp_path)
    assert len(found) > 40
    assert set(found.values()) == {0o666 & ~umask}, found
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o777 & ~umask}


WITHOUT = """
import sys
from pathlib import Path
for name in ("fcntl", "resource"):
    sys.modules[name] = None  # what Windows lacks
import vtcompress
from compressor.disk.files import write_text
from compressor.disk.locks import exclusive
from export.artifact.artifact import peak_memory_bytes
from export.artifact.staging import staged
from vtcompress.cli.main import run_command
folder = Path(sys.argv[1])
with exclusive(folder / "p.json"), exclusive(folder / "p.json"):
    write_text(folder / "p.json", "one")
    write_text(folder / "p.json", "two")
(folder / ".p.json.0a1b2c3d.tmp").write_text("maybe of a living writer")
write_text(folder / "p.json", "three")
with staged(folder / "out") as staging:
    (staging / "a").write_text("new")
assert peak_memory_bytes() == 0
assert run_command(["recipes"]) == 0
"""


def test_everything_is_imported_and_written_where_the_system_has_no_locks(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p.json").read_text() == "three"
    assert (tmp_path / "out" / "a").read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".p.json.0a1b2c3d.tmp", "out", "p.json"]
