"""Finds the first layer behind which states are others than are known, by graphs that give these too.

The made-up call runs once more, in graphs that give what is between their layers as outputs besides their
own. Such graphs are joined and folded less than those that answer: a fault of that is not found so.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from compressor.errors import ArtifactError
from compressor.facts import ModelFacts
from export.checks.fidelity import missed_limits
from export.checks.known.answers import KnownGraphs, KnownLayer, LayerEnd
from export.checks.known.judge import relative
from export.checks.known.made_calls import made_calls
from export.checks.known.report import Located
from export.checks.known.sums import Sums
from export.graphs.spec import GraphSpec, TensorSpec
from export.results.fidelity import Difference, FidelityLimits
from export.session.arrays import Array
from export.session.session import GraphSession, as_array

PRESENT = "present"
"""How names of outputs begin that are caches."""

ROWS_AXES = 3
"""Of rows: batch, rows, width."""

States = dict[str, Array]
"""Values of a graph by their names."""


class StatesGraph:
    """A graph that gives some of its values too, in place of the one that does not.

    Args:
        spec: the graph's own declaration.
        inner: gives those values in front of its own outputs.
        names: of the values.

    Attributes:
        spec: see above.
        found: the values of the last call, and its outputs but for the caches.
    """

    def __init__(self, spec: GraphSpec, inner: Any, names: Sequence[str]) -> None:
        self.spec, self._inner, self._names = spec, inner, tuple(names)
        self.found: States = {}

    def __call__(self, feeds: Sequence[Any]) -> list[Any]:
        """Run on inputs in declared order; return the declared outputs."""
        return self._parted(self._inner(feeds))

    def bound(self, buffers: Mapping[str, Array]) -> Callable[[Sequence[Any]], list[Any]]:
        """Return what runs it with fixed caches in these buffers."""
        run = self._inner.bound(buffers)
        return lambda feeds: self._parted(run(feeds))

    def _parted(self, outputs: list[Any]) -> list[Any]:
        count = len(self._names)
        values = [as_array(value) for value in outputs[:count]]
        self.found = dict(zip(self._names, values, strict=True))
        own = [spec.name for spec in self.spec.outputs if not spec.name.startswith(PRESENT)]
        self.found |= zip(own, map(as_array, outputs[count:]), strict=False)
        return outputs[count:]


def with_states(spec: GraphSpec, names: Sequence[str]) -> GraphSpec:
    """Return a declaration with values of the graph in front of its outputs."""
    dtype = spec.inputs[0].dtype
    axes = ("batch", "rows", "hidden")
    more = tuple(TensorSpec(name=name, dtype=dtype, axes=axes) for name in names)
    return spec.model_copy(update={"outputs": (*more, *spec.outputs)})


def names_of(layers: Sequence[LayerEnd], graph: str) -> tuple[str, ...]:
    """Return the names of the values between a graph's layers."""
    named = (name for one in layers if one.graph == graph for name in (one.visual, one.text))
    return tuple(dict.fromkeys(name for name in named if name is not None))


def states_of(
    session: GraphSession[Any],
    facts: ModelFacts,
    known: KnownGraphs | None,
    watch: Callable[[GraphSpec, Sequence[str]], Any],
    layers: Sequence[LayerEnd],
) -> tuple[Array | None, dict[str, States]]:
    """Run the made-up call; return embeddings [1, T, D] and the values of each graph by its name.

    Args:
        session: on the artifact; its decoder is not loaded yet.
        facts: of the model.
        known: of the made-up calls; None: they are made anew.
        watch: loads a graph of this declaration that gives values of these names too, in front.
        layers: whose states are wanted.

    Raises:
        VtcompressError: the call cannot run.
    """
    graphs: dict[str, StatesGraph] = {}
    for spec in session.decoders:
        own = {tensor.name for tensor in spec.outputs}
        names = tuple(name for name in names_of(layers, spec.name) if name not in own)
        inner = watch(with_states(spec, names), names)
        graphs[spec.name] = StatesGraph(spec, inner, names)
        session.put(spec.name, graphs[spec.name])
    made = made_calls(session, facts, known)
    return made.embedded, {name: graph.found for name, graph in graphs.items()}


def located(
    known: KnownGraphs,
    embedded: Array | None,
    found: Mapping[str, States],
    limits: FidelityLimits,
) -> Located:
    """Return the first layer behind which states are others than are known."""
    limits = relative(limits)
    if embedded is not None:
        told = known.embedded.against(Sums.of(embedded[0]), "embeddings")
        if words := _missed(told, limits):
            return Located(layer=None, line=f"states part in front of the layers: {words}")
    for one in known.layers:
        states = found.get(one.graph, {})
        for kind, name, wanted in (
            ("visual", one.visual, one.visual_states),
            ("text", one.text, one.text_states),
        ):
            if name is None or wanted is None or name not in states:
                continue
            what = f"{kind} rows behind layer {one.layer}"
            if states[name].ndim != ROWS_AXES:
                raise ArtifactError([f"{name} of the graph {one.graph} holds no rows"])
            if words := _missed(wanted.against(Sums.of(states[name][0]), what), limits):
                line = f"states part in layer {one.layer} of {len(known.layers)}: {words}"
                return Located(layer=one.layer, line=line)
    count = len(known.layers)
    line = f"states part nowhere: of made-up rows those behind all {count} layers are as known"
    return Located(layer=None, line=line)


def _missed(found: Difference | str, limits: FidelityLimits) -> str:
    """Return the first limit that is missed, in words; empty: none."""
    if isinstance(found, str):
        return found
    return next(iter(missed_limits(found, limits)), "")


def told_layers(layers: Sequence[LayerEnd], found: Mapping[str, States]) -> tuple[KnownLayer, ...]:
    """Return layers with what is kept of their states, as far as these are numbers."""
    told = []
    for one in layers:
        states = found[one.graph]
        visual = states.get(one.visual) if one.visual is not None else None
        text = states.get(one.text)
        if text is None or not np.isfinite(text.astype(np.float64)).all():
            break
        seen = None if visual is None or not visual.size else Sums.of(visual[0])
        told.append(
            KnownLayer(**one.model_dump(), text_states=Sums.of(text[0]), visual_states=seen)
        )
    return tuple(told)
