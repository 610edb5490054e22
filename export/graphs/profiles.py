"""Optimization profiles: which sizes of the named axes an engine is built for, and which one a call fits.

Pure: nothing here knows TensorRT. Letters: B batch, I tiles of images, N visual tokens of one tile, V visual
rows and T text rows of a call, P past, C rows of a fixed cache's buffer.

The decoder has two profiles in one engine. Prefill takes every call: V from 0, so that text-only prompts
fit, and a past from nothing to the whole context, so that later turns of a conversation fit. Decode is
narrow: no visual rows, a past that is not empty. Buffers of fixed caches have room for the whole context.
"""

from collections.abc import Iterable, Mapping, Sequence

from compressor.errors import BackendError
from compressor.facts import Facts
from compressor.plan.kept import rows_going_on
from compressor.plan.plan import TEXT_PAST
from export.graphs.limits import GoingOn, Limits
from export.graphs.spec import ARRANGED, ROOM, SIDES, GraphSpec, TensorSpec, length_of

# T of the prompt that a prefill is tuned for: a question about a picture.
USUAL_PROMPT = 64
# T of a decode step is 1. With exactly 1 the builder finds no Attention kernel for some tiny head shapes.
DECODE_TEXT = 2
PAST_AXIS = "past"


class ShapeProfile(Facts):
    """Sizes of the named axes at least, typically and at most.

    Attributes:
        name: what calls it is for.
    """

    name: str
    least: dict[str, int]
    typical: dict[str, int]
    most: dict[str, int]

    def outside(self, sizes: Mapping[str, int]) -> tuple[str, ...]:
        """Return the axes of a call that this profile does not hold."""
        return tuple(
            axis for axis, size in sizes.items() if not self.least[axis] <= size <= self.most[axis]
        )

    def shapes(self, tensor: TensorSpec) -> tuple[tuple[int, ...], ...]:
        """Return the least, the typical and the largest shape of an input."""
        return tuple(tensor.shape(dict(s)) for s in (self.least, self.typical, self.most))


def profiles_of(spec: GraphSpec, limits: Limits) -> tuple[ShapeProfile, ...]:
    """Return the profiles of a graph's engine, the widest first.

    Axes that are numbers are taken as they are; a graph without named axes has one profile without ranges.
    A vision graph that chooses among arranged rows takes one grid a call.
    """
    axes = named_axes(spec.inputs)
    if spec.rows_kept is not None and ARRANGED[0] in {tensor.name for tensor in spec.inputs}:
        limits = limits.model_copy(update={"max_batch": 1, "max_images": 1})
    if "visual" not in axes:
        ranges = {axis: _plain_range(axis, limits) for axis in axes}
        return (_profile(spec.name, ranges),)
    prefill = {axis: _prefill_range(axis, limits, spec.kept) for axis in axes}
    decode = {axis: _decode_range(axis, limits, spec.kept) for axis in axes}
    return _profile("prefill", prefill), _profile("decode", decode)


def rooms_of(profiles: Sequence[ShapeProfile]) -> dict[str, int]:
    """Return the rows of fixed caches' buffers by the names of their axes, the same in all profiles."""
    return {axis: rows for axis, rows in profiles[0].most.items() if axis.startswith(ROOM)}


def named_axes(tensors: Iterable[TensorSpec]) -> tuple[str, ...]:
    """Return the named axes of tensors, each once, in their order."""
    return tuple(dict.fromkeys(a for tensor in tensors for a in tensor.axes if isinstance(a, str)))


def sizes_of(inputs: Sequence[TensorSpec], shapes: Sequence[tuple[int, ...]]) -> dict[str, int]:
    """Return the sizes of the named axes in a call.

    Args:
        inputs: of the graph.
        shapes: what each is given, in their order.

    Raises:
        ValueError: a shape that the declaration rules out; names the input.
    """
    sizes: dict[str, int] = {}
    for tensor, shape in zip(inputs, shapes, strict=True):
        if len(shape) != len(tensor.axes):
            raise ValueError(f"{tensor.name}: has shape {shape}, declared {tensor.axes}")
        for axis, size in zip(tensor.axes, shape, strict=True):
            wanted = axis if isinstance(axis, int) else sizes.setdefault(axis, size)
            if size != wanted:
                raise ValueError(
                    f"{tensor.name}: has shape {shape}; {axis} is {wanted} in this call"
                )
    return sizes


def profile_for(
    profiles: Sequence[ShapeProfile],
    sizes: Mapping[str, int],
    limits: Limits,
    target: str = "TARGET",
) -> int:
    """Return the place of the narrowest profile that holds a call.

    Args:
        profiles: of the engine, the widest first.
        sizes: of the call's named axes.
        limits: that the engine was built for.
        target: for the remedy in the error.

    Raises:
        BackendError: none does; names each axis, its size, what the engine was built for, and the remedy.
    """
    outside = [profile.outside(sizes) for profile in profiles]
    fitting = [place for place, axes in enumerate(outside) if not axes]
    if fitting:
        return fitting[-1]
    place = min(range(len(profiles)), key=lambda i: len(outside[i]))
    nearest = profiles[place]
    found = "; ".join(
        f"{axis} is {sizes[axis]} in this call, the engine was built for {nearest.least[axis]} to "
        f"{nearest.most[axis]}"
        for axis in outside[place]
    )
    if set(outside[place]) <= set(SIDES):
        raise BackendError(f"{found}: give a picture that is less oblong, or take another backend")
    flags = " ".join(_flags(outside[place], sizes, limits))
    remedy = f"build it anew with `vtcompress build ARTIFACT --target {target} {flags} --overwrite`"
    raise BackendError(f"{found}: {remedy}, or ask for less in one call")


def _flags(axes: Sequence[str], sizes: Mapping[str, int], limits: Limits) -> Iterable[str]:
    needed: dict[str, int] = {}
    for axis in axes:
        if axis == "images":
            needed["--max-images"] = -(-sizes[axis] // (limits.max_batch * limits.tiles))
        elif axis == "rows":
            rows = limits.max_batch * limits.visual_tokens
            needed["--max-images"] = max(needed.get("--max-images", 0), -(-sizes[axis] // rows))
        elif axis == "visual":
            needed["--max-images"] = -(-sizes[axis] // limits.visual_tokens)
        elif axis not in SIDES and not axis.startswith((PAST_AXIS, ROOM)):
            needed[f"--max-{axis}"] = sizes[axis]
    # What lies in the caches and what this call adds; caches of text alone have room for an image less.
    past = max((size for axis, size in sizes.items() if axis.startswith(PAST_AXIS)), default=0)
    past = sizes.get(
        PAST_AXIS, past
    )  # where visual rows became more, caches hold more than the context
    if any(axis == TEXT_PAST for axis in axes):
        past = max(past, sizes[TEXT_PAST] + limits.visual_tokens)
    context = past + sizes.get("visual", 0) + sizes.get("text", 0)
    if context > limits.max_context or any(axis.startswith(PAST_AXIS) for axis in axes):
        needed["--max-context"] = context
    return (f"{flag} {size}" for flag, size in needed.items())


_Range = tuple[int, int, int]


def _profile(name: str, ranges: Mapping[str, _Range]) -> ShapeProfile:
    least, typical, most = ({axis: r[i] for axis, r in ranges.items()} for i in range(3))
    return ShapeProfile(name=name, least=least, typical=typical, most=most)


def _plain_range(axis: str, limits: Limits) -> _Range:
    if axis in SIDES:
        return limits.sides
    # A batch of prompts sends its pictures through the vision tower in one call.
    most = {
        "images": limits.max_batch * limits.max_images * limits.tiles,
        "rows": limits.max_batch * limits.max_visual,
        "batch": limits.max_batch,
        "text": limits.max_text,
    }[axis]
    usual = {
        "text": _usual_prompt(limits),
        "images": limits.tiles,
        "rows": limits.visual_tokens,
    }
    return 1, usual.get(axis, 1), most


def _usual_prompt(limits: Limits) -> int:
    # Beside an image it fits into the context: TensorRT compares typical sizes with a fixed cache's rows.
    return min(USUAL_PROMPT, limits.max_text, limits.max_context - limits.visual_tokens)


def _room_range(axis: str, limits: Limits, kept: GoingOn) -> _Range:
    # One size: TensorRT wants a number; see `export.backends.tensorrt.pinned`.
    rows = limits.cached_rows(length_of(axis), kept)
    return rows, rows, rows


def _prefill_range(axis: str, limits: Limits, kept: GoingOn) -> _Range:
    if axis.startswith(ROOM):
        return _room_range(axis, limits, kept)
    if axis.startswith(PAST_AXIS):
        return 0, 0, limits.cached_rows(axis, kept)
    if axis == "visual":
        return 0, limits.visual_tokens, limits.max_visual
    return _plain_range(axis, limits)


def _decode_range(axis: str, limits: Limits, kept: GoingOn) -> _Range:
    if axis.startswith(ROOM):
        return _room_range(axis, limits, kept)
    if axis.startswith(PAST_AXIS):
        most = limits.cached_rows(axis, kept)
        held = rows_going_on(limits.visual_tokens, kept.get(axis, ()))
        filled = _usual_prompt(limits) + (0 if axis == TEXT_PAST else held)
        return 1, min(filled, most), most
    if axis == "visual":
        return 0, 0, 0
    if axis == "text":
        return 1, 1, DECODE_TEXT
    return _plain_range(axis, limits)
