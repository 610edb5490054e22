"""Methods that keep some visual rows in front of the decoder, each against the unmodified model on these.

A plan that chooses there changes the vision graph alone, so each method's is exported by itself and runs with
the decoder of the family's identity artifact.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vtcompress
from compressor.compressed import compress
from compressor.planner import make_plan
from export.backends.onnxruntime import OnnxSession
from export.backends.openvino import OpenVinoSession
from export.backends.torch_model import TorchSession
from export.graphs.spec import decoder_graphs, vision_graph
from export.runtime.runtime import Runtime
from export.session.arrays import Array
from export.session.session import Session
from export.writer.weights import SharedWeights
from export.writer.write import export_vision, save_graph
from tests import test_family_internvl, test_family_llava, test_family_smolvlm
from tests.chosen import Rule, Whole, at, gprune, means
from tests.conftest import made_once, shared
from tests.family_cases import BACKENDS, NEW_TOKENS, STEPS, TOLERANCE, Made, ask
from tests.family_matrix import TORCH
from tests.runtimes import Spy

FAMILIES = {
    name: file.family
    for name, file in {
        "llava": test_family_llava.TestLlava,
        "internvl": test_family_internvl.TestInternVl,
        "smolvlm": test_family_smolvlm.TestSmolVlm,
    }.items()
}
NAMES = ("one picture", "two apart", "text alone", "a second turn with a new picture")
SESSIONS = {"onnxruntime": OnnxSession, "openvino": OpenVinoSession}

# Of the 16 places of LLaVA's tile and the 9 of the others', as numpy's generator of seed 3 orders them.
RANDOM = {16: [1, 2, 9, 10, 11, 12, 14, 15], 9: [0, 1, 2, 7]}
# Blocks of 3 x 3 of LLaVA's 4 x 4 tokens: of 1, 1 and 2 rows; and of 2 x 2 of 3 x 3: of 1 and 2.
POOLED = {
    16: ([[0], [1], [2, 3], [4], [5], [6, 7], [8, 12], [9, 13], [10, 11, 14, 15]],
         [0, 1, 2, 4, 5, 6, 8, 9, 10]),
    9: ([[0], [1, 2], [3, 6], [4, 5, 7, 8]], [0, 1, 3, 4]),
}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "gprune": {"keep": 0.5},
    "random": {"keep": 0.5, "seed": 3},
    "pool": {"keep": 0.5},
}


def rule_of(method: str, rows: int) -> Rule:
    """Return a method's rule, written anew, on tiles of so many rows."""
    return {"gprune": gprune(0.5), "random": at(RANDOM[rows]), "pool": means(*POOLED[rows])}[method]


@dataclass
class Looking(Spy):
    """A decoder and token embedding beside the vision side of another session.

    Attributes:
        looks: that session.
        seen: visual_index of every decoder call.
    """

    looks: Session = field(kw_only=True)
    seen: list[Array] = field(default_factory=list)

    @property
    def rows_kept(self) -> int | None:
        return self.looks.rows_kept

    def vision(self, *given: Any) -> Any:
        return self.looks.vision(*given)

    def decode(self, rows: Any, past: Any) -> Any:
        self.seen.append(rows.visual_index)
        return super().decode(rows, past)


class Chosen:
    """A tiny family with a method in front of its decoder."""

    def __init__(self, made: Made, method: str) -> None:
        self.made, self.method = made, method
        entry = {method: METHODS[method]}
        recipe = vtcompress.load_recipe("identity").override({"compress": [entry]})
        facts, digest = made.loaded.facts, made.loaded.digest
        self.plan = make_plan(facts, digest, recipe.methods)
        self.whole = Whole(made, rule_of(method, facts.tile_rows))

    def runtime(self, backend: str) -> tuple[Runtime, Looking]:
        """Return what runs it."""
        small = compress(self.made.loaded, self.plan)
        runtime, spy = self.made.runtime("identity", backend)
        looks: Session = TorchSession(small)
        if backend != TORCH:
            folder, spec = self.graph(), vision_graph(self.plan.model, "float32", self.plan.front)
            decoder = decoder_graphs(self.plan, "float32", "last")
            identity = decoder_graphs(self.made.plan("identity"), "float32", "last")
            assert decoder == identity  # so that the artifact's is the plan's
            looks = SESSIONS[backend](folder, (spec, *decoder), threads=1)
        looking = Looking(spy.inner, looks=looks)
        parts = (runtime.facts, runtime.prompter, runtime.images, runtime.settings)
        return Runtime(looking, *parts), looking

    def graph(self) -> Path:
        """Return a folder of the vision graph."""
        spec = vision_graph(self.plan.model, "float32", self.plan.front)

        def write(half: Path) -> None:
            with SharedWeights(half) as weights:
                model = export_vision(compress(self.made.loaded, self.plan), spec)
                save_graph(model, half / spec.file, weights)

        return made_once(self.made.place / f"front {self.method}", write)


@pytest.fixture(scope="module")
def chosen(pytestconfig: pytest.Config) -> Any:
    made = {
        name: Made(family, shared(pytestconfig) / "families") for name, family in FAMILIES.items()
    }
    found: dict[tuple[str, str], Chosen] = {}

    def get(family: str, method: str) -> Chosen:
        key = family, method
        if key not in found:
            found[key] = Chosen(made[family], method)
        return found[key]

    return get


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_choice_is_the_unmodified_model_on_the_rows_that_stay(
    family: str, method: str, chosen: Any
) -> None:
    one = chosen(family, method)
    wanted = {name: one.whole.answer(name) for name in NAMES}
    for backend in BACKENDS:
        if backend == "openvino":
            pytest.importorskip("openvino", reason="the extra openvino is not installed")
        runtime, spy = one.runtime(backend)
        for name in NAMES:
            tokens, logits = ask(one.made, runtime, spy, name)
            difference = np.abs(logits[:STEPS] - wanted[name][1][:STEPS]).max()
            assert difference <= TOLERANCE, f"{backend}, {name}: {difference}"
            assert tokens == wanted[name][0], f"{backend}, {name}"
            assert len(tokens) == NEW_TOKENS
