"""What a graph returned, compared with its declaration: a file may say one thing and compute another."""

from collections.abc import Sequence
from typing import Any

from compressor.errors import ArtifactError
from export.graphs.spec import GraphSpec


def declared_outputs(spec: GraphSpec, feeds: Sequence[Any], outputs: list[Any]) -> list[Any]:
    """Return the outputs of a call, which have the shapes that the graph declares.

    An axis of an output that an input has, too, is as long as there.

    Args:
        spec: of the graph.
        feeds: of the call, in declared order, but for buffers that are bound.
        outputs: of the call, in declared order; those of buffers that are bound are not among them.

    Raises:
        ArtifactError: the graph and the shape of an output that is another.
    """
    fed = (tensor for tensor in spec.inputs if not tensor.filled)
    sizes = {
        axis: size
        for tensor, feed in zip(fed, feeds, strict=False)
        for axis, size in zip(tensor.axes, shape_of(feed), strict=False)
    }
    for tensor, found in zip(spec.outputs, outputs, strict=False):
        shape = shape_of(found)
        wanted = [axis if isinstance(axis, int) else sizes.get(axis) for axis in tensor.axes]
        if len(shape) != len(wanted) or any(
            size not in (None, there) for size, there in zip(wanted, shape, strict=True)
        ):
            axes = ", ".join(map(str, tensor.axes))
            raise ArtifactError(
                [
                    f"{spec.file}: the graph {spec.name} gave {tensor.name} as {[*shape]} and declares "
                    f"[{axes}]; do not use this artifact"
                ]
            )
    return outputs


def shape_of(value: Any) -> tuple[int, ...]:
    """Return the shape of an array, or of a backend's value."""
    shape = value.shape
    return tuple(shape() if callable(shape) else shape)
