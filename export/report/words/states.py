"""Says what visual tokens do in each layer of a plan: the words of its picture, with what they mean."""

from collections.abc import Callable

from compressor.plan.plan import LayerPlan, Plan, Reason
from export.report.words.cuts import read_by_no_head

STATES: dict[Reason, tuple[str, str]] = {
    "": ("updated", "attention and MLP run on visual tokens, as in the original"),
    "shortv": (
        "frozen",
        "visual tokens pass unchanged; text tokens still read their keys and values",
    ),
    "dead": (
        "dead",
        "visual tokens pass unchanged, and nobody reads the result: this changes nothing but rounding",
    ),
    "vtw": (
        "exited",
        "visual tokens are gone: no work, and no keys and values to read or to keep",
    ),
    "dyvte": (
        "exited",
        "visual tokens are gone, from a layer on that gates chose in calibration: no work, and no keys and "
        "values to read or to keep",
    ),
    "yopo": (
        "exited",
        "visual tokens are gone (YOPO's off_from, semantics removed): no work, and no keys and values to "
        "read or to keep",
    ),
}
"""For every reason of a plan: the word for its state, and what it means."""

IN_NO_HEAD: dict[Reason, tuple[str, str]] = {
    "shortv": (
        "frozen, none",
        "visual tokens pass unchanged and take part in no head: no work, and no keys and values to read or "
        "to keep",
    ),
    "dead": (
        "dead, none",
        "visual tokens take part in no head and pass unchanged, and nobody reads the result: no work, and "
        "no keys and values to read or to keep",
    ),
}
"""The same for frozen layers in which visual tokens take part in no head."""

READ_BY_NO_HEAD: dict[Reason, tuple[str, str]] = {
    "shortv": (
        "frozen, off",
        "visual tokens pass unchanged, and no head reads their values; their keys stay in the softmax's "
        "denominator",
    ),
    "dead": (
        "dead, off",
        "visual tokens pass unchanged, and nobody reads the result, which changes nothing but rounding; no "
        "head reads their values, and their keys stay in the softmax's denominator",
    ),
}
"""The same for frozen layers of the masked semantics in which no head reads visual tokens."""

GATE = (
    "gate",
    "looks at the text tokens and decides for each prompt whether visual tokens leave here; boxes behind it "
    "are filled by the share of calibration prompts that still have them",
)
"""The word for a place where visual tokens may leave, and what it means."""


CUTS: tuple[tuple[Callable[[LayerPlan], bool], tuple[str, str]], ...] = (
    (
        lambda layer: layer.split,
        (
            "part of K V and attention",
            "visual tokens take part in that share of the heads; in the others text tokens are alone, and "
            "the hollow rest of the KV cache's bar is what these still hold, text alone",
        ),
    ),
    (
        lambda layer: layer.in_no_head and not layer.frozen,
        ("none", "visual tokens take part in no head of the layer, but in its MLP"),
    ),
    (
        # Masked layers compute attention in full, whatever window they have.
        lambda layer: layer.window is not None and not layer.masked,
        (
            "3x3 or so on attention",
            "a visual token reads that square of its neighbours instead of all visual tokens before it",
        ),
    ),
    (
        lambda layer: layer.neurons is not None,
        ("part of MLP", "visual tokens use that share of its neurons"),
    ),
    (
        lambda layer: layer.masked and not layer.off,
        ("masked", "some heads do not read visual tokens, and compute them all the same"),
    ),
    (
        lambda layer: layer.off,
        ("off", "no head reads visual tokens, and they are computed all the same"),
    ),
)
"""What is drawn where visual tokens do a part of a layer, and what it means."""


def states(plan: Plan) -> list[tuple[str, str]]:
    """Return the words that a plan's picture uses, with what they mean."""
    found = [
        state_of(layer, plan)
        for reason in STATES
        for layer in plan.layers
        if layer.reason == reason
    ]
    found += [words for drawn, words in CUTS if any(drawn(layer) for layer in plan.layers)]
    return [*dict.fromkeys(found), *([GATE] if plan.gates else [])]


def state_of(layer: LayerPlan, plan: Plan) -> tuple[str, str]:
    """Return the word for what visual tokens do in a layer of a plan, and what it means there."""
    word, meaning = _state(layer)
    if not layer.reason and any(other.cuts for other in plan.layers):
        meaning = "attention and MLP run on visual tokens, in full or in part"
    return word, meaning


def word_of(layer: LayerPlan) -> str:
    """Return the word for what visual tokens do in a layer."""
    return _state(layer)[0]


def _state(layer: LayerPlan) -> tuple[str, str]:
    if layer.frozen and layer.in_no_head:
        return IN_NO_HEAD[layer.reason]
    if layer.frozen and read_by_no_head(layer):
        return READ_BY_NO_HEAD[layer.reason]
    return STATES[layer.reason]
