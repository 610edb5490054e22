"""Buffers of fixed caches begin small and get more room in blocks; pasts stay what they are meanwhile."""

import tracemalloc
import weakref
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from compressor.errors import DataError
from export.graphs.limits import Limits, buffer_bytes
from export.graphs.spec import GraphSpec, decoder_graphs
from export.session.feeds import CallRows
from export.session.fixed_cache import FixedCaches, FixedPast
from tests.decoders import plan_of

BLOCK = 16
N = 12  # visual tokens of an image
LIMITS = Limits(max_batch=1, max_images=2, max_text=64, max_context=100, visual_tokens=N)


class Writer:
    """Stands for a graph: writes into the rows of a call which call it is."""

    def __init__(self, spec: GraphSpec) -> None:
        self.spec, self.calls = spec, 0

    def bound(self, buffers: Mapping[str, np.ndarray]) -> Callable[[Sequence[np.ndarray]], list]:
        # As ONNX Runtime: what was bound stays bound, whatever becomes of the mapping.
        arrays = {spec.name: buffers[spec.name] for spec in self.spec.cached}

        def run(feeds: Sequence[np.ndarray]) -> list:
            self.calls += 1
            filled = dict(zip(self.spec.lengths, (int(a[0]) for a in feeds[4:]), strict=True))
            visual, text = feeds[2].shape[1], feeds[3].shape[1]
            for spec in self.spec.cached:
                count = text + (0 if spec.filled == "past_text" else visual)
                start = filled[spec.filled]
                rows = arrays[spec.name].swapaxes(0, -2 if len(spec.axes) > 2 else 1)
                assert start + count <= len(rows), "written beyond the buffer"
                rows[start : start + count] = self.calls
            return []

        return run


class Decoder:
    """The graphs of a plan, and their caches."""

    def __init__(self, kind: str, block: int = BLOCK, limits: Limits = LIMITS) -> None:
        self.plan = plan_of(kind)
        self.specs = decoder_graphs(self.plan, "float32", "last", limits)
        self.graphs = [Writer(spec) for spec in self.specs]
        self.caches = FixedCaches(self.specs, block)

    def run(self, past: FixedPast, text: int, *visual: int) -> FixedPast:
        """One call on T text rows; on so many visual rows in each graph."""
        call = self.caches.call(past)
        rows = visual or (0,)
        for place, graph in enumerate(self.graphs):
            v = rows[min(place, len(rows) - 1)]
            index = [np.zeros((1, v), np.int64), np.zeros((1, text), np.int64)]
            embeds = [np.zeros((1, count, 1), np.float32) for count in (v, text)]
            call.run(graph, CallRows(*embeds, *index))
        return call.present


def rooms(past: FixedPast, axis: int = 2) -> dict[str, int]:
    """How many rows each buffer has room for."""
    return {name: a.shape[axis] for name, a in past.buffers.arrays.items() if a.ndim == 4}


def content(past: FixedPast) -> list[np.ndarray]:
    """The rows of a past."""
    return [
        np.moveaxis(array, 2 if array.ndim == 4 else 1, 0)[: past.lengths[length]].copy()
        for (_, array), length in zip(past.buffers.arrays.items(), lengths_of(past), strict=True)
    ]


def lengths_of(past: FixedPast) -> list[str]:
    """Of two layers of an exit: the second's caches hold text alone."""
    names = list(past.buffers.arrays)
    return ["past" if ".0." in n or "past_text" not in past.lengths else "past_text" for n in names]


def test_room_is_that_of_the_first_call_and_grows_by_blocks_up_to_the_limit() -> None:
    """By hand: 12 + 5 rows take two blocks of 16, 5 text rows one; 88 rows of text are the limit."""
    decoder = Decoder("exit")
    past = decoder.caches.empty(1)
    assert set(rooms(past).values()) == {0}
    past = decoder.run(past, 5, N)
    whole, text = "past_key_values.0.key", "past_key_values.1.value"
    seen = []
    while past.lengths["past_text"] < 100 - N:
        seen.append((past.lengths["past"], rooms(past)[whole], rooms(past)[text]))
        past = decoder.run(past, 1)
    assert seen[0] == (17, 32, 16)
    assert all(room == min(-(-rows // 16) * 16, 100) for rows, room, _ in seen)
    assert {room for _, _, room in seen} == {16, 32, 48, 64, 80, 88}
    assert rooms(past) == {n: 100 if ".0." in n else 100 - N for n in rooms(past)}
    with pytest.raises(DataError, match=r"101 rows .*room for 100 .*\n?.*89 text rows .*for 88"):
        decoder.run(past, 1)
    assert max(rooms(past).values()) == 100


def test_what_buffers_occupy_grows_to_what_the_plan_says_and_not_beyond() -> None:
    decoder = Decoder("exit")
    most = buffer_bytes(decoder.plan, LIMITS, 4)
    past = decoder.run(decoder.caches.empty(1), 5, N)
    # Three layers, two heads of 16 numbers in float32, keys and values; one layer sees the image.
    row = 2 * 2 * 16 * 4
    assert decoder.caches.buffer_bytes(past) == (32 + 2 * 16) * row < most
    assert decoder.caches.filled_bytes(past) == (17 + 2 * 5) * row
    past = decoder.run(past, 83)
    assert decoder.caches.buffer_bytes(past) == most == (100 + 2 * 88) * row


def test_a_block_as_large_as_the_limit_gives_all_room_at_once() -> None:
    decoder = Decoder("identity", block=LIMITS.max_context)
    past = decoder.run(decoder.caches.empty(1), 1)
    assert set(rooms(past).values()) == {100}


def test_rows_of_every_past_that_is_alive_stay_when_buffers_grow() -> None:
    decoder = Decoder("exit")
    first = decoder.run(decoder.caches.empty(1), 5, N)
    second = decoder.run(first, 3)
    kept = [content(first), content(second)]
    third = decoder.run(second, 40)
    assert third.buffers is first.buffers, "a sequence that nobody shares was copied"
    for past, wanted in zip((first, second), kept, strict=True):
        assert all(map(np.array_equal, content(past), wanted))
    # Another sequence behind the first past, while the third lives: in buffers of its own.
    other = decoder.run(first, 40)
    assert other.buffers is not third.buffers
    for past, wanted in zip((first, second), kept, strict=True):
        assert all(map(np.array_equal, content(past), wanted))
    assert all(np.array_equal(a[: len(b)], b) for a, b in zip(content(other), kept[0], strict=True))


def test_rows_that_nothing_was_written_to_are_zero_after_every_growth() -> None:
    decoder = Decoder("identity")
    past = decoder.run(decoder.caches.empty(1), 5)
    for array in past.buffers.arrays.values():
        array[:, :, 5:] = np.nan  # what a call beyond this past left there
    past = decoder.run(past, 20)
    assert all((a[:, :, 25:] == 0).all() for a in past.buffers.arrays.values())
    assert all(np.isfinite(a).all() for a in past.buffers.arrays.values())


def test_every_stage_has_room_of_its_own() -> None:
    """The gate behind the first layer fires: later stages get no visual rows, and no room for them."""
    decoder = Decoder("staged")
    past = decoder.run(decoder.caches.empty(1), 5, 2 * N, 0, 0)
    assert past.lengths == {"past": 29, "past_1": 5, "past_2": 5}
    assert rooms(past) == {n: 32 if ".0." in n else 16 for n in rooms(past)}
    past = decoder.run(past, 5)
    assert rooms(past) == {n: 48 if ".0." in n else 16 for n in rooms(past)}


def test_which_rows_are_visual_has_as_much_room_as_the_caches_beside_it() -> None:
    decoder = Decoder("window")
    past = decoder.run(decoder.caches.empty(1), 30, N)
    told = past.buffers.arrays["past_visual"]
    assert told.shape == (1, 48)
    assert rooms(past)["past_key_values.0.key"] == 48


def test_a_past_that_goes_on_where_a_longer_sequence_was_gets_shorter_buffers() -> None:
    decoder = Decoder("identity")
    prefix = decoder.run(decoder.caches.empty(1), 5, N)
    kept = content(prefix)
    answer = decoder.run(prefix, 80)
    assert set(rooms(answer).values()) == {100}
    del answer
    again = decoder.run(prefix, 1)
    assert again.buffers is prefix.buffers
    assert set(rooms(again).values()) == {32}
    assert all(map(np.array_equal, content(prefix), kept))


def test_memory_holds_one_buffer_twice_while_room_is_made_and_nothing_old_afterwards() -> None:
    limits = LIMITS.model_copy(update={"max_context": 40_000})
    decoder = Decoder("identity", block=10_000, limits=limits)
    tracemalloc.start()
    try:
        past = decoder.run(decoder.caches.empty(1), 9_999)
        old = [weakref.ref(array) for array in past.buffers.arrays.values()]
        tracemalloc.reset_peak()
        past = decoder.run(past, 2)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    one = past.buffers.arrays["past_key_values.0.key"].nbytes
    assert one == 2 * 16 * 4 * 20_000
    assert not [ref for ref in old if ref() is not None]
    # Six of them, and while the last was made an old one of half the size.
    assert 6 * one <= now < 6.1 * one
    assert 6.5 * one <= peak < 6.6 * one


def test_buffers_between_which_memory_ran_out_are_made_equal_by_the_next_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder = Decoder("identity")
    past = decoder.run(decoder.caches.empty(1), 5, N)
    kept = content(past)
    empty, made = np.empty, 0

    def failing(*arguments: object, **options: object) -> np.ndarray:
        nonlocal made
        made += 1
        if made == 4:
            raise MemoryError
        return empty(*arguments, **options)  # type: ignore[call-overload, no-any-return]

    with monkeypatch.context() as patch:
        patch.setattr("export.session.fixed_cache.np.empty", failing)
        with pytest.raises(MemoryError):
            decoder.run(past, 60)
    assert len(set(rooms(past).values())) == 2
    past = decoder.run(past, 1)
    assert set(rooms(past).values()) == {32}
    assert all(np.array_equal(a[: len(b)], b) for a, b in zip(content(past), kept, strict=True))
