"""Artifacts are written beside their place and moved into it: whole or not at all, whatever happens."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from compressor.disk.files import _temporary
from compressor.disk.locks import LOCK_MARK, STAGING_MARK, exclusive
from compressor.errors import VtcompressError
from export.artifact import moving
from export.artifact.artifact import Artifact
from export.artifact.contents import is_working_file
from export.artifact.staging import calibration_file, check_place, check_room, staged
from tests.artifacts import make_artifact, write_result


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """An old result at `out`."""
    return write_result(tmp_path / "out", a="old")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(output: Path, content: str = "new", **asked: object) -> None:
    """Write one file `a` into a place."""
    with staged(output, **asked) as staging:  # type: ignore[arg-type]
        (staging / "a").write_text(content)


def refusal(output: Path, **asked: object) -> str:
    with pytest.raises(VtcompressError) as caught, staged(output, **asked):  # type: ignore[arg-type]
        pytest.fail("the block must not run")
    return str(caught.value)


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
def test_a_failure_or_interrupt_leaves_the_old_artifact_and_nothing_else(tmp_path, old, failure):
    def work() -> None:
        with staged(old, overwrite=True) as staging:
            (staging / "a").write_text("new")
            raise failure

    with pytest.raises(type(failure)):
        work()
    assert (old / "a").read_text() == "old"
    assert list(tmp_path.iterdir()) == [old]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    output = tmp_path / "out"
    with pytest.raises(VtcompressError) as caught, staged(output):
        raise OSError(28, "No space left on device")
    assert (
        str(caught.value)
        == f"{output}: cannot write: No space left on device; make room, or choose another place"
    )
    assert list(tmp_path.iterdir()) == []


def test_overwriting_replaces_the_old_artifact_whole(tmp_path):
    output = write_result(tmp_path / "out", stale="old")
    with staged(output, overwrite=True) as staging:
        (staging / "a").write_text("new")
        assert (output / "stale").read_text() == "old"
    assert [p.name for p in output.iterdir()] == ["a"]
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_never_replaced_by_a_folder(tmp_path, overwrite):
    output = tmp_path / "out"
    output.write_text("a file")
    said = refusal(output, overwrite=overwrite)
    assert said == f"{output}: is a file, not a folder; choose another `output`"
    assert output.read_text() == "a file"
    assert list(tmp_path.iterdir()) == [output]


def test_what_exists_is_not_overwritten_unless_asked(old):
    assert refusal(old) == (
        f"{old}: holds a compressed model; choose another `output` or add `overwrite` to replace it"
    )
    assert (old / "a").read_text() == "old"


# A folder that is there is written into


def test_an_empty_folder_is_filled_and_stays_the_folder_that_it_was(tmp_path):
    output = tmp_path / "out"
    output.mkdir(mode=0o750)
    before = output.stat()
    with staged(output) as staging:
        (staging / "a").write_text("new")
        assert staging.is_relative_to(output)
    assert (output / "a").read_text() == "new"
    assert (output.stat().st_ino, output.stat().st_mode) == (before.st_ino, before.st_mode)
    assert names(output) == ["a"]
    assert names(tmp_path) == ["out"]


def test_the_empty_working_folder_is_filled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path())
    assert names(Path()) == ["a"]
    assert names(tmp_path) == ["a"]


def test_an_empty_folder_is_empty_again_after_a_failure(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    with pytest.raises(RuntimeError), staged(output):
        raise RuntimeError
    assert names(output) == []


@pytest.mark.parametrize("there", ["nothing", "empty", "old"])
def test_of_a_link_its_target_is_written_and_the_link_stays(tmp_path, there):
    target, link = tmp_path / "disk" / "target", tmp_path / "out"
    target.parent.mkdir()
    if there == "empty":
        target.mkdir()
    elif there == "old":
        write_result(target, a="old")
    link.symlink_to(Path("disk") / "target")
    write(link, overwrite=there == "old")
    assert link.readlink() == Path("disk/target")
    assert (target / "a").read_text() == "new"
    assert names(tmp_path) == ["disk", "out"]
    assert names(target.parent) == ["target"]


def test_links_that_point_at_each_other_are_one_line(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "cannot write" in refusal(tmp_path / "a")


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Return a function that mounts a tmpfs, or the folder of another one, at `tmp_path / "mount"`."""
    folder = tmp_path / "mount"
    folder.mkdir()

    def at(*options: str) -> Path:
        command = ["mount", *options, str(folder)]
        if (
            not shutil.which("mount")
            or subprocess.run(command, capture_output=True, check=False).returncode
        ):
            pytest.skip(
                "nothing may be mounted here; the test of folders that cannot be moved stands in"
            )
        return folder

    yield at
    subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_a_mount_point_is_filled_and_later_replaced_in_place(tmp_path, mount, kind):
    (tmp_path / "source").mkdir()
    how = ("-t", "tmpfs", "tmpfs") if kind == "tmpfs" else ("--bind", str(tmp_path / "source"))
    output = mount(*how)
    (output / "lost+found").mkdir()
    write(output)
    assert names(output) == ["a", "lost+found"]
    write_result(output / "made", a="old")
    for name in ("a", "files.json"):
        (output / "made" / name).replace(output / name)
    (output / "made").rmdir()
    assert "holds a compressed model" in refusal(output)
    write(output, overwrite=True)
    assert (output / "a").read_text() == "new"
    assert names(output) == ["a", "lost+found"]
    assert names(tmp_path) == ["mount", "source"]


def test_room_is_asked_of_the_disk_that_is_written(tmp_path, mount):
    output = mount("-t", "tmpfs", "-o", "size=1m", "tmpfs")
    assert refusal(output, needed_bytes=2 << 20).startswith(f"{output}: 2 MiB are needed, 1 MiB ")
    (tmp_path / "link").symlink_to(output / "deep")
    assert refusal(tmp_path / "link", needed_bytes=2 << 20).startswith(
        f"{output}: 2 MiB are needed"
    )


@pytest.fixture
def renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the system have no call that exchanges names."""
    monkeypatch.setattr(moving, "exchanged", lambda *_: False)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EBUSY])
def test_names_that_the_system_does_not_exchange_are_told_from_a_failure(
    tmp_path, monkeypatch, number
):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    monkeypatch.setattr(
        moving.ctypes, "CDLL", lambda *_, **__: SimpleNamespace(renameat2=lambda *_: -1)
    )
    monkeypatch.setattr(moving.ctypes, "get_errno", lambda: number)
    if number == errno.EBUSY:
        with pytest.raises(OSError, match=os.strerror(number)):
            moving.exchanged(one, other)
    else:
        assert not moving.exchanged(one, other)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone exchanges two names")
def test_whoever_looks_while_results_are_replaced_always_finds_one(tmp_path, counted):
    made = [make_artifact(tmp_path / f"made{i}", frozen=(i,)) for i in (1, 4)]
    output = shutil.copytree(made[0], tmp_path / "out")
    wanted = {Artifact.open(folder).manifest.model_dump_json() for folder in made}
    seen, done = [], threading.Event()

    def look():
        while not done.is_set():
            try:
                seen.append(Artifact.open(output).manifest.model_dump_json())
            except VtcompressError as error:
                seen.append(str(error))

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(100):
        with staged(output, overwrite=True) as staging:
            shutil.copytree(made[number % 2], staging, dirs_exist_ok=True)
        while len(seen) < 10 * number and reader.is_alive():
            time.sleep(0.001)
    done.set()
    reader.join()
    assert len(seen) >= 990
    assert set(seen) == wanted
    counted("opens of an artifact that is being replaced", len(seen))


def test_a_result_has_reached_the_disk_before_it_has_its_name(tmp_path, old, monkeypatch):
    done = []
    sync, exchanged = moving._sync, moving.exchanged
    monkeypatch.setattr(moving, "_sync", lambda path: (done.append(path.name), sync(path)))
    monkeypatch.setattr(
        moving, "exchanged", lambda *ends: (done.append("exchanged"), exchanged(*ends))[1]
    )
    with staged(old, overwrite=True) as staging:
        (staging / "deep").mkdir()
        (staging / "deep" / "a").write_text("new")
    assert sorted(done[:2]) == ["a", "deep"]
    assert done[2:] == [staging.name, "exchanged", tmp_path.name]


@pytest.mark.parametrize("first", [True, False])
def test_a_folder_around_that_cannot_be_synced_does_not_undo_what_is_in_place(
    tmp_path, monkeypatch, first
):
    """One that may be written and not read: the result lies there already, under its name."""
    output = tmp_path / "out"
    if not first:
        write_result(output, a="old")
    sync = moving._sync

    def refused(path):
        if path == tmp_path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        sync(path)

    monkeypatch.setattr(moving, "_sync", refused)
    write(output, overwrite=True)
    assert (output / "a").read_text() == "new"
    assert names(tmp_path) == ["out"]


@pytest.mark.usefixtures("renamed")
@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV, errno.EACCES])
def test_where_a_folder_cannot_be_moved_its_content_is_replaced(tmp_path, old, monkeypatch, number):
    rename = Path.rename

    def stuck(self, target):
        if old in (self, Path(target)):
            raise OSError(number, os.strerror(number))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stuck)
    inode = old.stat().st_ino
    write(old, overwrite=True)
    assert (old / "a").read_text() == "new"
    assert old.stat().st_ino == inode
    assert names(old) == ["a"]
    assert names(tmp_path) == ["out"]


@pytest.fixture
def other_disk(old: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The old result, in a folder that lies on another disk and is not seen to be a mount point."""
    monkeypatch.setattr(moving, "exchanged", lambda *_: False)
    rename = os.rename

    def across(source: Path, target: Path) -> None:
        ends = Path(source), Path(target)
        if old in ends or len({old in path.parents for path in ends}) > 1:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, target)

    monkeypatch.setattr(os, "rename", across)
    return old


def write_two(output: Path) -> None:
    with staged(output, overwrite=True) as staging:
        for name in ("a", "b"):
            (staging / name).write_text("new")


def kept_in(error: VtcompressError) -> Path:
    return Path(str(error).rpartition(" ")[2])


def test_a_result_is_copied_to_another_disk(tmp_path, other_disk, monkeypatch):
    synced = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(handle), sync(handle)))
    write_two(other_disk)
    assert [(other_disk / name).read_text() for name in ("a", "b")] == ["new", "new"]
    assert names(other_disk) == ["a", "b"]
    assert names(tmp_path) == ["out"]
    assert len(synced) == 2 * 3, "both files and the folder, on this disk and the other"


@pytest.mark.parametrize("step", ["copy", "sync"])
def test_a_copy_to_another_disk_that_fails_leaves_both_results_whole(
    tmp_path, other_disk, monkeypatch, step
):
    count, full = 0, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    copy = shutil.copy2

    def second_fails(source, target, **options):
        nonlocal count
        count += 1
        if count == 2:
            raise full
        return copy(source, target, **options)

    def fails(_):
        raise full

    if step == "copy":
        # `copytree` binds its default when it is defined.
        tree = shutil.copytree
        monkeypatch.setattr(
            shutil, "copytree", lambda *a, **k: tree(*a, **{**k, "copy_function": second_fails})
        )
    else:
        monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(VtcompressError, match="No space left on device; the result is") as caught:
        write_two(other_disk)
    assert "\n" not in str(caught.value)
    kept = kept_in(caught.value)
    assert [(kept / name).read_text() for name in ("a", "b")] == ["new", "new"]
    assert (other_disk / "a").read_text() == "old"
    assert [name for name in names(other_disk) if name.startswith(".")] == []
    assert names(tmp_path) == ["out", "out-new-1"]


@pytest.mark.parametrize("moved", [True, False])
def test_an_original_that_is_half_removed_is_not_taken_for_the_result(
    tmp_path, other_disk, monkeypatch, moved
):
    remove = shutil.rmtree

    def half(path, *, ignore_errors=False, **_):
        path = Path(path)
        if STAGING_MARK not in path.name or path.parent != tmp_path:
            remove(path, ignore_errors=ignore_errors)
        elif (path / "a").exists():
            (path / "a").unlink()
            if not ignore_errors:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(shutil, "rmtree", half)
    if moved:
        write_two(other_disk)
        result = other_disk
    else:
        monkeypatch.setattr(
            "export.artifact.moving._exchange",
            lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "no")),
        )
        with pytest.raises(VtcompressError, match="the result is complete") as caught:
            write_two(other_disk)
        result = kept_in(caught.value)
        assert (other_disk / "a").read_text() == "old"
    assert [(result / name).read_text() for name in ("a", "b")] == ["new", "new"]


def test_a_folder_whose_parent_may_not_be_written_is_filled(tmp_path, monkeypatch):
    parent = tmp_path / "fixed"
    output = write_result(parent / "out", a="old")
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) != parent and access(path, mode)
    )
    with staged(output, overwrite=True) as staging:
        (staging / "a").write_text("new")
        assert names(parent) == ["out"], "a file was made in the folder around"
    assert (output / "a").read_text() == "new"
    assert names(output) == ["a"]


def test_everything_is_tried_before_the_work_and_leaves_nothing(tmp_path, old):
    check_place(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    check_place(tmp_path / "empty")
    check_place(old, overwrite=True)
    assert names(tmp_path) == ["empty", "out"]
    assert names(tmp_path / "empty") == []
    for output, asked in ((old, {}), (tmp_path / "x", {"needed_bytes": 1 << 60})):
        with pytest.raises(VtcompressError):
            check_place(output, **asked)


def test_a_refused_place_is_named_also_while_somebody_writes_it_and_leaves_no_new_folders(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    held = exclusive(tmp_path / "x", model / f".out{LOCK_MARK}")
    with held, pytest.raises(VtcompressError, match="which this run reads"):
        check_place(model / "out", sources=[model])
    output = tmp_path / "deep" / "deeper" / "out"
    assert "are needed" in refusal(output, needed_bytes=1 << 60)
    check_place(output)
    with pytest.raises(RuntimeError), staged(output):
        raise RuntimeError
    assert names(tmp_path) == ["model"]
    assert names(model) == []


def test_a_folder_that_may_be_written_and_not_read_is_one_line(tmp_path, monkeypatch):
    listdir = os.listdir

    def refuse(path="."):
        if Path(path) == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listdir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", refuse)
        assert refusal(tmp_path / "out").startswith(f"{tmp_path}: cannot be read: Permission den")
    assert names(tmp_path) == []


# Names as long as the file system takes


LONG = "å" * 120 + "x" * 10  # 250 bytes


def test_a_long_name_is_written_and_replaced(tmp_path):
    output = tmp_path / LONG
    write(output)
    shutil.rmtree(output)
    write_result(output, a="old")
    write(output, overwrite=True)
    assert (output / "a").read_text() == "new"
    output_2 = tmp_path / ("x" * 250)
    output_2.mkdir()
    write(output_2)
    assert names(output_2) == ["a"]
    assert names(tmp_path) == sorted([LONG, output_2.name])


@pytest.mark.parametrize("inside", [False, True])
def test_what_a_killed_run_on_a_long_name_left_is_found_again(tmp_path, monkeypatch, inside):
    monkeypatch.setattr("export.artifact.staging.is_mount", lambda _: inside)
    output = write_result(tmp_path / LONG, a="old")
    with staged(output, overwrite=True) as staging:
        own = staging.with_name(staging.name + "-old")
        if inside:
            assert is_working_file(staging, output)
    shutil.rmtree(output)
    if inside:
        output.mkdir()
        own = output / own.name
    write_result(own, a="old")
    stray = own.with_name(own.name.removesuffix("-old")[:-8] + "0a1b2c3d")
    stray.mkdir()
    assert "holds a compressed model" in refusal(output)
    assert (output / "a").read_text() == "old"
    assert names(output) == ["a", "files.json"]
    assert names(tmp_path) == [LONG]


@pytest.mark.parametrize("name", ["out", "x" * 185, LONG])
def test_a_half_written_calibration_inside_a_folder_is_known_as_our_own(tmp_path, name):
    output = tmp_path / name
    output.mkdir()
    handle, temporary = _temporary(calibration_file(output))
    os.close(handle)
    assert temporary.parent == output
    assert is_working_file(temporary, output)
    assert not is_working_file(output / f".{name[:30]}.txt", output)
    write(output)


def test_a_complete_result_of_a_long_name_is_kept(tmp_path):
    output = tmp_path / LONG

    def work() -> None:
        with staged(output) as staging:
            (staging / "a").write_text("new")
            output.mkdir()
            (output / "thesis.tex").write_text("mine")

    with pytest.raises(VtcompressError, match="the result is complete") as caught:
        work()
    kept = Path(str(caught.value).rpartition(" lies in ")[2])
    assert (kept / "a").read_text() == "new"


# What could not be put in place


def test_what_appeared_meanwhile_is_not_replaced_and_the_result_is_kept(tmp_path):
    output = tmp_path / "out"

    def work() -> None:
        with staged(output) as staging:
            (staging / "a").write_text("new")
            output.mkdir()
            (output / "thesis.tex").write_text("years of work")

    with pytest.raises(VtcompressError) as caught:
        work()
    assert str(caught.value) == (
        f"{output}: cannot be put in place: {output}: holds 1 file that vtcompress did not write, such as "
        f"thesis.tex; choose another `output`; the result is complete and lies in {output}-new-1"
    )
    assert (output / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "out-new-1" / "a").read_text() == "new"
    assert names(tmp_path) == ["out", "out-new-1"]


@pytest.mark.parametrize("step", range(1, 9))
def test_an_error_in_any_move_inside_a_folder_loses_neither_result(tmp_path, monkeypatch, step):
    output = write_result(tmp_path / "out", a="old", b="old")
    monkeypatch.setattr("export.artifact.staging.is_mount", lambda _: True)
    rename, count = Path.rename, 0

    def fails_once(self, target):
        nonlocal count
        count += 1
        if count == step:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_once)
    try:
        write(output, overwrite=True)
    except VtcompressError as error:
        kept = Path(str(error).rpartition(" ")[2])
        assert (output / "a").read_text() == (output / "b").read_text() == "old"
        assert (kept / "a").read_text() == "new"
    else:
        assert (output / "a").read_text() == "new"
    assert not [name for name in names(output) if name.startswith(".")]


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


@pytest.mark.usefixtures("renamed")
def test_an_old_artifact_is_put_back_when_the_new_one_cannot_take_its_place(
    tmp_path, old, monkeypatch
):
    output = old
    rename = Path.rename

    def second_fails(self, target):
        if Path(target) == output and not self.name.endswith("-old"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(VtcompressError, match="Input/output error") as caught:
        write(output, overwrite=True)
    assert (output / "a").read_text() == "old"
    assert str(caught.value).endswith(f"; the result is complete and lies in {output}-new-1")
    assert (tmp_path / "out-new-1" / "a").read_text() == "new"
    assert names(tmp_path) == ["out", "out-new-1"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_old_artifact_that_a_kill_left_aside_comes_back_before_anything_else(
    tmp_path, overwrite
):
    output, aside = tmp_path / "out", tmp_path / f".out{STAGING_MARK}0a1b2c3d-old"
    write_result(aside, a="old")
    if overwrite:
        with pytest.raises(RuntimeError), staged(output, overwrite=True):
            raise RuntimeError
    else:
        with pytest.raises(VtcompressError, match="add `overwrite`"), staged(output):
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
        f"{tmp_path}: 3,000 MiB are needed, 1,500 MiB are free; make room or choose another `output`"
    )
    assert asked == [tmp_path]
    assert list(tmp_path.iterdir()) == []
    check_room(tmp_path, 1500 * 2**20)
