"""The passes that every exported graph is offered, in the order in which they run.

A new one is a file beside this one, or an object of the user's own, and one place in the list.
"""

from typing import TYPE_CHECKING

from export.writer.passes import branch_on_images, join, names, quantize, scalars
from export.writer.passes.graph_pass import GraphPass

if TYPE_CHECKING:
    from collections.abc import Iterable

    from compressor.schema.sections import ExportSection
    from export.graphs.spec import GraphSpec

PASSES: tuple[GraphPass, ...] = (names, scalars, branch_on_images, join, quantize)


def pass_words(graphs: "Iterable[GraphSpec]", settings: "ExportSection") -> tuple[str, ...]:
    """Return what reports say of the passes that change any of these graphs."""
    specs = tuple(graphs)
    changed = (one for one in PASSES if any(one.applies(spec, settings) for spec in specs))
    return tuple(one.words for one in changed if one.words)
