"""Shards of a calibration: merged they are one run's profile; what does not belong together is refused."""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vtcompress
from compressor.calibration.merge import merged
from compressor.calibration.run import calibrate
from compressor.errors import DataError, ProfileError, RecipeError, VtcompressError
from compressor.families import LoadedModel, load
from compressor.profile import Profile, SampleScore
from compressor.samples.questions import Sample, read_samples
from compressor.samples.shard import Shard
from tests import facts
from tests.test_calibration import StopAfter
from vtcompress.cli.main import run_command

WINDOW = "--set=compress.yopo.window=3"  # the tiny grid is 4 x 4
MEASURES = ("layer_contribution", "head_score", "neuron_activity")


def shard(number: int, of: int) -> Shard:
    return Shard(number=number, of=of)


@pytest.fixture(scope="module")
def model(llava: Callable[[str], Path]) -> LoadedModel:
    return load(str(llava("clip+llama")))


@pytest.fixture(scope="module")
def samples(questions: Path) -> tuple[Sample, ...]:
    found = read_samples(questions)
    return (*found[:4], found[1], found[2], found[0])  # some occur twice, and 7 are no multiple


@pytest.fixture(scope="module")
def whole(
    model: LoadedModel, samples: tuple[Sample, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("whole") / "profile.json"
    calibrate(model, facts.task(model, samples, MEASURES), path)
    return path


@pytest.fixture(scope="module")
def thirds(
    model: LoadedModel, samples: tuple[Sample, ...], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    folder = tmp_path_factory.mktemp("thirds")
    paths = [folder / f"{number}.json" for number in (1, 2, 3)]
    for number, path in enumerate(paths, start=1):
        calibrate(model, facts.task(model, samples, MEASURES, shard=shard(number, 3)), path)
    return paths


def test_merged_shards_are_the_bytes_of_one_run_in_any_order(
    whole: Path, thirds: list[Path], tmp_path: Path
) -> None:
    assert [len(Profile.load(path).samples) for path in thirds] == [3, 2, 2]
    for order in itertools.permutations(thirds):
        vtcompress.merge_profiles(order, tmp_path / "p.json", overwrite=True)
        assert (tmp_path / "p.json").read_bytes() == whole.read_bytes()
    assert json.loads(whole.read_text())["profile_format"] == 1  # as it always was


def test_one_shard_of_one_is_the_whole(
    model: LoadedModel, samples: tuple[Sample, ...], whole: Path, tmp_path: Path
) -> None:
    alone = calibrate(
        model, facts.task(model, samples, MEASURES, shard=shard(1, 1)), tmp_path / "p.json"
    )
    assert not alone.complete
    assert merged([(tmp_path / "p.json", alone)]) == Profile.load(whole)


def test_a_killed_shard_resumes_to_the_same_bytes(
    model: LoadedModel,
    samples: tuple[Sample, ...],
    thirds: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("compressor.calibration.run.SAVE_EVERY_SECONDS", 0.0)
    task, path = facts.task(model, samples, MEASURES, shard=shard(1, 3)), tmp_path / "p.json"
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, task, path, progress=StopAfter(2))
    (line,) = _problems(lambda: merged([(path, Profile.load(path))]))
    assert line == (
        f"{path}: shard 1/3 is not finished, it holds 2 of 3 samples; go on with `vtcompress calibrate "
        "--shard 1/3`"
    )
    rest = StopAfter(99)
    calibrate(model, task, path, progress=rest)
    assert rest.seen == 1
    assert path.read_bytes() == thirds[0].read_bytes()


def test_a_killed_run_over_all_resumes_to_the_same_bytes_with_means_alone_kept(
    model: LoadedModel,
    samples: tuple[Sample, ...],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("compressor.calibration.run.SAVE_EVERY_SECONDS", 0.0)
    task, path = facts.task(model, samples, MEASURES), tmp_path / "p.json"
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, task, path, progress=StopAfter(3))
    calibrate(model, task, path)
    assert path.read_bytes() == whole.read_bytes()


def test_a_profile_of_another_shard_of_all_samples_or_in_another_dtype_is_not_continued(
    model: LoadedModel, samples: tuple[Sample, ...], whole: Path, thirds: list[Path]
) -> None:
    for path, change, words in (
        (thirds[0], {"shard": shard(2, 3)}, "as shard 1/3, not as shard 2/3"),
        (thirds[0], {}, "as shard 1/3, not on all samples"),
        (whole, {"shard": shard(1, 3)}, "on all samples, not as shard 1/3"),
        (whole, {"dtype": "bfloat16"}, "in float32, not bfloat16"),
    ):
        task = facts.task(model, samples, MEASURES, **change)
        (line,) = _problems(lambda path=path, task=task: task.go_on(path))
        assert line.startswith(f"{path}: measured {words}: it holds")
    more = facts.task(model, (*samples, samples[0]), MEASURES, shard=shard(1, 3))
    assert "on other data than the 8 samples" in _problems(lambda: more.go_on(thirds[0]))[0]


def _problems(call: Callable[[], object]) -> tuple[str, ...]:
    with pytest.raises(ProfileError) as caught:
        call()
    return caught.value.problems


def part(number: int, of: int = 3, **changes: Any) -> Profile:
    """Return a finished shard of five samples."""
    one = facts.profile([[0.5, 0.25]] * len(range(number - 1, 5, of)), total=5)
    return one.changed(shard=shard(number, of), **changes)


OTHERS: dict[str, tuple[Profile, str]] = {
    "model": (part(2, model_digest="0" * 64), "on another model (owner/little-model)"),
    "data": (part(2, data_digest="0"), "on other data (5 samples of calibration.jsonl; seed"),
    "measures": (part(2, measures=("exit_kl",)), "other things (exit_kl)"),
    "gates": (part(2, gates_digest="0"), "with other gates"),
    "dtype": (part(2, dtype="bfloat16"), "in another dtype (bfloat16)"),
    "number": (part(2, 4), "as one of another number of shards (4)"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_shard_of_something_else_is_refused_in_one_line_with_its_file(what: str) -> None:
    other, words = OTHERS[what]
    shards = [(Path("1.json"), part(1)), (Path("2.json"), other), (Path("3.json"), part(3))]
    line = _problems(lambda: merged(shards))[0]
    assert line.startswith("2.json: measured ")
    assert words in line
    assert line.endswith(
        "than 1.json; leave one of them out, or make it anew with `vtcompress calibrate --shard`"
    )


def test_two_of_one_number_missing_ones_and_whole_profiles_are_each_named() -> None:
    one, two = (Path("a.json"), part(1)), (Path("b.json"), part(1))
    assert _problems(lambda: merged([one, two])) == (
        "b.json: shard 1/3, as a.json is; leave one of them out",
        "a.json: shard 2/3, which belongs to it, is missing; give it, or make it with `vtcompress calibrate "
        "--shard 2/3`",
        "a.json: shard 3/3, which belongs to it, is missing; give it, or make it with `vtcompress calibrate "
        "--shard 3/3`",
    )
    no_shard = (Path("c.json"), facts.profile([[0.5, 0.25]]))
    (line,) = _problems(lambda: merged([one, no_shard]))
    assert line.startswith("c.json: is no shard; leave it out, or make one")
    assert _problems(lambda: merged([])) == (
        "no shards: give the profiles of all shards of one calibration",
    )


def test_a_shard_that_holds_more_than_its_share_is_refused(tmp_path: Path) -> None:
    part(3).model_copy(update={"samples": part(1).samples}).save(tmp_path / "p.json")
    (line,) = _problems(lambda: Profile.load(tmp_path / "p.json"))
    assert line.startswith(f"{tmp_path / 'p.json'}: inconsistent")


@pytest.mark.parametrize("given", ["3", "0/8", "9/8", "a/b", "3/8/1", "-1/2", "", " 1/2"])
def test_what_is_no_shard_is_refused(given: str) -> None:
    with pytest.raises(DataError, match=r"^`shard`: '.*' is no shard; give which of how many"):
        Shard.parse(given)
    assert Shard.parse("3/8") == shard(3, 8)


def test_the_commands_make_shards_merge_them_and_refuse_to_plan_by_one(
    tiny_model: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["calibrate", "--recipe=yopo", f"--model={tiny_model}", f"--data={questions}"]
    common += ["--samples=3", "--set=compress.yopo.select=activation", WINDOW]
    of = ["--recipe=yopo", f"--model={tiny_model}", WINDOW]
    one, two, output = (tmp_path / f"{name}.json" for name in ("one", "two", "merged"))
    assert run_command([*common, f"--output={one}", "--shard=1/2"]) == 0
    said = capsys.readouterr().out
    assert f"shard 1/2, 2 samples; written: {one}\n" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.json"]  # nothing is drawn
    assert run_command(["plan", *of, f"--profile={one}"]) == 1
    assert capsys.readouterr().err == (
        f"error: {one}: is shard 1/2 of a profile; make one profile of all shards with `vtcompress "
        "merge-profiles`\n"
    )
    merge = ["merge-profiles", str(one)]
    assert run_command([*merge, f"--output={output}"]) == 1
    assert f"error: {one}: shard 2/2, which belongs to it, is missing" in capsys.readouterr().err
    assert not output.exists()
    assert run_command([*common, f"--output={two}", "--shard=2/2"]) == 0
    assert run_command([*merge, str(two), f"--output={two}"]) == 1
    assert f"error: {two}: is one of the shards; choose another --output" in capsys.readouterr().err
    capsys.readouterr()
    assert run_command([*merge, str(two), f"--output={output}"]) == 0
    assert f"2 shards, 3 samples; written: {output}\n" in capsys.readouterr().out
    assert run_command([*common, f"--output={tmp_path / 'whole.json'}"]) == 0
    assert output.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert run_command([*merge, str(two), f"--output={output}"]) == 1
    assert "exists; choose another --output or add --overwrite" in capsys.readouterr().err
    assert run_command([*merge, str(two), str(tmp_path / "none.json"), f"--output={one}"]) == 1
    assert run_command([*common, f"--output={tmp_path / 'x.json'}", "--shard=4/4"]) == 1
    assert "error: --shard: 4/4: there are 3 samples in all; give at most 3 shards" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "x.json").exists()


def test_gates_behind_cuts_that_all_samples_choose_are_not_calibrated_in_shards(
    tmp_path: Path,
) -> None:
    recipe = vtcompress.load_recipe("dyvte").override(
        {"compress": [{"dyvte": {}}, {"shortv": {"frozen": 0.5}}]}
    )
    with pytest.raises(RecipeError, match=r"^compress\.dyvte: gates are asked once more behind"):
        vtcompress.calibrate(recipe, tmp_path / "p.json", shard="1/2")
    assert list(tmp_path.iterdir()) == []


def test_an_older_profile_of_means_is_extended_from_what_they_tell(tmp_path: Path) -> None:
    """Its means have six digits, and there are no sums."""
    path = tmp_path / "p.json"
    old = facts.profile([[0.5, 0.25]] * 2, total=3).changed(
        measures=("layer_contribution", "neuron_activity"), neuron_activity=((0.1, 0.2), (3.0, 0.0))
    )
    assert old.profile_format == 1
    old.save(path)
    assert not re.search("sums|shard|dtype", path.read_text())
    score = SampleScore(visual=12, text=8, layer_contribution=(0.5, 0.25))
    values = ((0.4, 0.2), (0.0, 3.0))
    grown = Profile.load(path).with_sample(score, {"neuron_activity": values})
    assert grown.mean("neuron_activity") == ((0.2, 0.2), (2.0, 1.0))
    assert (grown.profile_format, grown.finished().profile_format) == (2, 1)


def test_a_place_that_the_merged_profile_cannot_have_is_refused(tmp_path: Path) -> None:
    part(1, 1).save(tmp_path / "one.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(VtcompressError, match="is no file that vtcompress knows as its own"):
        vtcompress.merge_profiles([tmp_path / "one.json"], tmp_path / "other.json")
