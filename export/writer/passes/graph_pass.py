"""What a graph pass is, and what passes may read of a stored number beside its values.

A pass is anything with what `GraphPass` names: each file beside this one that `order` lists is one.
It finds what it works on in the graph alone: nodes have the names of their modules, and initializers carry
notes, which are not written to the file.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import onnx_ir as ir

if TYPE_CHECKING:
    from compressor.decoder.weights import StoredWeight
    from compressor.schema.sections import ExportSection
    from export.graphs.spec import GraphSpec

_STORED, _NUMBER = "vtcompress.stored", "vtcompress.number"


class GraphPass(Protocol):
    """One change of a graph, between the exporter and the file.

    Attributes:
        words: a sentence that reports say of the export; empty: what graphs compute is no other.
    """

    words: str

    def applies(self, spec: "GraphSpec", settings: "ExportSection") -> bool:
        """Return whether a graph with this declaration is changed in an export with these settings."""
        ...

    def run(self, model: ir.Model) -> None:
        """Change a graph in place; names, dtypes and axes of its inputs and outputs stay as declared."""
        ...


def note_weights(graph: ir.Graph, weights: "Mapping[str, tuple[StoredWeight, ...]]") -> None:
    """Note on initializers, by their names, the stored weights that each is made of: itself, or its parts."""
    for name in graph.initializers.keys() & weights.keys():
        graph.initializers[name].meta[_STORED] = weights[name]


def weights_of(value: ir.Value) -> "tuple[StoredWeight, ...]":
    """Return the stored weights that an initializer is made of; none: it is no parameter of a decoder."""
    found: tuple[StoredWeight, ...] = value.meta.get(_STORED, ())
    return found


def note_numbers(graph: ir.Graph, numbers: Mapping[str, float]) -> None:
    """Note on initializers, by their names, the numbers of the code that they round."""
    for name in graph.initializers.keys() & numbers.keys():
        graph.initializers[name].meta[_NUMBER] = numbers[name]


def number_of(value: ir.Value) -> float | None:
    """Return the number of the code that an initializer rounds; None: it holds something else."""
    found: float | None = value.meta.get(_NUMBER)
    return found
