"""SIGKILL at any moment of any stage: the old result or none, nothing left over, calibration goes on."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from compressor.disk.files import write_text
from compressor.disk.locks import LOCK_MARK, exclusive
from compressor.errors import VtcompressError
from compressor.plan.plan import Plan
from compressor.profile import Profile
from export.artifact.artifact import Artifact
from export.artifact.staging import staged
from tests.artifacts import make_artifact
from tests.conftest import shared

ROOT = Path(__file__).parent.parent
SEED = 3
KILLS = {
    "calibrate": 12,
    "plan": 6,
    "compress": 8,
    "export": 8,
    "validate": 6,
    "bench": 5,
    "generate": 5,
}
Count = Callable[[str, int], None]


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with the sha256 of its bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass
class Killer:
    """Runs the command line in forked children; see `tests.killing`."""

    process: "subprocess.Popen[str]"

    def run(self, arguments: list[Any], after: float | None = None) -> dict[str, Any]:
        request = {"run": list(map(str, arguments)), "after": after}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if after is None:
            assert answer["code"] == 0, answer["said"]
        return answer


@pytest.fixture(scope="module")
def killer(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Killer]:
    scratch, traces = tmp_path_factory.mktemp("killer"), shared(pytestconfig) / "traced"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.killing", str(scratch), str(traces)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield Killer(process)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == 0


@dataclass(frozen=True)
class Place:
    """Where the stages work, with what they start from. Only `work` is written by them."""

    work: Path
    model: Path
    data: Path
    artifact: Path

    def command(self, stage: str) -> list[Any]:
        recipe = ["--recipe", "shortv", "--model", self.model, "--data", self.data, "--samples", 24]
        profile, plan = self.work / "profile.json", self.work / "plan.json"
        output = ["--output", self.work / "out", "--overwrite"]
        return {
            "calibrate": ["calibrate", *recipe, "--output", profile],
            "plan": ["plan", *recipe, "--profile", profile, "--output", plan],
            "compress": ["compress", *recipe, "--plan", plan, "--profile", profile, *output],
            "export": ["export", *recipe, "--bench-rounds", 0, *output],
            "validate": ["validate", self.artifact],
            "bench": ["bench", self.artifact, "--rounds", 3],
            "generate": [
                "generate",
                self.artifact,
                "--prompt",
                "what is it",
                "--max-new-tokens",
                8,
            ],
        }[stage]


@pytest.fixture(scope="module")
def place(
    killer: Killer,
    tiny_model: Path,
    tiny_artifact: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Place:
    from tests.models import make_questions

    base = tmp_path_factory.mktemp("kill")
    data = make_questions(base / "data", 24)
    artifact = base / "artifact" / "tiny"
    shutil.copytree(tiny_artifact, artifact)
    (base / "work").mkdir()
    made = Place(base / "work", tiny_model, data, artifact)
    for stage in ("calibrate", "plan"):  # what the later stages start from
        killer.run(made.command(stage))
    return made


def delays(stage: str, seconds: float) -> list[float]:
    """Seeded moments, one drawn from each of equal parts of the stage's duration."""
    randomly, count = random.Random(f"{SEED} {stage}"), KILLS[stage]
    return [seconds * (part + randomly.random()) / count for part in range(count)]


def killed(
    killer: Killer, place: Place, stage: str, check: Callable[[], None], counted: Count
) -> None:
    """Kill a stage at its moments and check after each; a run that ended first is killed again sooner."""
    seconds = killer.run(place.command(stage))["seconds"]
    kills = 0
    for moment in delays(stage, seconds):
        answer, sooner = {"how": ""}, 1.0
        while answer["how"] != "killed":
            answer = killer.run(place.command(stage), moment * sooner)
            check()
            assert answer["code"] in (0, -signal.SIGKILL), answer["said"]
            sooner *= 0.7
        kills += 1
    assert kills == KILLS[stage]
    counted("kills", kills)


def test_there_are_fifty_kills():
    assert sum(KILLS.values()) == 50


def test_a_killed_calibration_goes_on_where_it_was_and_ends_bit_for_bit_the_same(
    killer, place, counted
):
    profile = place.work / "profile.json"
    whole, plots = profile.read_bytes(), contents(place.work)
    samples = Profile.load(profile).samples
    resumed = 0

    def check() -> None:
        nonlocal resumed
        if profile.is_file():
            found = Profile.load(profile)
            assert found.samples == samples[: len(found.samples)]
            resumed += 0 < len(found.samples) < len(samples)
            if found.complete:
                assert profile.read_bytes() == whole
                profile.unlink()

    profile.unlink()
    killed(killer, place, "calibrate", check, counted)
    killer.run(place.command("calibrate"))
    assert profile.read_bytes() == whole
    assert contents(place.work) == plots, "strays, or other plots"
    assert resumed >= 1


def test_a_killed_plan_leaves_the_old_plan_or_the_new(killer, place, counted):
    path = place.work / "plan.json"
    before = contents(place.work)

    def check() -> None:
        Plan.load(path)
        assert contents(place.work) | before == contents(place.work)

    killed(killer, place, "plan", check, counted)
    killer.run(place.command("plan"))
    assert contents(place.work) == before


def test_a_killed_compression_leaves_the_old_folder_or_none(killer, place, counted):
    check_folder(killer, place, "compress", counted)


def test_a_killed_export_leaves_the_old_artifact_or_none(killer, place, counted):
    check_folder(killer, place, "export", counted)
    Artifact.open(place.work / "out")


def mark_old(folder: Path) -> None:
    """Add a file `old` to a result, by which it is told from the next one; its list of files names it."""
    (folder / "old").write_text("of the old artifact")
    path = next(
        path for path in map(folder.joinpath, ("manifest.json", "files.json")) if path.is_file()
    )
    document = json.loads(path.read_text())
    digest = hashlib.sha256(b"of the old artifact").hexdigest()
    document["files"]["old"] = {"sha256": digest, "size": len("of the old artifact")}
    path.write_text(json.dumps(document))


def check_folder(killer: Killer, place: Place, stage: str, counted: Count) -> None:
    output = place.work / "out"
    killer.run(place.command(stage))
    names = set(contents(output))
    beside = {path.name for path in place.work.iterdir()}
    mark_old(output)
    seen = {"old": 0, "new": 0, "none": 0}

    def check() -> None:
        if not output.exists():
            seen["none"] += 1
        elif (output / "old").is_file():
            assert set(contents(output)) == {*names, "old"}
            seen["old"] += 1
        else:
            assert set(contents(output)) == names, "half an artifact"
            seen["new"] += 1
            mark_old(output)
        for name in {path.name for path in place.work.iterdir()} - beside:
            assert name.startswith((".out.", "..out.")), (
                name
            )  # of the output and of its calibration

    killed(killer, place, stage, check, counted)
    killer.run(place.command(stage))
    assert set(contents(output)) == names
    assert {path.name for path in place.work.iterdir()} == beside, "the rerun left strays"
    assert seen["old"] >= 1


@pytest.mark.parametrize("stage", ["validate", "bench", "generate"])
def test_killed_readers_leave_the_artifact_as_it_was(killer, place, counted, stage):
    before = contents(place.artifact.parent)

    def check() -> None:
        assert contents(place.artifact.parent) == before

    killed(killer, place, stage, check, counted)


# At every single operation on files, where a draw of moments would seldom hit


def killed_at(operation: int, work: Callable[[], None]) -> bool:
    """Run work in a child that kills itself before its n-th operation on files; return whether it did."""
    pid = os.fork()
    if pid == 0:
        left = operation

        def hook(event: str, _: Any) -> None:
            nonlocal left
            if event == "open" or (event.startswith("os.") and event != "os.kill"):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("way", ["exchanged", "renamed", "inside"])
def test_replacing_an_artifact_may_be_killed_at_every_operation_on_files(
    tmp_path, counted, monkeypatch, way
):
    """Beside its place, by an exchange of names or two renames, and inside a mount point, part by part."""
    inside = way == "inside"
    monkeypatch.setattr("export.artifact.staging.is_mount", lambda _: inside)
    if way == "renamed":
        monkeypatch.setattr("export.artifact.moving.exchanged", lambda *_: False)
    output = tmp_path / "out"

    def make_old() -> None:
        make_artifact(output, asked=[("what", "", "a", "a", "a")])

    make_old()
    old, new = contents(output), {"b": hashlib.sha256(b"new").hexdigest()}
    outcomes = set()

    def work() -> None:
        with staged(output, overwrite=True) as folder:
            (folder / "b").write_text("new")

    number = 0
    while killed_at(number, work):
        number += 1
        found = contents(output) if output.exists() else None
        if inside:  # what is in a folder that starts with a dot is not in its place
            found = {name: digest for name, digest in (found or {}).items() if name[0] != "."}
            # Never half an old artifact that passes for one: its manifest goes first and comes last.
            assert found in (old, new) or "manifest.json" not in found
        else:
            assert found in (None, old, new)
        outcomes.add(str(found))
        # The next run cleans up, and puts an old artifact that was aside back before it starts.
        with contextlib.suppress(VtcompressError), staged(output):
            pytest.fail("an old result was replaced without being asked")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert contents(output) in (old, new)
        shutil.rmtree(output)
        make_old()
    assert number > 15
    assert outcomes >= {str(old), str(new)}
    assert (str(None) in outcomes) is (way == "renamed")
    counted("kills", number)


def test_writing_a_file_may_be_killed_at_every_operation_on_files(tmp_path, counted):
    path = tmp_path / "plan.json"

    def work() -> None:
        with exclusive(path):
            write_text(path, "new")

    number = 0
    path.write_text("old")
    while killed_at(number, work):
        number += 1
        assert path.read_text() in ("old", "new")
        strays = {p.name for p in tmp_path.iterdir()} - {"plan.json"}
        assert all(n.endswith((".tmp", LOCK_MARK)) for n in strays)
        with exclusive(path):
            write_text(path, "old")
        assert list(tmp_path.iterdir()) == [path]
    assert number > 5
    counted("kills", number)
