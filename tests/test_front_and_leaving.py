"""A choice in front of the decoder with one at a layer, against the unmodified model on the rows that stay.

The rules in front are written anew, and what leaves at a layer is chosen by the model's own attention: see
`tests.chosen` and `tests.hooked`. Each turn of a chat chooses among its own pictures.
"""

from itertools import product

import numpy as np
import pytest

from compressor.compressed import CompressedModel
from export.backends.torch_model import TorchSession
from export.runtime.runtime import Runtime
from tests.chosen import Rule, Whole, at, divprune, gprune
from tests.conftest import shared
from tests.family_cases import BACKENDS, NEW_TOKENS, STEPS, TOLERANCE, Entries, Made, ask
from tests.runtimes import Spy, spied
from tests.test_family_internvl import TestInternVl as InternVl
from tests.test_family_llava import TestLlava as Llava

FASTV = {"fastv": {"layer": 2, "keep": 0.6}}
BOTH: dict[str, tuple[Entries, Rule]] = {
    "llava": ([FASTV, {"gprune": {"keep": 0.5}}], gprune(0.5, 16)),
    "internvl": ([{"divprune": {"keep": 0.77}}, FASTV], divprune(0.77)),
    "fastv alone": ([FASTV], at([*range(16)])),
}
FAMILIES = {"llava": Llava, "internvl": InternVl, "fastv alone": Llava}
CASES = [*product(("llava", "internvl"), BACKENDS), ("fastv alone", "torch")]
NAMES = (
    "one picture",
    "two apart",
    "two adjacent",
    "text alone",
    "a second turn with a new picture",
)


class MadeWithBoth(Made):
    """The same folder and models, with choices in front of the decoder and inside."""

    def entries(self, cut: str) -> Entries:
        return BOTH[cut][0] if cut in BOTH else super().entries(cut)

    def in_torch(self, model: CompressedModel) -> tuple[Runtime, Spy]:
        loaded = Runtime.load(self.artifact(self.family.name))
        parts = (loaded.facts, loaded.prompter, loaded.images, loaded.settings)
        return spied(Runtime(TorchSession(model), *parts))


@pytest.mark.filterwarnings("ignore::compressor.errors.ArtifactWarning")
@pytest.mark.parametrize(("cut", "backend"), CASES)
def test_both_choices_are_the_unmodified_model_on_what_they_leave(
    cut: str, backend: str, pytestconfig: pytest.Config
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="the extra openvino is not installed")
    made = MadeWithBoth(FAMILIES[cut].family, shared(pytestconfig) / "families")
    whole = Whole(made, BOTH[cut][1], made.plan(cut))
    runtime, spy = made.runtime(cut, backend)
    for name in NAMES:
        tokens, logits = ask(made, runtime, spy, name)
        wanted, wanted_logits = whole.answer(name)
        difference = np.abs(logits[:STEPS] - wanted_logits[:STEPS]).max()
        assert difference <= TOLERANCE, f"{name}: {difference}"
        assert tokens == wanted, name
        assert len(tokens) == NEW_TOKENS
