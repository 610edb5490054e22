"""TensorRT engines behind the session call: profiles, shapes, and which memory is used when.

What only a GPU can do is in `cuda_engines`. Caches stay on the device between calls. Every output gets a
buffer that no living value uses, so that a value that a call returned is never overwritten by a later one.
Buffers have the size of the largest profile and are used again once nobody holds their value: a conversation
settles at two buffers for each cache.
"""

import math
from collections.abc import Mapping, Sequence
from threading import RLock
from typing import Any, Protocol

import numpy as np

from compressor.errors import BackendError, DataError
from export.artifact.engine_set import EngineEntry, OpenedSet
from export.graphs.limits import Limits
from export.graphs.profiles import profile_for, sizes_of
from export.graphs.spec import SIDES, GraphSpec, TensorSpec
from export.session.arrays import Array
from export.session.session import GraphSession, Past

Shape = tuple[int, ...]
# An input without rows still needs an address.
LEAST_BYTES = 16


class Device(Protocol):
    """Memory of a GPU, and the engines that were loaded there."""

    def allocate(self, size: int) -> int:
        """Return the address of so many bytes."""
        ...

    def write(self, address: int, array: Array) -> None:
        """Copy a contiguous array there."""
        ...

    def read(self, address: int, array: Array) -> None:
        """Fill a contiguous array from there."""
        ...

    def run(
        self,
        graph: str,
        profile: int,
        inputs: Mapping[str, tuple[int, Shape]],
        outputs: Mapping[str, int],
    ) -> Mapping[str, Shape]:
        """Run an engine to its end.

        Args:
            graph: whose engine.
            profile: its place among the engine's.
            inputs: address and shape by name.
            outputs: address by name.

        Returns:
            The shapes of the outputs by name.
        """
        ...


class Pool:
    """Buffers of one device by size; those that nobody holds are used again."""

    def __init__(self, device: Device) -> None:
        self.device = device
        # An engine has one context, whose addresses and shapes are those of one call.
        self.lock = RLock()
        self._free: dict[int, list[int]] = {}

    def take(self, size: int) -> "DeviceBuffer":
        """Return a buffer of so many bytes, or of the least size."""
        size = max(size, LEAST_BYTES)
        free = self._free.setdefault(size, [])
        return DeviceBuffer(self, free.pop() if free else self.device.allocate(size), size)

    def give_back(self, address: int, size: int) -> None:
        """Take back a buffer whose value is gone."""
        self._free[size].append(address)


class DeviceBuffer:
    """Bytes on the device; they go back to the pool with the last reference."""

    def __init__(self, pool: Pool, address: int, size: int) -> None:
        self.pool, self.address, self.size = pool, address, size

    def __del__(self) -> None:
        self.pool.give_back(self.address, self.size)


class DeviceValue:
    """An output that stays on the device until it is read."""

    def __init__(self, buffer: DeviceBuffer, spec: TensorSpec, shape: Shape) -> None:
        self.buffer = buffer
        self._spec, self._shape = spec, shape

    def shape(self) -> Shape:
        """Return its shape."""
        return self._shape

    def numpy(self) -> Array:
        """Return a copy in this process's memory."""
        array: Array = np.empty(self._shape, self._spec.numpy)
        if array.size:
            self.buffer.pool.device.read(self.buffer.address, array)
        return array


class EngineGraph:
    """One engine behind the graph call.

    Args:
        pool: of the device that its engine was loaded on.
        spec: the declaration of the graph that it was built from.
        entry: what it was built for.
        limits: of its set.
        target: for errors.
    """

    def __init__(
        self, pool: Pool, spec: GraphSpec, entry: EngineEntry, limits: Limits, target: str
    ) -> None:
        self.spec = spec
        self._pool, self._entry, self._limits, self._target = pool, entry, limits, target
        # Inputs that come as arrays; a call has ended before the next one writes them.
        self._staging: dict[str, DeviceBuffer] = {}
        self._bytes = {spec.name: self._most_bytes(spec) for spec in (*spec.inputs, *spec.outputs)}

    def __call__(self, feeds: Sequence[Any]) -> list[Any]:
        """Run on inputs in declared order: arrays, or values on the device that an earlier call returned.

        Raises:
            BackendError: the call is larger than what the engine was built for.
        """
        with self._pool.lock:
            return self._run(feeds)

    def _run(self, feeds: Sequence[Any]) -> list[Any]:
        shapes = tuple(tuple(f.shape if isinstance(f, np.ndarray) else f.shape()) for f in feeds)
        sizes = sizes_of(self.spec.inputs, shapes)
        profile = profile_for(self._entry.profiles, sizes, self._limits, self._target)
        inputs = {
            spec.name: (self._address(spec, feed), shape)
            for spec, feed, shape in zip(self.spec.inputs, feeds, shapes, strict=True)
        }
        outputs = {spec.name: self._pool.take(self._bytes[spec.name]) for spec in self.spec.outputs}
        addresses = {name: buffer.address for name, buffer in outputs.items()}
        found = self._pool.device.run(self.spec.name, profile, inputs, addresses)
        return [
            DeviceValue(outputs[spec.name], spec, found[spec.name]) for spec in self.spec.outputs
        ]

    def _address(self, spec: TensorSpec, feed: Any) -> int:
        if not isinstance(feed, np.ndarray):
            return int(feed.buffer.address)
        if spec.name not in self._staging:
            self._staging[spec.name] = self._pool.take(self._bytes[spec.name])
        address = self._staging[spec.name].address
        if feed.size:
            self._pool.device.write(address, np.ascontiguousarray(feed, spec.numpy))
        return address

    def _most_bytes(self, spec: TensorSpec) -> int:
        counts = [
            math.prod(spec.shape(_with_totals(profile.most, spec, self.spec.pixel_multiple)))
            for profile in self._entry.profiles
        ]
        return max(counts) * spec.numpy.itemsize


def _with_totals(most: Mapping[str, int], spec: TensorSpec, cell: int) -> dict[str, int]:
    """Add the axes that outputs alone have: cells of pictures, what a cache holds after a call, min(V, 1)."""
    sizes = {**most, "asked": 1}
    if set(SIDES) <= set(most):
        sizes["rows"] = math.prod(most[side] // cell for side in SIDES)
    for axis in spec.axes:
        if isinstance(axis, str) and axis.startswith("total"):
            past = axis.replace("total", "past", 1)
            sizes[axis] = most[past] + most["visual"] + most["text"]
    return sizes


class EngineSession(GraphSession[EngineGraph]):
    """An artifact's engines; see `GraphSession`.

    Args:
        graphs: of the artifact.
        engines: the set, checked.
        device: that its engines are loaded on when they are first used.
        decoder: see `GraphSession`.
    """

    def __init__(
        self,
        graphs: Sequence[GraphSpec],
        engines: OpenedSet,
        device: Device,
        *,
        decoder: str = "decoder",
    ) -> None:
        self.engines = engines
        pool, facts = Pool(device), engines.facts
        entries = {entry.graph: entry for entry in facts.engines}

        def open_graph(spec: GraphSpec) -> EngineGraph:
            if spec.name not in entries:
                raise BackendError(
                    f"{engines.folder}: has no engine of {spec.name}; build it with "
                    f"`vtcompress build ARTIFACT --target {engines.facts.target} --with-baseline`"
                )
            return EngineGraph(pool, spec, entries[spec.name], facts.limits, facts.target)

        super().__init__(graphs, open_graph, decoder)
        self._limits = facts.limits

    def check_room(self, past: Past, visual: int, text: int) -> None:
        """See `Session.check_room`; engines are built for a context too.

        Raises:
            DataError: the rows are more than it.
        """
        shapes = () if past is None else self.past_shapes(past)
        filled = max((shape[2] for shape in shapes if len(shape) > 2), default=0)
        rows = filled + visual + text
        if rows > self._limits.max_context:
            raise DataError(
                f"{rows} rows with the tokens to come; the engines were built for "
                f"{self._limits.max_context}: ask for fewer tokens or a shorter prompt, or build them anew "
                f"with `vtcompress build ARTIFACT --target {self.engines.facts.target} --max-context {rows}`"
            )

    @property
    def max_batch(self) -> int | None:
        """See `Session.max_batch`."""
        return self._decoders[0].batch or self._limits.max_batch
