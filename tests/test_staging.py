"""Artifacts are written beside their place and moved into it: whole or not at all, whatever happens."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from compressor.errors import VtcompressError
from export.artifact import (
    STAGING_MARK,
    check_room,
    staged,
)


def test_a_new_folder_appears_only_when_the_writing_ends_well(tmp_path):
    output = tmp_path / "deep" / "out"
    with staged(output) as staging:
        assert staging.parent == output.parent
        assert not output.exists()
        (staging / "a").write_text("new")
    assert (output / "a").read_text() == "new"
    assert list(output.parent.iterdir()) == [output]


def test_a_relative_place_is_the_one_below_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with staged(Path("out")) as staging:
        (staging / "a").write_text("new")
    assert (tmp_path / "out" / "a").read_text() == "new"


@pytest.mark.parametrize("failure", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_a_failure_or_interrupt_leaves_the_old_artifact_and_nothing_else(tmp_path, failure):
    output = tmp_path / "out"
    output.mkdir()
    (output / "a").write_text("old")

    def write() -> None:
        with staged(output, overwrite=True) as staging:
            (staging / "a").write_text("new")
            raise failure

    with pytest.raises(type(failure)):
        write()
    assert (output / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [output]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    output = tmp_path / "out"
    with pytest.raises(VtcompressError) as caught, staged(output):
        raise OSError(28, "No space left on device")
    assert str(caught.value) == f"{output}: cannot write: No space left on device"
    assert list(tmp_path.iterdir()) == []


def test_overwriting_replaces_the_old_artifact_whole(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "stale").write_text("old")
    with staged(output, overwrite=True) as staging:
        (staging / "a").write_text("new")
        assert (output / "stale").read_text() == "old"
    assert [p.name for p in output.iterdir()] == ["a"]
    assert list(tmp_path.iterdir()) == [output]


def test_overwriting_replaces_a_file_too(tmp_path):
    output = tmp_path / "out"
    output.write_text("a file")
    with staged(output, overwrite=True) as staging:
        (staging / "a").write_text("new")
    assert (output / "a").read_text() == "new"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_exists_is_not_overwritten_unless_asked(tmp_path, kind):
    output = tmp_path / "out"
    if kind == "folder":
        output.mkdir()
        (output / "a").write_text("old")
    else:
        output.write_text("old")
    with pytest.raises(VtcompressError) as caught, staged(output):
        pytest.fail("the block must not run")
    assert str(caught.value) == f"{output}: exists; choose another --output or add --overwrite"
    assert (output if kind == "file" else output / "a").read_text() == "old"


def test_an_empty_folder_may_be_filled_without_asking(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    with staged(output) as staging:
        (staging / "a").write_text("new")
    assert (output / "a").read_text() == "new"


def test_what_killed_runs_left_is_removed_and_other_outputs_strays_are_not(tmp_path):
    stray = tmp_path / f".out{STAGING_MARK}0a1b2c3d"
    (stray / "big").mkdir(parents=True)
    other = tmp_path / f".out2{STAGING_MARK}0a1b2c3d"
    other.mkdir()
    with staged(tmp_path / "out"):
        assert not stray.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([other.name, "out"])


@pytest.mark.parametrize("name", ["out[1]", "a*"])
def test_a_name_with_wildcards_clears_its_own_strays_and_no_others(tmp_path, name):
    own = tmp_path / f".{name}{STAGING_MARK}0a1b2c3d"
    own.mkdir()
    other = tmp_path / f".abc{STAGING_MARK}0a1b2c3d"
    other.mkdir()
    with staged(tmp_path / name):
        assert not own.exists()
        assert other.exists()


def test_an_old_artifact_is_put_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    output = tmp_path / "out"
    output.mkdir()
    (output / "a").write_text("old")
    rename = Path.rename

    def second_fails(self, target):
        if Path(target) == output and not self.name.endswith("-old"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(VtcompressError), staged(output, overwrite=True) as staging:
        (staging / "a").write_text("new")
    assert (output / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_old_artifact_that_a_kill_left_aside_comes_back_before_anything_else(
    tmp_path, overwrite
):
    output, aside = tmp_path / "out", tmp_path / f".out{STAGING_MARK}0a1b2c3d-old"
    aside.mkdir()
    (aside / "a").write_text("old")
    if overwrite:
        with pytest.raises(RuntimeError), staged(output, overwrite=True):
            raise RuntimeError
    else:
        with pytest.raises(VtcompressError, match="add --overwrite"), staged(output):
            pytest.fail("the block must not run")
    assert (output / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [output]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("no folder")
    output = tmp_path / "file" / "out"
    with pytest.raises(VtcompressError) as caught, staged(output):
        pytest.fail("the block must not run")
    assert str(caught.value).startswith(f"{output.parent}: cannot write: ")


def test_too_little_room_is_refused_with_the_figure_that_is_needed(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    asked = []

    def disk_usage(folder):
        asked.append(Path(folder))
        return usage(10 * 2**30, 0, 1500 * 2**20)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    output = tmp_path / "out"
    with pytest.raises(VtcompressError) as caught, staged(output, needed_bytes=3000 * 2**20):
        pytest.fail("the block must not run")
    assert str(caught.value) == (
        f"{tmp_path}: 3,000 MiB are needed, 1,500 MiB are free; make room or choose another --output"
    )
    assert asked == [tmp_path]
    assert list(tmp_path.iterdir()) == []
    check_room(tmp_path, 1500 * 2**20)
