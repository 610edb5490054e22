"""Names nodes after the module that made them, and drops the exporter's stack traces.

The traces hold paths of this machine and are most of a graph's size.
"""

import ast
from collections import Counter
from typing import TYPE_CHECKING

import onnx_ir as ir

from compressor.version import __version__

if TYPE_CHECKING:
    from compressor.schema.sections import ExportSection
    from export.graphs.spec import GraphSpec

SCOPES = "pkg.torch.onnx.name_scopes"

words = ""


def applies(spec: "GraphSpec", settings: "ExportSection") -> bool:  # noqa: ARG001 - every graph
    """See `GraphPass.applies`."""
    return True


def run(model: ir.Model) -> None:
    """See `GraphPass.run`; other passes read the names."""
    taken: Counter[str] = Counter()
    for node in model.graph:
        scopes = node.metadata_props.get(SCOPES)
        path = ast.literal_eval(scopes) if scopes else []
        scope = next((p for p in reversed(path[:-1]) if p and not p.startswith("_empty_nn")), "")
        name = f"{scope}.{node.op_type}" if scope else node.op_type
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        node.metadata_props.clear()
        node.doc_string = None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.producer_name, model.producer_version = "vtcompress", __version__
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
