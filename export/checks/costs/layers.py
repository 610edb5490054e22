"""Decoders of a few layers of a model's dimensions, on random weights: what a microbenchmark runs.

Random weights take as long as trained ones: no operator looks at what it multiplies.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.facts import ModelFacts
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan, Workload
from compressor.progress import SILENT, Progress
from compressor.schema.sections import ExportSection
from export.graphs.spec import GraphSpec, decoder_graph

if TYPE_CHECKING:
    from torch import Tensor

# A deeper decoder tells what a layer takes from what a call takes beside its layers.
DEEP = 3
REASON = "measured"
# Numbers that are drawn; larger matrices repeat them.
DRAWN = 1 << 16


def measured_plans(facts: ModelFacts, text: int) -> dict[str, Plan]:
    """Return the plans whose decoders are timed, by what their layers do, in words.

    Heads are left out of a model with one key/value head, windows of one without a grid of visual tokens.

    Args:
        facts: of the model.
        text: T.
    """
    dims, grid = facts.decoder, facts.token_grid
    update = LayerPlan(index=0)
    frozen = LayerPlan(index=0, visual="frozen", reason=REASON)
    words = {
        "all rows": [update],
        f"all rows, {DEEP} layers": [update] * DEEP,
        "frozen": [frozen] * 2,
        "exit": [update, *[LayerPlan(index=0, visual="exited", reason=REASON)] * 2],
        "without attention": [LayerPlan(index=0, without="attention")] * 2,
        "without mlp": [LayerPlan(index=0, without="mlp")] * 2,
    }
    for part in (2, 4):
        neurons = tuple(range(max(1, dims.intermediate // part)))
        words[f"1/{part} of the neurons"] = [LayerPlan(index=0, neurons=neurons)] * 2
    if dims.kv_heads > 1:
        groups = tuple(range(dims.kv_heads // 2))
        words["half the heads"] = [LayerPlan(index=0, groups=groups)] * 2
    if grid is not None and min(grid) >= 3 and facts.largest_rows % facts.grid_cells == 0:
        side = 5 if min(grid) >= 5 else 3
        words[f"window {side}"] = [LayerPlan(index=0, window=side)] * 2
    return {name: _plan(facts, text, *layers) for name, layers in words.items()}


def _plan(facts: ModelFacts, text: int, *layers: LayerPlan) -> Plan:
    # Positions and rows of further layers of the tower are inputs whose numbers cost nothing.
    plain = {"layers": len(layers), "deepstack": 0, "rope_axes": None}
    model = facts.model_copy(update={"decoder": facts.decoder.model_copy(update=plain)})
    return Plan(
        model=model,
        model_digest="",
        layers=tuple(
            layer.model_copy(update={"index": index}) for index, layer in enumerate(layers)
        ),
        workload=Workload(text=text),
    )


def write_layers(
    folder: Path,
    plans: Mapping[str, Plan],
    settings: ExportSection,
    progress: Progress = SILENT,
) -> dict[str, GraphSpec]:
    """Write plans' decoders into a folder with one file of random weights; return their declarations.

    Args:
        folder: takes the graphs.
        plans: by name.
        settings: the recipe's: dtype, and how matrices are stored.
        progress: shows the graphs.
    """
    import torch

    from compressor.decoder import decoder_from
    from export.writer.weights import SharedWeights
    from export.writer.write import export_decoder, save_graph

    deepest = max(plans.values(), key=lambda plan: len(plan.layers))
    tensors = random_tensors(deepest.naive())
    found = {}
    with SharedWeights(folder) as weights:
        named = [(name, plan, f"decoder_{i}") for i, (name, plan) in enumerate(plans.items())]
        for name, plan, graph in progress.track(named, "exporting layers", len(named)):
            spec = decoder_graph(plan, settings.dtype, "last", name=graph)
            decoder = decoder_from(plan, tensors).to(getattr(torch, settings.dtype))
            save_graph(
                export_decoder(decoder, spec, settings=settings), folder / spec.file, weights
            )
            found[name] = spec
    return found


def random_tensors(plan: Plan) -> "dict[str, Tensor]":
    """Return weights for every layer of a plan that cuts nothing, named and laid out as the original's."""
    import torch

    from compressor.decoder import Decoder
    from compressor.decoder.weights import stored_weights

    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(DRAWN, generator=generator)
    with torch.device("meta"):
        decoder = Decoder(plan)
    shapes = {name: p.shape for name, p in decoder.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for name, weight in stored_weights(decoder).items():
        shape = shapes[name]
        if len(shape) == 1:
            tensor = torch.ones(shape)
        else:
            # Rolled, so that no two are equal, which would be stored once.
            count = math.prod(shape)
            numbers = drawn.roll(len(tensors)).repeat(-(-count // DRAWN))[:count]
            tensor = numbers.view(shape) / math.sqrt(shape[0])
        tensors[weight.source] = tensor.T if weight.transposed else tensor
    return tensors
