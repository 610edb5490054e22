"""Cuts in words and shares: what of a layer visual tokens still take part in, and by which semantics.

Source: "Treat Visual Tokens as Text? But Your MLLM Only Needs Fewer Efforts to See" (arXiv 2410.06169).
"""

from collections.abc import Callable, Sequence

from compressor.contract.method import Method
from compressor.facts import DecoderDims
from compressor.methods import CUTTERS, label_of_cuts
from compressor.plan.cost import BYTES
from compressor.plan.plan import LayerPlan, Plan
from export.report.words.exits import runs

CUT_COLUMNS = ("visual heads", "window", "MLP neurons")
KV_TEXT_COLUMN = "of it heads of text alone"
# With more different numbers of heads a sentence gives their range, and the table the rest.
MOST_COUNTS = 4
NOTHING, EVERYTHING = "-", "all"

SEMANTICS = {
    "removed": (
        "Semantics: removed. What is cut is gone: it is neither computed nor kept, and attention is "
        "normalised over what is left."
    ),
    "masked": (
        "Semantics: masked, the numbers of {by}'s released code, for checkpoints that were trained under it. "
        "Pruned keys of visual tokens stay in the softmax's denominator, and visual tokens run on to feed "
        "it. This is a compatibility mode: it saves no more than the predicted figures count."
    ),
}
"""Both ways to cut heads and to switch visual tokens off, in words."""

MASKED_IN_VAIN = (
    "Semantics: masked, which changes nothing here: no heads are cut and no layer is switched off. A window "
    "and MLP neurons are cut alike in both semantics."
)
"""What to say if a recipe asks for `masked` and no layer of its plan is."""


def semantics(plan: Plan, methods: Sequence[Method] = ()) -> str | None:
    """Return `removed` or `masked`; None without cuts of heads, or if a plan alone does not tell.

    Args:
        plan: whose pruned heads and exits tell; a window and neurons are cut alike in both.
        methods: of the recipe, which knows; none if it is not at hand.
    """
    for method in methods:
        if asked := method.semantics_of_cuts():
            return asked
    if any(layer.masked for layer in plan.layers):
        return "masked"
    told = any(layer.groups is not None or layer.reason in CUTTERS for layer in plan.layers)
    return "removed" if told else None


def semantics_words(plan: Plan, methods: Sequence[Method] = ()) -> tuple[str, ...]:
    """Return what the semantics are and mean, as one sentence or none."""
    found = semantics(plan, methods)
    if found == "masked" and not any(layer.masked for layer in plan.layers):
        return (MASKED_IN_VAIN,)
    return () if found is None else (SEMANTICS[found].format(by=label_of_cuts(methods)),)


def kept_heads(layer: LayerPlan, dims: DecoderDims) -> tuple[int, ...]:
    """Return the heads of a layer in which anything of visual tokens is read, ascending."""
    group = dims.heads // dims.kv_heads
    groups = range(dims.kv_heads) if layer.groups is None else layer.groups
    if layer.exited or layer.off:
        groups = ()
    return tuple(g * group + h for g in groups for h in range(group))


def neurons_kept(layer: LayerPlan, dims: DecoderDims) -> int:
    """Return how many neurons of the MLP visual rows use in a layer."""
    if layer.frozen or layer.exited:
        return 0
    return dims.intermediate if layer.neurons is None else len(layer.neurons)


def _heads(layer: LayerPlan, dims: DecoderDims) -> str:
    if layer.exited:
        return NOTHING
    masked = ", masked" if layer.masked else ""
    return f"{len(kept_heads(layer, dims))} of {dims.heads}{masked}"


def _window(layer: LayerPlan, dims: DecoderDims) -> str:
    if layer.frozen or not kept_heads(layer, dims):
        return NOTHING
    return EVERYTHING if layer.window is None else window_words(layer)


def window_words(layer: LayerPlan) -> str:
    """Return a layer's window, e.g. `3 x 3` or `3 x 3, causal`."""
    return f"{layer.window} x {layer.window}{', causal' if layer.window_causal else ''}"


def _neurons(layer: LayerPlan, dims: DecoderDims) -> str:
    kept = neurons_kept(layer, dims)
    return f"{kept} of {dims.intermediate}" if kept else NOTHING


_CELLS: tuple[Callable[[LayerPlan, DecoderDims], str], ...] = (_heads, _window, _neurons)


def _cut_at_all(plan: Plan) -> tuple[bool, ...]:
    """Return which of `CUT_COLUMNS` a plan cuts in any layer."""
    return (
        any(layer.groups is not None or layer.off for layer in plan.layers),
        any(layer.window is not None for layer in plan.layers),
        any(layer.neurons is not None for layer in plan.layers),
    )


def cut_columns(plan: Plan) -> dict[str, list[str]]:
    """Return a column for every kind of cut that a plan makes: one cell a layer, by its heading."""
    dims = plan.model.decoder
    kinds = zip(CUT_COLUMNS, _CELLS, _cut_at_all(plan), strict=True)
    return {name: [cell(x, dims) for x in plan.layers] for name, cell, cut in kinds if cut}


def text_alone_values(plan: Plan) -> tuple[int, ...]:
    """Return for each layer the numbers cached in heads of text alone after the prefill, K and V together."""
    dims, text = plan.model.decoder, plan.workload.text
    groups = [0] * len(plan.layers)
    for cache in plan.caches():
        if cache.part == "text_":
            groups[cache.layer] = cache.groups
    return tuple(2 * dims.head_dim * count * text for count in groups)


def splits(plan: Plan) -> bool:
    """Return whether some heads' caches hold text tokens alone, although visual tokens are in the layer."""
    return any(layer.split for layer in plan.layers)


def text_alone_columns(plan: Plan, dtype: str) -> dict[str, list[str]]:
    """Return the column of bytes in caches of heads without visual tokens; none where all have some."""
    if not splits(plan):
        return {}
    return {KV_TEXT_COLUMN: [f"{values * BYTES[dtype]:,}" for values in text_alone_values(plan)]}


def cuts_words(plan: Plan, methods: Sequence[Method] = ()) -> str:
    """Return the cuts in a few words for a table cell, `none` if there are none."""
    dims = plan.model.decoder
    parts = []
    inside = [layer for layer in plan.layers if not layer.exited]
    if _cut_at_all(plan)[0]:
        kept = sum(len(kept_heads(layer, dims)) for layer in inside)
        parts.append(f"{kept} of {dims.heads * len(inside)} visual heads")
    windows = dict.fromkeys(window_words(layer) for layer in inside if layer.window)
    parts += [f"window {words}" for words in windows]
    used = {len(layer.neurons) for layer in inside if layer.neurons is not None}
    parts += [f"{count} of {dims.intermediate} MLP neurons" for count in sorted(used)]
    if (found := semantics(plan, methods)) is not None:
        parts.append(found)
    return "; ".join(parts) or "none"


def cut_sentences(plan: Plan, methods: Sequence[Method] = ()) -> tuple[str, ...]:
    """Return what visual tokens do less of, one sentence a kind of cut."""
    dims, by = plan.model.decoder, label_of_cuts(methods)
    found = []
    if any(layer.split for layer in plan.layers):
        counts = _counts(plan, lambda layer: layer.split)
        found.append(
            f"Visual tokens take part in {counts} (method {by}, heads). In the other heads they "
            "have no queries, keys and values, and text tokens read text alone."
        )
    if any(_only_masked(layer) for layer in plan.layers):
        found.append(
            f"Visual tokens are read in {_counts(plan, _only_masked)} (method {by}, heads), and computed in "
            "all."
        )
    for _, layers in _grouped(plan, lambda x: x.off or None, lambda _: 0):
        found.append(
            f"{layers}: no head reads visual tokens (method {by}, off_from), and they are computed all the "
            "same."
        )
    # Where no head reads visual tokens, a visual token reads no neighbours either.
    for words, layers in _grouped(plan, lambda x: None if x.off else x.window, window_words):
        found.append(
            f"{layers}: a visual token reads only its neighbours in the picture (window {words}) among "
            f"visual tokens, and the text before it (method {by})."
        )
    for count, layers in _grouped(plan, lambda x: x.neurons, lambda x: len(x.neurons or ())):
        found.append(
            f"{layers}: visual tokens use {count:,} of {dims.intermediate:,} neurons of the MLP (method "
            f"{by})."
        )
    return tuple(found)


def _only_masked(layer: LayerPlan) -> bool:
    return layer.masked and not layer.off


def _counts(plan: Plan, asks: Callable[[LayerPlan], bool]) -> str:
    """Return in how many heads of these layers visual tokens are, e.g. `2 of 4 heads of layers 0, 1`."""
    dims = plan.model.decoder
    groups = _grouped(plan, lambda x: asks(x) or None, lambda x: len(kept_heads(x, dims)))
    if len(groups) > MOST_COUNTS:
        kept = sorted(len(kept_heads(layer, dims)) for layer in plan.layers if asks(layer))
        layers = runs(layer.index for layer in plan.layers if asks(layer))
        return f"{kept[0]} to {kept[-1]} of {dims.heads} heads of {layers}"
    return "; ".join(
        f"{heads or 'none'} of {dims.heads} heads of {layers.lower()}" for heads, layers in groups
    )


def _grouped(
    plan: Plan, asks: Callable[[LayerPlan], object], value: Callable[[LayerPlan], object]
) -> list[tuple[object, str]]:
    """Return every value of layers that are asked for, with these layers in words, by first layer."""
    groups: dict[object, list[int]] = {}
    for layer in plan.layers:
        if asks(layer) is not None:
            groups.setdefault(value(layer), []).append(layer.index)
    return [(key, runs(indices).capitalize()) for key, indices in groups.items()]
