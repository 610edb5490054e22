"""Layers that some visual rows run by a router, against the unmodified model with hooks.

Families of different kinds: one picture of one size, tiles, pictures of their own sizes on three axes.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import vtcompress
from compressor.compressed import load_compressed
from compressor.errors import ArtifactError
from compressor.families import LoadedModel, describe
from compressor.methods.mixture.ranks import ARANK
from tests.conftest import shared
from tests.family_cases import BACKENDS, Entries, FamilyCases, Made
from tests.test_family_internvl import TestInternVl as InternVl
from tests.test_family_llava import TestLlava as Llava
from tests.test_family_qwen2_vl import TestQwen2Vl as Qwen2Vl
from tests.test_family_smolvlm import TestSmolVlm as SmolVlm

PROMPTS = ("one picture", "two apart", "two adjacent", "text alone")
OF_CALL: dict[str, Entries] = {
    "gamma_mod": [{"gamma_mod": {"dense": [0, 5], "keep": 0.4}}],
    "together": [
        {"gamma_mod": {"dense": [1, 5], "keep": 0.6}},
        {"skip": {"operators": {"attention": [0, 2], "mlp": [1, 3]}}},
        {"shortv": {"layers": [4]}},
        {"yopo": {"mlp_ratio": 2}},
        {"visual_exit": {"layer": 5}},
    ],
}
OF_TILE: dict[str, Entries] = {
    "mod": [{"mod": {"keep": 0.4}}],
    "mod together": [
        {"mod": {"layers": [0, 1, 3, 4], "keep": 0.6}},
        {"skip": {"operators": {"attention": [0, 2], "mlp": [1]}}},
        {"shortv": {"layers": [3]}},
        {"visual_exit": {"layer": 5}},
    ],
}


def routers(outputs: int, hidden: int) -> dict[int, torch.Tensor]:
    """Return a router of each layer; drawn, not trained.

    One number multiplies all that a layer adds, and rounding with it: it is about 1, as in a trained model.
    """
    generator = torch.Generator().manual_seed(outputs)
    scale = 0.1 if outputs == 1 else 0.7
    return {i: torch.randn(outputs, hidden, generator=generator) * scale for i in range(6)}


class MadeToMix(Made):
    """The same folder and models, with these cuts."""

    outputs = 1

    @cached_property
    def loaded(self) -> LoadedModel:
        plain = Made(self.family, self.place.parent).loaded
        found = {f"layers.{i}.router.weight": router for i, router in self.routers.items()}
        return replace(plain, tensors={**plain.tensors, **found})

    @property
    def routers(self) -> Mapping[int, torch.Tensor]:
        hidden = Made(self.family, self.place.parent).loaded.facts.decoder.hidden
        return routers(self.outputs, hidden)

    def entries(self, cut: str) -> Entries:
        found = {**OF_CALL, **OF_TILE}.get(cut)
        if found is None:
            return super().entries(cut)
        file = self.place / f"routers{self.outputs}.safetensors"
        if not file.exists():
            named = {f"model.layers.{i}.router.weight": r for i, r in self.routers.items()}
            save_file(named, file)
        (name, keys), *rest = [(n, k) for entry in found for n, k in entry.items()]
        return [{name: {**keys, "routers": file}}, *({n: k} for n, k in rest)]


@pytest.fixture(scope="class")
def made(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> MadeToMix:
    found = MadeToMix(request.cls.cases.family, shared(pytestconfig) / "families")
    found.outputs = request.cls.outputs
    return found


class OfCall:
    """The rows of a call compete: the cases of one family."""

    cases: ClassVar[type[FamilyCases]]
    outputs = 2

    @pytest.mark.parametrize("cut", OF_CALL)
    @pytest.mark.parametrize("name", PROMPTS)
    def test_it_is_the_unmodified_model_with_hooks(
        self, made: MadeToMix, name: str, cut: str
    ) -> None:
        self.cases().compare(made, name, cut, "torch")

    @pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "torch"])
    @pytest.mark.parametrize("name", PROMPTS)
    def test_all_together_is_in_the_graphs(self, made: MadeToMix, name: str, backend: str) -> None:
        self.cases().compare(made, name, "together", backend)


class OfTile:
    """The rows of a tile compete: the cases of one family."""

    cases: ClassVar[type[FamilyCases]]
    outputs = 1

    @pytest.mark.parametrize("cut", OF_TILE)
    @pytest.mark.parametrize("name", [*PROMPTS, "a second turn with a new picture"])
    def test_it_is_the_unmodified_model_with_hooks(
        self, made: MadeToMix, name: str, cut: str
    ) -> None:
        self.cases().compare(made, name, cut, "torch")

    @pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "torch"])
    @pytest.mark.parametrize("name", PROMPTS)
    def test_all_together_is_in_the_graphs(self, made: MadeToMix, name: str, backend: str) -> None:
        self.cases().compare(made, name, "mod together", backend)


class TestLlavaOfCall(OfCall):
    cases = Llava

    def test_a_compressed_folder_has_its_routers(self, made: MadeToMix, tmp_path: Path) -> None:
        recipe = made.recipe("gamma_mod")
        plan = vtcompress.plan(recipe)
        folder = vtcompress.compress(recipe, plan, tmp_path / "small")
        runtime, spy = made.in_torch(load_compressed(folder))
        self.cases().compare_runtime(made, "two apart", "gamma_mod", runtime, spy)
        other = tmp_path / "other.safetensors"
        save_file({"router.weight": torch.zeros(2, made.loaded.facts.decoder.hidden)}, other)
        changed = recipe.with_gates(other)
        with pytest.raises(ArtifactError, match="the plan was made with routers of digest"):
            vtcompress.compress(changed, plan, tmp_path / "another")
        assert not (tmp_path / "another").exists()


def test_ranks_are_measured_and_choose_the_layers(
    tiny_model: Path, questions: Path, tmp_path: Path
) -> None:
    recipe = vtcompress.load_recipe("gamma_mod").override(
        {"model.id": str(tiny_model), "calibrate.data": questions, "calibrate.samples": 2}
    )
    file = tmp_path / "routers.safetensors"
    save_file({"router.weight": torch.rand(2, describe(str(tiny_model)).decoder.hidden)}, file)
    recipe = recipe.with_gates(file).override({"compress.gamma_mod.arank": 0.5})
    profile = vtcompress.calibrate(recipe, tmp_path / "profile.json")
    assert profile.measures == ("arank",)
    ranks = profile.mean("arank")
    rows = max(sample.visual + sample.text for sample in profile.samples)
    assert len(ranks) == 2
    assert all(1 <= rank < rows for rank in ranks)
    plan = vtcompress.plan(recipe, profile)
    assert tuple(plan.runs()) == (int(np.argmin(ranks)),)
    table = ARANK.table(profile.measurement("arank"))
    assert (table.title, table.columns) == ("rank of attention", ("layer", "mean over heads"))
    labels = {
        s.label: len(s.points) for s in ARANK.drawing(profile.measurement("arank"), plan).series
    }
    assert labels == {"all visual rows run": 1, "some run": 1}


class TestInternVlOfCall(OfCall):
    cases = InternVl


class TestQwen2VlOfCall(OfCall):
    cases = Qwen2Vl


class TestLlavaOfTile(OfTile):
    cases = Llava


class TestInternVlOfTile(OfTile):
    cases = InternVl


class TestSmolVlmOfTile(OfTile):
    cases = SmolVlm
