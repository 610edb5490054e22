"""Layers that some visual rows run by a router, against the unmodified model with hooks.

Families of different kinds: one picture of one size, tiles, pictures of their own sizes on three axes.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file

from compressor.families import LoadedModel
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
    """Return a router of each layer; drawn, not trained."""
    generator = torch.Generator().manual_seed(outputs)
    return {i: torch.randn(outputs, hidden, generator=generator) * 0.7 for i in range(6)}


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
