"""The bundled model: really trained, exactly reproduced, and compressed by the shipped recipe's own rule."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import vtcompress
from benchmarks.frozen_sweep import KEPT, exact_match
from compressor.compressed import compress
from compressor.families import LoadedModel, load
from compressor.families.pictures.text import PictureForm
from compressor.methods.shortv import ranking
from compressor.plan.edits import freeze, identity_plan
from compressor.samples.questions import Sample, read_samples
from compressor.samples.scores import exact
from export.backends.torch_model import TorchSession
from export.checks.loss import measure_answers
from export.checks.original import measure_original
from export.results.answers import Answers
from export.runtime.runtime import Runtime

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "digits-llava"
NEW_TOKENS = 16


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load(str(EXAMPLE / "model"))


@pytest.fixture(scope="module")
def heldout() -> tuple[Sample, ...]:
    """Every 17th question, 100 of 1,800; not a multiple of 6, so that all six kinds come."""
    samples = read_samples(EXAMPLE / "heldout.jsonl")
    assert len(samples) == 1800
    assert len({path for sample in samples for path in sample.images}) == 300
    return samples[::17][:100]


@pytest.fixture(scope="module")
def original(model: LoadedModel, heldout: Sequence[Sample]) -> Answers:
    return measure_original(model, heldout, NEW_TOKENS)


def on_torch(model: LoadedModel, frozen: Sequence[int], folder: Path) -> Runtime:
    plan = freeze(identity_plan(model.facts, model.digest), frozen, "shortv")
    model.processor.save_pretrained(folder)
    session = TorchSession(compress(model, plan))
    return Runtime.on_session(session, folder, model.facts, PictureForm(token="<image>"))


def assert_same(found: Answers, wanted: Answers) -> None:
    assert np.abs(found.logits - wanted.logits).max() <= 1e-4
    for a, b in zip(found.answers, wanted.answers, strict=True):
        assert a == b


def test_the_model_answers_most_held_out_questions_of_every_kind(
    heldout: Sequence[Sample], original: Answers
) -> None:
    right = [exact(a.text, s.answer or "") for a, s in zip(original.answers, heldout, strict=True)]
    assert sum(right) >= 90
    kinds = {sample.kind for sample in heldout}
    assert kinds == {"cell", "column", "count", "exist", "read", "row"}


def test_identity_gives_the_originals_tokens_on_100_held_out_questions_in_torch(
    model: LoadedModel, heldout: Sequence[Sample], original: Answers, tmp_path: Path
) -> None:
    assert_same(measure_answers(on_torch(model, (), tmp_path), heldout, NEW_TOKENS), original)


def test_identity_gives_the_originals_tokens_on_100_held_out_questions_in_onnx_runtime(
    heldout: Sequence[Sample], original: Answers, tmp_path: Path
) -> None:
    recipe = vtcompress.load_recipe("identity").override({"model.id": str(EXAMPLE / "model")})
    manifest = vtcompress.export(recipe, tmp_path / "out", bench_rounds=0)
    assert (manifest.verdict, manifest.failures) == ("not run", ())  # no validation data
    runtime = Runtime.load(tmp_path / "out", threads=1)
    assert_same(measure_answers(runtime, heldout, NEW_TOKENS), original)


def test_the_shipped_share_is_the_largest_that_keeps_97_percent_on_the_calibration_questions(
    model: LoadedModel, tmp_path: Path
) -> None:
    recipe = vtcompress.load_recipe("shortv").override(
        {"model.id": str(EXAMPLE / "model"), "calibrate.data": EXAMPLE / "calibration.jsonl"}
    )
    profile = vtcompress.calibrate(recipe, tmp_path / "profile.json")
    order = ranking(profile.mean("layer_contribution"))
    samples = read_samples(EXAMPLE / "calibration.jsonl")

    def right(frozen: Sequence[int]) -> float:
        return exact_match(on_torch(model, frozen, tmp_path), samples)[0]

    floor = KEPT * right(())
    shipped = len(vtcompress.plan(recipe, profile).frozen_layers())
    assert right(order[:shipped]) >= floor
    assert all(right(order[:count]) < floor for count in range(shipped + 1, len(order) + 1))
