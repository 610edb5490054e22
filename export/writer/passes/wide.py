"""Puts nodes that meet values too large for float16 in float32.

Which nodes those are, runs of the written graphs tell (`export.checks.float16`); so this pass is not one of
`order.PASSES`, which run before anything is written.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from export.writer.passes.float32 import compute_in_float32

if TYPE_CHECKING:
    import onnx_ir as ir

    from compressor.schema.sections import ExportSection
    from export.graphs.spec import GraphSpec


class Wide(NamedTuple):
    """See `GraphPass`.

    Attributes:
        nodes: names of the nodes to compute in float32.
        words: empty: reports name the nodes with the values that were found.
    """

    nodes: Collection[str]
    words: str = ""

    def applies(self, spec: "GraphSpec", settings: "ExportSection") -> bool:  # noqa: ARG002 - nodes tell
        """See `GraphPass.applies`."""
        return bool(self.nodes)

    def run(self, model: "ir.Model") -> None:
        """See `GraphPass.run`."""
        compute_in_float32(model.graph, [node for node in model.graph if node.name in self.nodes])
