"""Files and distributions with the names of our packages are found before anything of them is run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOREIGN = "from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n"


def python(*arguments: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(params=["export.py", "compressor.py", "compressor/__init__.py"])
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file of the user's in the folder that scripts start in."""
    path = tmp_path / request.param
    path.parent.mkdir(exist_ok=True)
    path.write_text(FOREIGN)
    return path


def in_the_way(foreign: Path) -> str:
    what = foreign.parent if foreign.stem == "__init__" else foreign
    return f"{what} is in the way of vtcompress's own package '{what.stem}': rename it, or start from another"


def ran(folder: Path) -> list[Path]:
    return list(folder.rglob("*.ran"))


def test_a_users_file_beside_the_script_is_named_and_not_run(foreign: Path, tmp_path: Path) -> None:
    (tmp_path / "go.py").write_text("import vtcompress\n")
    done = python("go.py", cwd=tmp_path)
    assert done.returncode == 1
    assert in_the_way(foreign) in done.stderr.splitlines()[-1]
    assert ran(tmp_path) == []


def test_it_is_an_import_error_that_a_program_can_catch(foreign: Path, tmp_path: Path) -> None:
    (tmp_path / "go.py").write_text(
        "try:\n    import vtcompress\nexcept ImportError as error:\n    print(error)\n"
    )
    done = python("go.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert in_the_way(foreign) in done.stdout


def test_a_file_that_is_imported_before_us_is_named_too(tmp_path: Path) -> None:
    (tmp_path / "export.py").write_text("")
    (tmp_path / "go.py").write_text("import export\nimport vtcompress\n")
    done = python("go.py", cwd=tmp_path)
    assert in_the_way(tmp_path / "export.py") in done.stderr.splitlines()[-1]


def test_the_command_line_says_it_in_one_line(foreign: Path, tmp_path: Path) -> None:
    done = python("-m", "vtcompress", "recipes", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {in_the_way(foreign)}")
    assert done.stderr.count("\n") == 1
    assert ran(tmp_path) == []


def test_the_console_script_says_it_in_one_line(foreign: Path, tmp_path: Path) -> None:
    script = tmp_path / "bin" / "vtcompress"
    script.parent.mkdir()
    script.write_text("from vtcompress.cli.main import main\nmain()\n")  # as pip writes it
    done = python(str(script), "recipes", cwd=tmp_path, path=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {in_the_way(foreign)}")
    assert done.stderr.count("\n") == 1
    assert ran(tmp_path) == []


@pytest.mark.parametrize("name", ["compressor", "export"])
def test_another_distribution_that_overwrote_a_package_is_told_from_a_shadow(
    name: str, tmp_path: Path
) -> None:
    for package in ("compressor", "export", "vtcompress"):
        shutil.copytree(ROOT / package, tmp_path / package)
    (tmp_path / name / "__init__.py").write_text(FOREIGN)
    done = python("-c", "import vtcompress", cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert f"{tmp_path / name / '__init__.py'} is of another distribution" in last
    assert "in an environment of its own" in last
    assert ran(tmp_path) == []


def test_a_package_that_was_lost_is_an_incomplete_installation(tmp_path: Path) -> None:
    for package in ("compressor", "vtcompress"):
        shutil.copytree(ROOT / package, tmp_path / package)
    (tmp_path / "export.py").write_text(FOREIGN)
    done = python("-c", "import vtcompress", cwd=tmp_path)
    assert in_the_way(tmp_path / "export.py") in done.stderr.splitlines()[-1]
    (tmp_path / "export.py").unlink()
    done = python("-S", "-c", "import vtcompress", cwd=tmp_path)
    assert "'export' cannot be found" in done.stderr.splitlines()[-1]


def test_our_own_packages_pass_wherever_python_starts(tmp_path: Path) -> None:
    done = python("-c", "import vtcompress; print(vtcompress.__version__)", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
