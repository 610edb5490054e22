"""Exports torch modules to ONNX graphs of standard operators, with the names and axes of their spec."""

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from compressor.compressed import CompressedModel
from compressor.decoder import Decoder, KeyValue, Stage
from compressor.decoder.quantization import in_whole_numbers
from compressor.decoder.weights import StoredWeight, source_of, stored_weights
from compressor.errors import VtcompressError
from compressor.schema.sections import ExportSection
from export.graphs.operators import ONNX_OPERATORS, STANDARD_DOMAINS
from export.graphs.spec import DEEPSTACK, POSITIONS, ROWS, SIDES, GraphSpec, TensorSpec, caches_of
from export.writer.decompose import node_by_node
from export.writer.passes import order
from export.writer.passes.graph_pass import note_numbers, note_weights
from export.writer.shortcuts import shortcuts
from export.writer.weights import DTYPE_NAMES, SharedWeights

OPSET = 23
FIXED_OPSET = 24  # has TensorScatter
# Sizes of the sample call. All differ from each other and from 0 and 1, which torch.export would fix.
SAMPLE_SIZES = {"batch": 2, "images": 2, "rows": 6, "visual": 5, "text": 7, "past": 3, "room": 9}
SAMPLE_CELLS = {"height": 5, "width": 7}
LATER_PAST = 11  # of layers behind an exit or a gate, and counting on
DEFAULTS = ExportSection()
ONE_EXPORT = threading.Lock()
"""Held while torch's exporter runs: it is for one thread at a time, and so is what is replaced in it."""
LEAST_SIZES = {"batch": 1, "images": 1, "rows": 1, "visual": 0, "text": 1, "past": 0, "room": 1}


class Embedding(nn.Module):
    """Token ids [B, T] to embeddings [B, T, D]."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(table, requires_grad=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Map token ids [B, T] to embeddings [B, T, D]."""
        return nn.functional.embedding(input_ids, self.weight)


def opset_of(spec: GraphSpec) -> int:
    """Return the version of the standard operators that a graph is made of: the later one only if it must."""
    return FIXED_OPSET if spec.fixed else OPSET


def export_vision(
    model: CompressedModel, spec: GraphSpec, settings: ExportSection = DEFAULTS
) -> ir.Model:
    """Export the vision encoder; `settings` as in `export_decoder`."""
    return _export(model.vision, _samples(spec), spec, settings, {})


def export_embed(
    model: CompressedModel, spec: GraphSpec, settings: ExportSection = DEFAULTS
) -> ir.Model:
    """Export the token embedding; `settings` as in `export_decoder`."""
    table = model.embedding
    dtype = str(table.dtype).removeprefix("torch.")
    weights = {"weight": (StoredWeight(*source_of("tied_head"), None, dtype),)}
    return _export(Embedding(table).eval(), _samples(spec), spec, settings, weights)


def export_decoder(
    decoder: Decoder | Stage,
    spec: GraphSpec,
    joined: Mapping[str, tuple[StoredWeight, ...]] | None = None,
    settings: ExportSection = DEFAULTS,
) -> ir.Model:
    """Export a decoder or a stage of it, prefill and decode in one graph.

    Args:
        decoder: what to export.
        spec: its declaration.
        joined: the stored weights that the decoder's parameters are made of, where another graph of the
            artifact reads them in parts; None: its own, in whole numbers where the settings say so.
        settings: the recipe's; graph passes read them.
    """
    own = {} if joined else stored_weights(decoder)
    if settings.block_size is not None:
        own = in_whole_numbers(own, settings.weights, settings.block_size)
    weights = joined or {name: (weight,) for name, weight in own.items()}
    return _export(decoder, _arguments(_samples(spec), spec), spec, settings, weights)


def save_graph(model: ir.Model, path: Path, weights: SharedWeights) -> None:
    """Write a graph whose large tensors lie in the shared weight file."""
    weights.take(model)
    ir.save(model, path)


def _samples(spec: GraphSpec) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)

    later = {str(a) for t in spec.inputs for a in t.axes if str(a).startswith(("past_", "room_"))}
    visual = SAMPLE_SIZES["visual"] if spec.visual_multiple == 1 else 2 * spec.visual_multiple
    sizes = (
        SAMPLE_SIZES
        | {"visual": visual}
        | {side: count * spec.pixel_multiple for side, count in SAMPLE_CELLS.items()}
        | {axis: LATER_PAST + i for i, axis in enumerate(sorted(later))}
    )

    def sample(tensor: TensorSpec) -> Tensor:
        shape = tensor.shape(sizes)
        if tensor.dtype in ("int64", "bool"):
            return torch.zeros(shape, dtype=getattr(torch, tensor.dtype))
        return torch.rand(shape, generator=generator).to(getattr(torch, tensor.dtype))

    return tuple(sample(tensor) for tensor in spec.inputs)


def _dynamic(spec: GraphSpec) -> list[dict[int, Any]]:
    named = {axis for tensor in spec.inputs for axis in tensor.axes if isinstance(axis, str)}
    axes: dict[str, Any] = {
        a: torch.export.Dim(a, min=LEAST_SIZES[a.split("_")[0]]) for a in named - set(SIDES)
    }
    for side in SIDES:
        axes[side] = spec.pixel_multiple * torch.export.Dim(f"cells_{side}", min=2)
    if spec.visual_multiple > 1:
        axes["visual"] = spec.visual_multiple * torch.export.Dim("grids", min=0)
    return [
        {i: axes[axis] for i, axis in enumerate(tensor.axes) if isinstance(axis, str)}
        for tensor in spec.inputs
    ]


def _arguments(items: Sequence[Any], spec: GraphSpec) -> tuple[Any, ...]:
    """Return what stands for a graph's inputs as its module takes it.

    Of a decoder the past is one list, keys and values in pairs, positions are a pair, and what is added to
    visual rows behind layers is a list.
    """
    given = {tensor.name: item for tensor, item in zip(spec.inputs, items, strict=True)}
    if ROWS[0] not in given:
        return tuple(items)
    rows = [given.pop(name) for name in ROWS]
    positions = tuple(given.pop(name) for name in POSITIONS if name in given)
    deepstack = [given.pop(name) for name in [*given] if name.startswith(DEEPSTACK)]
    past, count = [*given.values()], 2 * len(caches_of(spec.inputs))
    pairs = [KeyValue(*past[i : i + 2]) for i in range(0, count, 2)]
    turned = [positions or None] if positions or deepstack else []
    return (*rows, [*pairs, *past[count:]], *turned, *([deepstack] if deepstack else []))


def _export(
    module: nn.Module,
    args: tuple[Any, ...],
    spec: GraphSpec,
    settings: ExportSection,
    weights: Mapping[str, tuple[StoredWeight, ...]],
) -> ir.Model:
    with ONE_EXPORT, _quiet_exporter(), shortcuts(), node_by_node(), torch.inference_mode():
        program = torch.onnx.export(
            module,
            args,
            dynamo=True,
            opset_version=opset_of(spec),
            dynamic_shapes=_arguments(_dynamic(spec), spec),
            input_names=[t.name for t in spec.inputs],
            output_names=[t.name for t in spec.outputs],
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    model = program.model
    model.graph.name = spec.name
    note_weights(model.graph, weights)
    note_numbers(model.graph, _numbers(program))
    for one in order.PASSES:
        if one.applies(spec, settings):
            one.run(model)
    _declare(model.graph.inputs, spec.inputs)
    _declare(model.graph.outputs, spec.outputs)
    _check_standard(model, spec)
    return model


def _numbers(program: torch.onnx.ONNXProgram) -> dict[str, float]:
    """Return the numbers of the code that became constants, by the constants' names."""
    made = torch.ops.aten.scalar_tensor.default
    nodes = program.exported_program.graph.nodes if program.exported_program else ()
    given = {n.name: n.args[0] for n in nodes if n.target is made}  # sizes are nodes themselves
    return {name: float(x) for name, x in given.items() if isinstance(x, int | float)}


def _declare(values: Sequence[ir.Value], specs: Sequence[TensorSpec]) -> None:
    """Write the declared axes into the graph; the exporter writes sums of symbols."""
    for value, spec in zip(values, specs, strict=True):
        if value.name != spec.name or str(value.dtype) != DTYPE_NAMES[spec.dtype]:
            raise RuntimeError(
                f"exported {value.name} {value.dtype}, declared {spec.name} {spec.dtype}"
            )
        value.shape = ir.Shape(spec.axes)


def _check_standard(model: ir.Model, spec: GraphSpec) -> None:
    foreign = sorted(
        {
            node.op_type
            for node in model.graph.all_nodes()
            if node.domain not in STANDARD_DOMAINS or node.op_type not in ONNX_OPERATORS
        }
    )
    opset = opset_of(spec)
    if foreign or model.opset_imports.get("") != opset:
        raise VtcompressError(
            f"{spec.file}: operators outside those that an artifact may have (export/graphs/operators.py, "
            f"opset {opset}): {', '.join(foreign) or 'version'}; torch's version is not the "
            "tested one, or a method or graph pass of another package made them"
        )


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the exporter says about packages that are not needed and about our own names."""
    # The second says that a Scan, which is exported all the same, has a kind of place in it unknown to it.
    names = ("torch.onnx._internal.exporter._registration", "torch.export._trace")
    logs = [logging.getLogger(name) for name in names]
    levels = [log.level for log in logs]
    for log, level in zip(logs, (logging.ERROR, logging.CRITICAL), strict=True):
        log.setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
            warnings.filterwarnings("ignore", message=".*The axis name: .* will not be used.*")
            warnings.filterwarnings(
                "ignore", message="While compiling, we found certain side effects"
            )
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
