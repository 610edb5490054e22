"""Cuts in words and shares: what of a layer visual tokens still take part in, and by which semantics.

Source: "Treat Visual Tokens as Text? But Your MLLM Only Needs Fewer Efforts to See" (arXiv 2410.06169).
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from compressor.contract.method import Method
from compressor.facts import DecoderDims
from compressor.methods import CUTTERS, label_of_cuts
from compressor.plan.cost import BYTES
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan
from export.report.words.exits import runs
from export.report.words.front import grown_words, kept_words
from export.report.words.methods import OPERATORS, words_of

T = TypeVar("T")

# With more different numbers of heads a sentence gives their range, and the table the rest.
MOST_COUNTS = 4
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
        methods: of the recipe, which know where a plan does not tell; none if it is not at hand.
    """
    if any(layer.masked for layer in plan.layers):
        return "masked"
    if any(layer.groups is not None or layer.reason in CUTTERS for layer in plan.layers):
        return "removed"
    return next(filter(None, (method.semantics_of_cuts() for method in methods)), None)


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
    if layer.frozen or layer.exited or layer.without == "mlp":
        return 0
    return dims.intermediate if layer.neurons is None else len(layer.neurons)


def _window(layer: LayerPlan) -> str:
    return f"{layer.window} x {layer.window}{', causal' if layer.window_causal else ''}"


def cut_columns(plan: Plan) -> dict[str, list[str]]:
    """Return a column for every kind of cut that a plan makes: one cell a layer, by its heading."""
    dims, layers, found = plan.model.decoder, plan.layers, {}
    kept = [len(kept_heads(layer, dims)) for layer in layers]
    if _cuts_heads(plan):
        found["visual heads"] = [
            "-" if x.exited else f"{heads} of {dims.heads}{', masked' if x.masked else ''}"
            for x, heads in zip(layers, kept, strict=True)
        ]
    if any(layer.window is not None for layer in layers):
        found["window"] = [
            "-" if x.frozen or not heads else "all" if x.window is None else _window(x)
            for x, heads in zip(layers, kept, strict=True)
        ]
    if any(layer.neurons is not None for layer in layers):
        used = [neurons_kept(layer, dims) for layer in layers]
        found["MLP neurons"] = [f"{n} of {dims.intermediate}" if n else "-" for n in used]
    if any(layer.without for layer in layers):
        found["goes without"] = [OPERATORS[x.without] if x.without else "-" for x in layers]
    if plan.changed_by_length():
        rows = zip(layers, plan.rows_of_layers(plan.visual), strict=True)
        found["visual tokens"] = [
            f"{x.running(n):,}{f' of {n:,}' if x.run else ''}" if n else "-" for x, n in rows
        ]
    return found


def _cuts_heads(plan: Plan) -> bool:
    return any(layer.groups is not None or layer.off for layer in plan.layers)


def text_alone_values(plan: Plan) -> tuple[int, ...]:
    """Return for each layer the numbers cached in heads of text alone after the prefill, K and V together."""
    size = 2 * plan.model.decoder.head_dim * plan.workload.text
    groups = {cache.layer: cache.groups for cache in plan.caches() if cache.part == "text_"}
    return tuple(size * groups.get(layer.index, 0) for layer in plan.layers)


def splits(plan: Plan) -> bool:
    """Return whether some heads' caches hold text tokens alone, although visual tokens are in the layer."""
    return any(layer.split for layer in plan.layers)


def text_alone_columns(plan: Plan, dtype: str) -> dict[str, list[str]]:
    """Return the column of bytes in caches of heads without visual tokens; none where all have some."""
    if not splits(plan):
        return {}
    values = [f"{count * BYTES[dtype]:,}" for count in text_alone_values(plan)]
    return {"of it heads of text alone": values}


def cuts_words(plan: Plan, methods: Sequence[Method] = ()) -> str:
    """Return the cuts in a few words for a table cell, `none` if there are none."""
    dims = plan.model.decoder
    parts = []
    inside = [layer for layer in plan.layers if not layer.exited]
    if _cuts_heads(plan):
        kept = sum(len(kept_heads(layer, dims)) for layer in inside)
        parts.append(f"{kept} of {dims.heads * len(inside)} visual heads")
    parts += dict.fromkeys(f"window {_window(layer)}" for layer in inside if layer.window)
    used = {len(layer.neurons) for layer in inside if layer.neurons is not None}
    parts += [f"{count} of {dims.intermediate} MLP neurons" for count in sorted(used)]
    if (found := semantics(plan, methods)) is not None:
        parts.append(found)
    return "; ".join(parts) or "none"


def choices_words(plan: Plan) -> str:
    """Return which visual tokens go on and what they go without, in a few words; `none` if nothing is so."""
    parts = [] if plan.front is None else [f"{kept_words(plan.front)} enter"]
    parts += [f"{kept_words(kept)} from layer {i} on" for i, kept in plan.keeps().items()]
    parts += [f"{grown_words(grown)} at layer {i}" for i, grown in plan.grows().items()]
    parts += [f"{words} run in {layers.lower()}" for words, layers in _some_run(plan)]
    for operator, word in OPERATORS.items():
        if count := sum(layer.without == operator for layer in plan.layers):
            parts.append(f"no {word} in {count} layer{'s' if count > 1 else ''}")
    return "; ".join(parts) or "none"


def cut_sentences(plan: Plan, methods: Sequence[Method] = ()) -> tuple[str, ...]:
    """Return what visual tokens do less of, one sentence a kind of cut."""
    dims, by, found = plan.model.decoder, label_of_cuts(methods), []
    if splits(plan):
        found.append(
            f"Visual tokens take part in {_counts(plan, lambda x: x.split)} (method {by}, heads). In the "
            "other heads they have no queries, keys and values, and text tokens read text alone."
        )
    if counts := _counts(plan, lambda x: x.masked and not x.off):
        found.append(
            f"Visual tokens are read in {counts} (method {by}, heads), and computed in all."
        )
    found += [
        f"{layers}: no head reads visual tokens (method {by}, off_from), and they are computed all the same."
        for _, layers in _grouped(plan, lambda x: x.off or None)
    ]
    # Where no head reads visual tokens, a visual token reads no neighbours either.
    found += [
        f"{layers}: a visual token reads only its neighbours in the picture (window {window}) among visual "
        f"tokens, and the text before it (method {by})."
        for window, layers in _grouped(
            plan, lambda x: _window(x) if x.window and not x.off else None
        )
    ]
    found += [
        f"{layers}: visual tokens use {used:,} of {dims.intermediate:,} neurons of the MLP (method {by})."
        for used, layers in _grouped(plan, lambda x: None if x.neurons is None else len(x.neurons))
    ]
    found += [
        f"{layers}: visual tokens go without the {OPERATORS[operator]}; text tokens read them there."
        for operator, layers in _grouped(plan, lambda x: x.without)
    ]
    found += [
        f"From layer {i} on {kept_words(kept)} visual tokens are there, chosen for each prompt (method "
        f"{words_of(kept.by).label}); the others have left, and later layers keep nothing of them."
        for i, kept in plan.keeps().items()
    ]
    found += [
        f"At the input of layer {i} the {grown.of:,} visual tokens of a tile become {grown.count:,} (method "
        f"{words_of(grown.by).label}): each new one lies between two of them, and positions count all of "
        "them from there on."
        for i, grown in plan.grows().items()
    ]
    for words, layers in _some_run(plan):
        first = next(run for run in plan.runs().values() if kept_words(run) == words)
        rule = words_of(first.by)
        among = "of each tile" if first.within == "tile" else "of a prompt's pictures together"
        how = f" {rule.run_how}" if rule.run_how else ""
        found.append(
            f"{layers}: {words} visual tokens run, {among}, as a router chooses (method {rule.label}); the "
            f"others pass by unchanged, and nothing of them is kept or read there.{how}"
        )
    return tuple(found)


def _some_run(plan: Plan) -> list[tuple[str, str]]:
    """Return how many visual tokens run layers that not all run, with these layers in words."""
    return _grouped(plan, lambda x: None if x.run is None else kept_words(x.run))


def _counts(plan: Plan, asks: Callable[[LayerPlan], bool]) -> str:
    """Return in how many heads of these layers visual tokens are, e.g. `2 of 4 heads of layers 0, 1`."""
    dims = plan.model.decoder
    groups = _grouped(plan, lambda x: len(kept_heads(x, dims)) if asks(x) else None)
    if len(groups) > MOST_COUNTS:
        kept, layers = sorted(groups), runs(x.index for x in plan.layers if asks(x))
        return f"{kept[0][0]} to {kept[-1][0]} of {dims.heads} heads of {layers}"
    return "; ".join(f"{n or 'none'} of {dims.heads} heads of {x.lower()}" for n, x in groups)


def _grouped(plan: Plan, value: Callable[[LayerPlan], T | None]) -> list[tuple[T, str]]:
    """Return every value that layers have, with these layers in words, by first layer."""
    groups: dict[T, list[int]] = {}
    for layer in plan.layers:
        if (key := value(layer)) is not None:
            groups.setdefault(key, []).append(layer.index)
    return [(key, runs(indices).capitalize()) for key, indices in groups.items()]
