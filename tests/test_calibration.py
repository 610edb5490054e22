"""Calibration: the contribution by its definition, resumed runs, foreign profiles, drawn profiles."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.calibration.plot import draw_profile
from compressor.calibration.run import calibrate
from compressor.errors import DataError, ModelError, ProfileError
from compressor.families import LoadedModel, load
from compressor.plan.edits import freeze, identity_plan
from compressor.profile import Profile
from compressor.samples.prompts import encode
from compressor.samples.questions import Sample, read_samples
from tests.facts import task


@pytest.fixture(scope="module")
def model(llava: Callable[[str], Path]) -> LoadedModel:
    return load(str(llava("clip+llama")))


@pytest.fixture(scope="module")
def samples(questions: Path) -> tuple[Sample, ...]:
    return read_samples(questions)


def by_definition(model: LoadedModel, sample: Sample) -> np.ndarray:
    """KL(p_i || p) on the unmodified transformers model: hooks undo layer i's update of visual rows."""
    prompt = encode(model.processor, sample, model.facts)
    visual = prompt.input_ids[0] == model.facts.image_token_id

    def last_logits() -> torch.Tensor:
        with torch.inference_mode():
            out = model.original(
                input_ids=prompt.input_ids, pixel_values=prompt.inputs["pixel_values"]
            )
        return torch.log_softmax(out.logits[0, -1].double(), dim=-1)

    def undo(_: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[:, visual] = args[0][:, visual]
        return changed

    reference, scores = last_logits(), []
    for layer in model.original.model.language_model.layers:
        handle = layer.register_forward_hook(undo)
        frozen = last_logits()
        handle.remove()
        scores.append(float((frozen.exp() * (frozen - reference)).sum()))
    return np.array(scores)


def test_layer_contribution_is_what_the_definition_gives_on_transformers_own_model(
    model: LoadedModel, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    profile = calibrate(model, task(model, samples[:3]), tmp_path / "p.json")
    for sample, score in zip(samples, profile.samples, strict=False):
        wanted = by_definition(model, sample)
        found = np.array(score.layer_contribution)
        assert np.all(np.abs(found - wanted) <= 1e-4 * np.abs(wanted) + 1e-6)
        assert wanted[:-1].min() > 1e-3  # what is compared is not noise
    assert profile.mean("layer_contribution")[-1] == 0.0


class StopAfter:
    """A progress that stands for a kill: it stops the loop after some samples."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seen = 0

    def track(self, items: Iterable[Any], label: str, total: int) -> Iterator[Any]:
        del label, total
        for item in items:
            if self.seen == self.count:
                raise KeyboardInterrupt
            self.seen += 1
            yield item

    def say(self, line: str) -> None:
        del line


def test_a_killed_run_resumes_to_the_same_profile_and_measures_no_sample_twice(
    model: LoadedModel,
    samples: tuple[Sample, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("compressor.calibration.run.SAVE_EVERY_SECONDS", 0.0)
    whole = calibrate(model, task(model, samples), tmp_path / "whole.json")
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, task(model, samples), tmp_path / "p.json", progress=StopAfter(4))
    assert len(Profile.load(tmp_path / "p.json").samples) == 4
    rest = StopAfter(99)
    assert calibrate(model, task(model, samples), tmp_path / "p.json", progress=rest) == whole
    assert rest.seen == len(samples) - 4
    assert (tmp_path / "p.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_a_profile_of_other_data_is_refused_and_kept(
    model: LoadedModel, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    path = tmp_path / "p.json"
    calibrate(model, task(model, samples[:1]), path)
    before = path.read_bytes()
    with pytest.raises(ProfileError, match=r"measured on other data"):
        calibrate(model, task(model, samples[1:2]), path)
    assert path.read_bytes() == before


def test_more_samples_go_on_with_the_profile_and_end_as_if_measured_at_once(
    model: LoadedModel, samples: tuple[Sample, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed on the way too; samples that occur twice are measured twice."""
    monkeypatch.setattr("compressor.calibration.run.SAVE_EVERY_SECONDS", 0.0)
    more = (samples[0], samples[1], samples[1], samples[2], samples[3])
    whole = calibrate(model, task(model, more), tmp_path / "whole.json")
    path = tmp_path / "p.json"
    calibrate(model, task(model, (samples[1], samples[3])), path)
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, task(model, more), path, progress=StopAfter(1))
    rest = StopAfter(99)
    assert calibrate(model, task(model, more), path, progress=rest) == whole
    assert rest.seen == 2
    assert path.read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_a_profile_of_an_earlier_version_is_continued_by_the_order_of_its_samples(
    model: LoadedModel, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    path = tmp_path / "p.json"
    whole = calibrate(model, task(model, samples[:3]), path)
    nameless = [score.model_copy(update={"sample": ""}) for score in whole.samples]
    whole.model_copy(update={"samples": tuple(nameless[:2])}).save(path)
    rest = StopAfter(99)
    found = calibrate(model, task(model, samples[:3]), path, progress=rest)
    assert rest.seen == 1
    assert found.mean("layer_contribution") == whole.mean("layer_contribution")


def test_starting_anew_replaces_a_profile_of_other_data(
    model: LoadedModel, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    path = tmp_path / "p.json"
    calibrate(model, task(model, samples[:1]), path)
    found = calibrate(model, task(model, samples[1:2], data="r"), path, anew=True)
    assert found == Profile.load(path)
    assert found == calibrate(model, task(model, samples[1:2], data="r"), tmp_path / "new.json")


def test_the_command_says_what_a_profile_holds_before_the_model_is_loaded(
    tiny_model: Path,
    questions: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from vtcompress.cli.main import run_command

    path, other = tmp_path / "new" / "p.json", tmp_path / "other.jsonl"
    (tmp_path / "0.png").write_bytes((questions.parent / "0.png").read_bytes())
    other.write_text('{"image": "0.png", "question": "what else"}\n')
    common = ["calibrate", "--recipe", "shortv", "--model", str(tiny_model), "--output", str(path)]
    assert run_command([*common, "--data", str(questions), "--samples", "2"]) == 0
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("compressor.families.load", lambda *_, **__: pytest.fail("loaded"))
        capsys.readouterr()
        assert run_command([*common, "--data", str(other)]) == 1
        assert capsys.readouterr().err == (
            f"error: {path}: measured on other data than the 1 samples of other.jsonl (seed counts too): it "
            f"holds 2 of 2 samples of {questions.name}, on {tiny_model.name}; add --overwrite to start anew, "
            "or choose another --output\n"
        )
        assert run_command([*common, "--data", str(questions), "--samples", "1"]) == 1
        assert "it holds 2 of 2 samples" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert run_command([*common, "--data", str(questions), "--samples", "4"]) == 0
    assert Profile.load(path).total == 4
    assert run_command([*common, "--data", str(other), "--overwrite"]) == 0
    assert (Profile.load(path).data, len(Profile.load(path).samples)) == ("other.jsonl", 1)


def test_a_profile_of_another_model_is_refused(
    llava: Callable[[str], Path], model: LoadedModel, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    path = tmp_path / "p.json"
    calibrate(model, task(model, samples[:1]), path)
    other = load(str(llava("clip+mistral, all heads")))
    with pytest.raises(ProfileError, match=r"measured on another model"):
        calibrate(other, task(other, samples[:1]), path)


def test_scores_that_are_no_numbers_are_refused_and_not_ranked(
    model: LoadedModel, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    """Weights that are finite can still overflow."""
    name = "layers.2.self_attn.v_proj.weight"
    tensors = {**model.tensors, name: model.tensors[name] * 1e38}
    with pytest.raises(ModelError, match="layer_contribution: NaN or infinite for 'what is it'"):
        calibrate(
            dataclasses.replace(model, tensors=tensors),
            task(dataclasses.replace(model, tensors=tensors), samples[:1]),
            tmp_path / "p.json",
        )
    assert not (tmp_path / "p.json").exists()


def test_samples_without_a_picture_are_refused_before_any_work(
    model: LoadedModel, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    blind = (*samples[:1], Sample((), "what is this"))
    with pytest.raises(DataError, match=r"'what is this' has no image"):
        calibrate(model, task(model, blind), tmp_path / "p.json")
    assert not (tmp_path / "p.json").exists()


def test_the_drawn_profile_marks_the_chosen_layers(
    model: LoadedModel, samples: tuple[Sample, ...], tmp_path: Path
) -> None:
    profile = calibrate(model, task(model, samples[:1]), tmp_path / "p.json")
    plan = identity_plan(model.facts, model.digest)
    frozen = freeze(plan, (1, 3), "shortv")
    png, svg = draw_profile(profile, frozen, tmp_path / "one")
    again = draw_profile(profile, frozen, tmp_path / "two")[1]
    other = draw_profile(profile, freeze(plan, (2,), "shortv"), tmp_path / "three")[1]
    assert png.read_bytes().startswith(b"\x89PNG")
    assert svg.read_bytes() == again.read_bytes()
    assert svg.read_bytes() != other.read_bytes()
    assert "#e69138" in svg.read_text(encoding="utf-8")
