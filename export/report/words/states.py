"""Says what visual tokens do in each layer of a plan: the words of its picture, with what they mean."""

from collections.abc import Callable

from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan
from export.report.words.methods import place_in_words, state

GATE = (
    "gate",
    "looks at the text tokens and decides for each prompt whether visual tokens leave here; boxes behind it "
    "are filled by the share of calibration prompts that still have them",
)
"""The word for a place where visual tokens may leave, and what it means."""


CUTS: dict[tuple[str, str], Callable[[LayerPlan], bool]] = {
    (
        "part of K V and attention",
        "visual tokens take part in that share of the heads; in the others text tokens are alone, and the "
        "hollow rest of the KV cache's bar is what these still hold, text alone",
    ): lambda x: x.split,
    ("none", "visual tokens take part in no head of the layer, but in its MLP"): (
        lambda x: x.in_no_head and not x.frozen
    ),
    # Masked layers compute attention in full, whatever window they have.
    (
        "3x3 or so on attention",
        "a visual token reads that square of its neighbours instead of all visual tokens before it",
    ): lambda x: x.window is not None and not x.masked,
    ("part of MLP", "visual tokens use that share of its neurons"): lambda x: x.neurons is not None,
    ("masked", "some heads do not read visual tokens, and compute them all the same"): (
        lambda x: x.masked and not x.off
    ),
    ("off", "no head reads visual tokens, and they are computed all the same"): lambda x: x.off,
}
"""What is drawn where visual tokens do a part of a layer, and what it means."""


def states(plan: Plan) -> list[tuple[str, str]]:
    """Return the words that a plan's picture uses, with what they mean."""
    found = [state_of(layer, plan) for layer in sorted(plan.layers, key=place_in_words)]
    found += [words for words, drawn in CUTS.items() if any(map(drawn, plan.layers))]
    return [*dict.fromkeys(found), *([GATE] if plan.gates else [])]


def state_of(layer: LayerPlan, plan: Plan) -> tuple[str, str]:
    """Return the word for what visual tokens do in a layer of a plan, and what it means there."""
    word, meaning = state(layer)
    if not (layer.reason or layer.without or layer.run) and any(
        other.cuts for other in plan.layers
    ):
        meaning = "attention and MLP run on visual tokens, in full or in part"
    return word, meaning
