"""Layers that some visual rows run alone: what they exclude, and the names of their caches' lengths."""

from collections.abc import Sequence

from compressor.facts import ModelFacts
from compressor.plan.kept import Running, why_no_tiles
from compressor.plan.layer import LayerPlan

RUNS_PAST = "past_runs_"
"""Start of the names of lengths in layers that some visual rows run alone, whatever is asked of them."""


def runs_of(layers: Sequence[LayerPlan]) -> dict[int, Running]:
    """Return which visual rows run layers that not all run, by layer."""
    return {layer.index: layer.run for layer in layers if layer.run is not None}


def why_not(layers: Sequence[LayerPlan], model: ModelFacts, tile: int) -> str | None:
    """Return why some visual rows cannot run layers alone beside what the others do; None: they can.

    Args:
        layers: of the plan.
        model: of the plan.
        tile: rows of each tile that enter the decoder.
    """
    keeps = [layer.index for layer in layers if layer.keep is not None]
    for index, run in runs_of(layers).items():
        where = f"layer {index}: {run.count} of {run.of} visual rows run it"
        if any(layer.tells_rows for layer in layers):
            return f"{where}, which excludes windows and the masked semantics"
        if index + 1 in keeps:
            return f"{where}, so what it reads of them all cannot decide which go on at layer {index + 1}"
        if run.within == "call":
            if any(layer <= index for layer in keeps):
                # A share of a share of V: torch.export (2.13.0) cannot bound it for all of them.
                return f"{where}, and some have left by then: such a graph cannot be exported"
            continue
        if (reason := why_no_tiles(model)) is not None:
            return f"layer {index}: {reason}"
        if run.of != tile or any(layer <= index for layer in keeps):
            return f"{where} of each tile, and tiles have another number of rows there"
    return None


def run_lengths(layers: Sequence[LayerPlan], segments: Sequence[range]) -> dict[int, str]:
    """Return the names of the lengths of such layers' caches, by layer: one for each number of rows.

    Args:
        layers: of the plan.
        segments: runs of layers that the same rows enter.
    """
    first: dict[tuple[int, int, int], int] = {}
    runs, found = runs_of(layers), {}
    for segment in segments:
        for index in (i for i in segment if i in runs):
            key = (segment.start, runs[index].count, runs[index].of)
            found[index] = f"{RUNS_PAST}{first.setdefault(key, index)}"
    return found
