"""Checks bfloat16 graphs on a CPU that cannot run them: through their float32 shadows, and says so.

ONNX Runtime's CPU has bfloat16 kernels for moves of data alone. A shadow runs the same nodes on the same
bfloat16 weights with all arithmetic in float32. So the graphs' structure and their weights' rounding are
checked, and the rounding of what nodes compute is not.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from export.backends.checked_on import OnnxGraph, OnnxSession, has_kernels
from export.graphs.spec import GraphSpec
from export.session.session import GraphSession
from export.writer.passes.float32 import (
    is_low,
    make_shadow,
    read_graph,
    shadow_spec,
    subgraphs,
    within,
)

if TYPE_CHECKING:
    import onnx_ir as ir


class Argument(NamedTuple):
    """An input or output of a graph file, in ONNX Runtime's words."""

    name: str
    shape: tuple[int | str, ...]
    type: str


class ShadowSession(GraphSession[OnnxGraph]):
    """An artifact's graphs in ONNX Runtime on the CPU, computed in float32; takes and gives float32.

    Args:
        folder: the artifact.
        graphs: see `GraphSession`.
        threads: of one operator; None lets ONNX Runtime choose.
        mapped: see `OnnxGraph`.

    Raises:
        MissingExtraError: a package that it needs is not installed.
    """

    def __init__(
        self,
        folder: Path,
        graphs: Sequence[GraphSpec],
        *,
        threads: int | None = None,
        mapped: bool = False,
    ) -> None:
        def open_graph(spec: GraphSpec) -> OnnxGraph:
            import onnx_ir as ir

            model = read_graph(folder / spec.file)
            make_shadow(model.graph)
            content = ir.to_proto(model).SerializeToString()
            return OnnxGraph(folder, spec, threads, content=content, exact=True, mapped=mapped)

        super().__init__([shadow_spec(spec) for spec in graphs], open_graph)
        self._folder = folder

    def declared(self, spec: GraphSpec) -> tuple[Sequence[Any], Sequence[Any]]:
        """See `OnnxSession.declared`; of the file, not of its shadow."""
        return declared_in(self._folder, spec)


def declared_in(folder: Path, spec: GraphSpec) -> tuple[Sequence[Argument], Sequence[Argument]]:
    """Return a graph's inputs and outputs as its file has them; no weights are loaded."""
    graph = read_graph(folder / spec.file).graph
    return [_argument(v) for v in graph.inputs], [_argument(v) for v in graph.outputs]


def open_for_checks(
    folder: Path,
    graphs: Sequence[GraphSpec],
    dtype: str,
    *,
    threads: int | None = None,
    exact: bool = True,
    mapped: bool = False,
) -> OnnxSession | ShadowSession:
    """Return the session that an artifact is checked in on the CPU.

    Args:
        folder: the artifact.
        graphs: see `GraphSession`.
        dtype: of the graphs.
        threads: of one operator; None lets ONNX Runtime choose.
        exact: see `OnnxGraph`; shadows are.
        mapped: see `OnnxGraph`.
    """
    if dtype == "bfloat16":
        return ShadowSession(folder, graphs, threads=threads, mapped=mapped)
    return OnnxSession(folder, graphs, threads=threads, exact=exact, mapped=mapped)


def missing_kernels(folder: Path, graphs: Sequence[GraphSpec]) -> tuple[str, ...]:
    """Return the operators of bfloat16 graphs for which ONNX Runtime's CPU has no kernel, found by trying.

    Args:
        folder: the artifact.
        graphs: to look at.
    """
    tried: dict[str, bool] = {}
    for spec in graphs:
        model = read_graph(folder / spec.file)
        for node in (inner for outer in model.graph for inner in within(outer)):
            if list(subgraphs(node)):  # moves data; what its branches hold is tried by itself
                continue
            if any(map(is_low, (*node.inputs, *node.outputs))) and node.op_type not in tried:
                tried[node.op_type] = _runs(node, model)
    return tuple(sorted(name for name, runs in tried.items() if not runs))


def _runs(node: "ir.Node", model: "ir.Model") -> bool:
    """Return whether a graph of this node alone can be loaded."""
    import onnx_ir as ir

    # Sizes and axes must be known when a graph is loaded; weights need not.
    inputs = {v.name: v for v in node.inputs if v is not None}
    stored = [
        v
        for v in inputs.values()
        if v.is_initializer() and not is_low(v) and not isinstance(v.const_value, ir.ExternalTensor)
    ]
    fed = {name: _copy(v) for name, v in inputs.items() if v not in stored}
    fixed = {
        v.name: ir.Value(name=v.name, shape=v.shape, type=v.type, const_value=v.const_value)
        for v in stored
    }
    values = fed | fixed
    alone = ir.Node(
        node.domain,
        node.op_type,
        [None if v is None else values[v.name] for v in node.inputs],
        node.attributes.values(),
        outputs=[_copy(v) for v in node.outputs],
    )
    graph = ir.Graph(
        list(fed.values()),
        alone.outputs,
        nodes=[alone],
        initializers=list(fixed.values()),
        opset_imports=model.opset_imports,
        name="alone",
    )
    return has_kernels(
        ir.to_proto(ir.Model(graph, ir_version=model.ir_version)).SerializeToString()
    )


def _copy(value: "ir.Value") -> "ir.Value":
    import onnx_ir as ir

    return ir.Value(name=value.name, shape=value.shape, type=value.type)


def _argument(value: "ir.Value") -> Argument:
    dtype = value.dtype.name.lower() if value.dtype is not None else ""
    shape = tuple(axis if isinstance(axis, int) else str(axis.value) for axis in value.shape or ())
    return Argument(value.name or "", shape, f"tensor({'float' if dtype == 'float' else dtype})")
