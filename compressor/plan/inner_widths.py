"""Inner widths of a decoder's matrices: over how many products each of their results is a sum."""

from collections.abc import Iterator

from compressor.facts import DecoderDims
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan


def inner_widths(dims: DecoderDims, layer: LayerPlan) -> Iterator[tuple[str, int]]:
    """Yield words for matrices of a layer, and their inner width; empty parts are left out.

    Args:
        dims: of the decoder.
        layer: heads in two groups and an MLP in two parts have matrices for each.
    """
    yield "queries, keys, values and the MLP's first matrices", dims.hidden
    width = dims.heads // dims.kv_heads * dims.head_dim
    seen = len(layer.groups) if layer.groups is not None and layer.split else dims.kv_heads
    used = dims.intermediate if layer.neurons is None else len(layer.neurons)
    parts = (
        ("the attention's output", seen * width),
        ("the output of heads without visual tokens", (dims.kv_heads - seen) * width),
        ("the MLP's last matrix", used),
        ("the MLP's last matrix for text alone", dims.intermediate - used),
    )
    yield from ((words, count) for words, count in parts if count)


def undivided(plan: Plan, block: int) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Yield words, inner width and layers of the matrices of a plan that blocks do not divide.

    Args:
        plan: of the decoder.
        block: how many weights of a column belong together.
    """
    found: dict[tuple[str, int], list[int]] = {}
    for layer in plan.layers:
        for words, width in inner_widths(plan.model.decoder, layer):
            if width % block:
                found.setdefault((words, width), []).append(layer.index)
    for (words, width), layers in found.items():
        yield words, width, tuple(layers)
