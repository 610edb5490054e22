"""Compares torch and the graph layer by layer, with one layer's weights in memory at a time.

Every layer runs twice in the runtime: on torch's states, which tells what it differs by itself, and on the
states that its own layers made, whose logits are those of the whole graph and judged as they are.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor.plan.plan import Plan
from compressor.progress import Progress
from export.checks import fidelity
from export.checks.bfloat16 import declared_in, open_for_checks
from export.checks.by_layer.pieces import Piece, Pieces
from export.checks.by_layer.reference import Reference, prompts_by_layer
from export.checks.fidelity import Recording
from export.graphs.spec import GraphSpec, in_order
from export.machine.freed import return_memory
from export.results.fidelity import Difference, FidelityLimits, FidelityReport
from export.session.arrays import Array
from export.session.feeds import CallRows
from export.session.fixed_cache import FixedCaches
from export.session.growing_cache import GrowingCaches
from export.session.session import as_array, in_rows

BEHIND = "behind the layers"


def compare_by_layer(
    reference: Reference,
    folder: Path,
    graphs: Sequence[GraphSpec],
    dtype: str,
    plan: Plan,
    limits: FidelityLimits,
    room: int | None,
    progress: Progress,
) -> FidelityReport:
    """Return export fidelity of an artifact under construction.

    Args:
        reference: the torch side.
        folder: the artifact.
        graphs: of it.
        dtype: of the graphs.
        plan: of a decoder that can be parted; see `compressor.decoder.by_layer.cannot_part`.
        limits: of every output; those of layers are judged without the absolute one, because states have
            the size that a model gives them.
        room: as the reference was given.
        progress: shows the layers.
    """
    found = Recording()
    session = open_for_checks(folder, graphs, dtype, mapped=True)
    own = [*prompts_by_layer(found, session, plan, room)]
    del session
    return_memory()  # the vision tower is as large as a layer in float32
    (spec,) = in_order(graphs, "decoder")
    walk = _Walk(reference, Pieces(folder, spec, len(plan.layers)), own, found)
    count = len(plan.layers)
    layers = [walk.layer(i) for i in progress.track(range(count), "checking layers", count)]
    layers.append(walk.end())
    declared = [
        line for one in graphs for line in fidelity.check_declared(one, *declared_in(folder, one))
    ]
    report = fidelity.compare(reference.recording, found, graphs, declared, limits)
    return _with_layers(report, layers)


class _Walk:
    """Both sides on their way through the layers; keeps the states between two of them alone."""

    def __init__(
        self,
        reference: Reference,
        pieces: Pieces,
        own: Sequence[tuple[str, list[fidelity.LabelledCall]]],
        found: Recording,
    ) -> None:
        self._torch, self._pieces, self._found = reference, pieces, found
        self._calls = reference.begun()
        self._own = [[rows for _, rows in calls] for _, calls in own]
        self._names = [[f"{name}: {label}" for label, _ in calls] for name, calls in own]

    def layer(self, layer: int) -> list[Difference]:
        """Run a layer, and return what it differs by on torch's states."""
        entered = self._entered()
        return_memory()  # of the layer before, whose graph is held by cycles
        with self._torch.layers.weights(layer):
            for calls in self._calls:
                self._torch.layers.run(layer, calls)
        piece = self._pieces.open(layer)
        differences: list[Difference] = []
        for number, names in enumerate(self._names):
            for call, made in enumerate(_through(piece, entered[number])):
                what = f"layer {layer}: {names[call]}"
                differences += self._compared(what, number, call, made, piece)
            own = [*_through(piece, self._own[number])]
            self._own[number] = [made.rows for made in own]
        return differences

    def end(self) -> list[Difference]:
        """Run what is behind the layers and record logits; return what it differs by on torch's states."""
        entered = self._entered()
        return_memory()
        with self._torch.layers.weights(None):
            wanted = [
                [self._torch.layers.logits(call).numpy() for call in calls] for calls in self._calls
            ]
        piece, differences = self._pieces.open(None), []
        for number, names in enumerate(self._names):
            for call, name in enumerate(names):
                self._torch.recording.outputs[name] = wanted[number][call]
                self._found.outputs[name] = _logits(piece, self._own[number][call])
                got = _logits(piece, entered[number][call])
                what = f"{BEHIND}: {name}"
                differences.append(fidelity.how_different(what, wanted[number][call], got))
        return differences

    def _entered(self) -> list[list[CallRows]]:
        """Return torch's rows in front of a layer."""
        return [
            [
                rows._replace(visual=call.visual.numpy(), text=call.text.numpy())
                for call, (_, rows) in zip(calls, given, strict=True)
            ]
            for calls, (_, given) in zip(self._calls, self._torch.prompts, strict=True)
        ]

    def _compared(
        self, what: str, number: int, call: int, made: "_Made", piece: Piece
    ) -> Iterator[Difference]:
        torch = self._calls[number][call]
        kinds = torch.begun.kinds
        told = () if kinds is None else (tuple(kinds.visual.shape),)
        self._torch.recording.shapes[what] = (
            *(tuple(tensor.shape) for pair in torch.present for tensor in pair),
            *told,
        )
        self._found.shapes[what] = made.shapes
        if piece.after is not None and piece.after.visual is not None and made.rows.visual.size:
            yield fidelity.how_different(
                f"{what}, visual rows", torch.visual.numpy(), made.rows.visual
            )
        yield fidelity.how_different(f"{what}, text rows", torch.text.numpy(), made.rows.text)
        for pair, keys in zip(torch.present, made.keys, strict=True):
            wanted = in_rows(pair.key.numpy())
            if (
                wanted.size and wanted.shape == keys.shape
            ):  # a difference of shapes is told by itself
                yield fidelity.how_different(f"{what}, keys", wanted, keys)


@dataclass(frozen=True)
class _Made:
    """What a layer's piece made of a call: the call for the next one, its keys, the shapes of its caches."""

    rows: CallRows
    keys: tuple[Array, ...]
    shapes: tuple[tuple[int, ...], ...]


def _through(piece: Piece, calls: Sequence[CallRows]) -> Iterator[_Made]:
    """Run calls that follow each other through a layer's piece."""
    spec = piece.graph.spec
    caches: Any = FixedCaches([spec]) if spec.fixed else GrowingCaches([spec])
    pairs = sum(tensor.name.endswith("key") for tensor in spec.cached)
    past = caches.empty(1)
    for rows in calls:
        call = caches.call(past)
        with np.errstate(over="ignore"):  # states that float16 cannot hold are found all the same
            found = call.run(piece.graph, rows)
        past = call.present
        visual, text = piece.states([*map(as_array, found)], (rows.visual, rows.text))
        keys = tuple(in_rows(as_array(caches.keys(past, i))) for i in range(pairs))
        yield _Made(rows._replace(visual=visual, text=text), keys, caches.shapes(past))


def _logits(piece: Piece, rows: CallRows) -> Array:
    caches = GrowingCaches([piece.graph.spec])
    with np.errstate(over="ignore"):
        (logits,) = caches.call(caches.empty(1)).run(piece.graph, rows)
    return as_array(logits)


def _with_layers(report: FidelityReport, layers: Sequence[Sequence[Difference]]) -> FidelityReport:
    """Return a report with what each layer differs by itself, and what of that is too much."""
    limits = report.limits.model_copy(update={"max_abs": np.inf})
    failures: list[str] = []
    worst = []
    for found in layers:
        relative, cosine = _worst(found)
        worst.append(relative)
        for one in dict.fromkeys((relative, cosine)):
            failures += fidelity.missed_limits(one, limits)
    everything = [one for found in layers for one in found]
    relative, cosine = _worst([*everything, report.worst_relative, report.worst_cosine])
    return report.model_copy(
        update={
            "calls": report.calls + len(everything),
            "worst_relative": relative,
            "worst_cosine": cosine,
            "layers": tuple(worst),
            "failures": (*dict.fromkeys(failures), *report.failures),
        }
    )


def _worst(found: Sequence[Difference]) -> tuple[Difference, Difference]:
    return (
        max(found, key=lambda one: one.max_relative),
        min(found, key=lambda one: one.cosine),
    )
