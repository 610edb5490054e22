"""What lies in a folder of somebody else's is opened as a regular file of its kind and folder, or not."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.disk.opening import LARGEST, most_bytes, read_bytes, sha256_of
from compressor.errors import (
    LONGEST_PROBLEM,
    MOST_PROBLEMS,
    ArtifactError,
    DataError,
    ModelError,
    ProblemsError,
)
from compressor.families.registry import describe
from compressor.samples.pictures import load_image
from export.artifact.artifact import Artifact
from export.artifact.engine_set import ENGINES_FOLDER
from export.checks.stored import _copied
from export.report.pages.model_card import licence_of
from tests.artifacts import make_artifact

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")
PNG = "tests/golden/digit.png"


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    return make_artifact(tmp_path / "artifact")


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder_elsewhere(path: Path) -> None:
    path.symlink_to("/etc")


def hidden(path: Path) -> None:
    path.write_text("x", encoding="utf-8")


ADDED: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a pipe": ("extra", pipe),
    "a hidden pipe": (".extra", pipe),
    "a device": ("extra", device),
    "a link to a folder": ("extra", folder_elsewhere),
    "a pipe among engines": (f"{ENGINES_FOLDER}/extra", pipe),
    "a hidden file among engines": (f"{ENGINES_FOLDER}/.extra", hidden),
    "a hidden folder among engines": (f"{ENGINES_FOLDER}/.set/extra", hidden),
}


@pytest.mark.parametrize("what", ADDED)
def test_what_an_artifact_does_not_name_is_refused_of_whatever_kind(
    what: str, artifact: Path
) -> None:
    Artifact.open(artifact)
    name, make = ADDED[what]
    path = artifact / name
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    with pytest.raises(ArtifactError, match=r"not named in the manifest") as caught:
        Artifact.open(artifact)
    assert str(path) in str(caught.value)


def test_a_text_of_an_artifact_is_too_large_before_it_is_hashed(
    artifact: Path,
) -> None:
    manifest = json.loads((artifact / "manifest.json").read_text(encoding="utf-8"))
    os.truncate(artifact / "plan.json", 1 << 40)
    manifest["files"]["plan.json"]["size"] = 1 << 40
    (artifact / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    for verify in (True, False):
        with pytest.raises(ArtifactError, match=r"plan\.json: larger than 256 MiB"):
            Artifact.open(artifact, verify=verify)


def test_comparing_large_files_shows_progress_and_can_be_ended(artifact: Path) -> None:
    shown: list[tuple[str, int]] = []

    class Shows:
        def track(self, items, label, total):
            shown.append((label, total))
            yield from items

        def say(self, line): ...

    Artifact.open(artifact, progress=Shows())
    assert shown == [("comparing files with the manifest, MB", 1)]
    with pytest.raises(KeyboardInterrupt):
        sha256_of(artifact / "plan.json", _ends)


def _ends(_: int) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja"])
def test_a_text_of_a_model_is_bounded_by_its_kind(name: str, model: Path) -> None:
    os.truncate(model / name, LARGEST[name] + 1)
    with pytest.raises(ModelError, match=rf"{name}: larger than \d+ MiB"):
        describe(str(model))


def test_every_known_name_has_a_bound_and_weights_have_none() -> None:
    assert most_bytes("weights.bin") is most_bytes("model.safetensors") is None
    assert max(LARGEST.values()) <= most_bytes("some.json")


def test_what_grows_while_it_is_read_ends_too() -> None:
    with pytest.raises(OSError, match="larger than 0 MiB"):
        read_bytes(Path("/proc/self/maps"), 10)  # which says that it has no bytes


def test_a_text_behind_a_link_out_of_a_model_folder_is_refused_by_name(model: Path) -> None:
    kept = model.with_name("elsewhere.json")
    (model / "config.json").rename(kept)
    (model / "config.json").symlink_to(kept)
    with pytest.raises(ModelError, match=r"config\.json: a link to a file outside the model's"):
        describe(str(model))


def test_a_snapshot_of_the_hubs_cache_is_a_model(model: Path) -> None:
    cache = model.with_name("models--a--b")
    snapshot, blobs = cache / "snapshots" / "0123", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(model.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    assert describe(str(snapshot))


@pytest.mark.parametrize("make", [pipe, device], ids=["pipe", "device"])
def test_a_card_that_is_no_file_is_not_waited_for(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "README.md")
    assert licence_of(tmp_path) == {}


def test_a_card_elsewhere_and_one_of_many_megabytes_are_not_read(tmp_path: Path) -> None:
    card = "---\nlicense: mit\n---\n"
    (tmp_path / "real.md").write_text(card, encoding="utf-8")
    (folder := tmp_path / "model").mkdir()
    (folder / "README.md").symlink_to(tmp_path / "real.md")
    assert licence_of(folder) == {}
    (folder / "README.md").unlink()
    (folder / "README.md").write_text(card + "x" * 5_000_000, encoding="utf-8")
    assert licence_of(folder) == {"license": "mit"}
    (folder / "README.md").write_text("---\n" + "a: 1\n" * 500_000 + card, encoding="utf-8")
    assert licence_of(folder) == {}


def test_a_sparse_picture_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    os.truncate(path, 64 << 30)
    with pytest.raises(DataError, match="68,719,476,736 bytes; 512 MiB are read at most"):
        load_image(path)


@pytest.mark.parametrize("name", [b"a.p\xe9g", b"a.p\\g", b"a.p\ng", b"a." + b"p" * 240, b"a.png"])
def test_a_kept_picture_has_a_name_that_a_manifest_can_hold(name: bytes, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(b"content")
    kept = _copied(path, tmp_path)
    assert kept.startswith("images/ed7002b439e9ac84")
    assert kept.removeprefix("images/ed7002b439e9ac84") == (".png" if name == b"a.png" else "")


def test_a_file_of_300_000_faults_is_told_in_few_lines_and_none_is_endless() -> None:
    error = ProblemsError(f"line {n}" for n in range(300_000))
    assert len(error.problems) == MOST_PROBLEMS + 1
    assert error.problems[-1] == "and 299,900 more"
    assert len(ProblemsError(["x" * 10_000_000]).problems[0]) == LONGEST_PROBLEM + 4


CLOSED = {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-", "all": "<&- >&- 2>&-"}


@pytest.mark.parametrize("which", CLOSED)
def test_closed_streams_are_one_line_or_not_missed(which: str) -> None:
    command = f"{sys.executable} -m vtcompress recipes {CLOSED[which]}"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    if which in ("stdout", "all"):
        said = (
            "" if which == "all" else "error: standard output is closed: send it to a file, or to "
        )
        assert ran.returncode == 1
        assert ran.stderr.decode().startswith(said)
        assert ran.stderr.count(b"\n") == (which != "all")
    else:
        assert ran.returncode == 0
        assert b"identity" in ran.stdout
