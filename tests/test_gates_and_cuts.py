"""Gates beside other cuts: predicted exits are those of the decoder that is exported, or it is said."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import vtcompress
from compressor.compressed import compress
from compressor.decoder.weights import load_gates
from compressor.disk.gate_file import GateFile
from compressor.families import load
from compressor.families.pictures.text import PictureForm
from compressor.plan.plan import Plan
from compressor.profile import Profile
from compressor.samples.questions import read_samples
from export.backends.torch_model import TorchSession
from export.checks.loss import measure_answers
from export.runtime.runtime import Runtime

CUTS = [{"shortv": {"layers": [0, 1]}}, {"yopo": {"mlp_ratio": 4}}]
SEED = 10
"""Of gates that the cuts below make fire elsewhere; the first test holds that."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gates and cuts")


@pytest.fixture(scope="module")
def recipe_of(
    llava: Callable[[str], Path], questions: Path, folder: Path
) -> Callable[..., vtcompress.Recipe]:
    generator = torch.Generator().manual_seed(SEED)
    tensors = {}
    for layer in range(3):
        name = f"model.visual_gates_router.{layer}"
        tensors[f"{name}.w1.weight"] = torch.randn(8, 128, generator=generator)
        tensors[f"{name}.w2.weight"] = torch.randn(2, 8, generator=generator)
    save_file(tensors, folder / "gates.safetensors")

    def made(*more: dict[str, Any], exit: str = "dynamic") -> vtcompress.Recipe:  # noqa: A002
        gates = {"dyvte": {"gates": str(folder / "gates.safetensors"), "exit": exit}}
        return vtcompress.load_recipe("identity").override(
            {
                "model.id": str(llava("clip+llama")),
                "calibrate.data": questions,
                "compress": [gates, *more],
            }
        )

    return made


@pytest.fixture(scope="module")
def originals(recipe_of: Callable[..., vtcompress.Recipe], folder: Path) -> Profile:
    """The margins on the original's states."""
    return vtcompress.calibrate(recipe_of(), folder / "original.json")


def counts(plan: Plan) -> dict[int | None, int]:
    gates = plan.gates
    assert gates is not None
    exits = zip(
        (*(c + 1 for c in gates.candidates), None), (*gates.fired, gates.unfired), strict=True
    )
    return {exit_layer: count for exit_layer, count in exits if count}


def test_predicted_exits_are_those_of_the_decoder_with_all_its_cuts(
    recipe_of: Callable[..., vtcompress.Recipe], originals: Profile, questions: Path, folder: Path
) -> None:
    recipe = recipe_of(*CUTS)
    profile = vtcompress.calibrate(recipe, folder / "cut.json")
    assert Profile.load(folder / "cut.json") == profile
    plan = vtcompress.plan(recipe, profile)
    model = load(str(recipe.model.id))
    gates = load_gates(GateFile.read(folder / "gates.safetensors"), (0, 1, 2))
    model.processor.save_pretrained(folder)
    session = TorchSession(compress(model, plan, gates=gates))
    runtime = Runtime.on_session(session, folder, model.facts, PictureForm(token="<image>"))
    answers = measure_answers(runtime, read_samples(questions), 1).answers
    assert counts(plan) == Counter(answer.exit_layer for answer in answers)
    assert counts(plan) != counts(vtcompress.plan(recipe_of(), originals)), "take other gates"
    assert not any("gates" in note for note in plan.notes)
    again = vtcompress.calibrate(recipe, folder / "cut.json")
    assert again == profile


def test_exits_that_were_counted_on_other_states_are_said_to_be(
    recipe_of: Callable[..., vtcompress.Recipe], originals: Profile, folder: Path
) -> None:
    notes = vtcompress.plan(recipe_of(*CUTS), originals).notes
    assert (
        "compress[0].dyvte: predicted exits and costs rest on gates that were asked on the original's "
        "states, not on those that the other methods of this recipe leave, on which they may fire "
        "elsewhere; calibrate or export with this recipe to count them anew"
    ) in notes
    assert vtcompress.plan(recipe_of(), originals).notes == ()
    cut = vtcompress.calibrate(recipe_of(*CUTS), folder / "others.json")
    (note,) = vtcompress.plan(recipe_of(), cut).notes
    assert "asked on states behind other cuts" in note


def test_an_exit_that_is_baked_beside_other_cuts_is_said_to_rest_on_the_original(
    recipe_of: Callable[..., vtcompress.Recipe], originals: Profile
) -> None:
    notes = vtcompress.plan(recipe_of(CUTS[1], exit="baked"), originals).notes
    assert any(
        "the exit rests on gates that were asked on the original's states" in n for n in notes
    )
    assert not any("gates" in n for n in vtcompress.plan(recipe_of(exit="baked"), originals).notes)


def test_what_gates_see_is_changed_by_cuts_and_frozen_rows_and_not_by_dead_ones(
    recipe_of: Callable[..., vtcompress.Recipe], originals: Profile
) -> None:
    alone = vtcompress.plan(recipe_of(), originals)
    assert alone.layers[-1].reason == "dead"
    assert alone.gates_see() == ""
    seen = {vtcompress.plan(recipe_of(cut), originals).gates_see() for cut in CUTS}
    assert len(seen | {""}) == 3
