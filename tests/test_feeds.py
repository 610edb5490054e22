"""What graphs are fed follows from their declaration, for every kind of plan and cache."""

from typing import Any

import numpy as np
import pytest

from compressor.facts import ModelFacts
from compressor.plan.plan import Plan
from compressor.samples.layout import layout_around
from compressor.schema.sections import ProfilesSection
from export.graphs.limits import Limits, limits_of
from export.graphs.profiles import sizes_of
from export.graphs.spec import GraphSpec, decoder_graph, decoder_graphs, vision_graph
from export.session.feeds import CallRows, feeds_of, prompt_rows, text_rows
from export.session.session import GraphSession
from tests.decoders import KINDS, plan_of
from tests.facts import facts

N, TEXT = 12, 5
LIMITS = Limits(max_batch=1, max_images=2, max_text=16, max_context=40, visual_tokens=N)
CALLS = [(2, TEXT, 0), (0, 3, 2 * N + TEXT)]  # images, text rows, rows in the caches


def rows_of(images: int, batch: int, plan: Plan) -> CallRows:
    hidden = plan.model.decoder.hidden
    layout = layout_around(np.zeros(TEXT, np.int64), (N,) * images, facts=plan.model)
    text = np.ones((batch, TEXT, hidden), np.float16)
    if not images:
        return text_rows(layout.behind(0, 3), text[:, :3])
    return prompt_rows(layout, text, (np.ones((batch * images, N, hidden), np.float16),))


def on_three_axes(plan: Plan) -> Plan:
    decoder = plan.model.decoder
    axes = tuple(i % 3 for i in range(decoder.head_dim // 2))
    turned = decoder.model_copy(update={"rope_axes": axes})
    return plan.model_copy(update={"model": plan.model.model_copy(update={"decoder": turned})})


def past_of(spec: GraphSpec, batch: int, rows: int) -> dict[str, Any]:
    sizes = {"batch": batch, "past": rows, "past_text": TEXT if rows else 0}
    return {tensor.name: np.zeros(tensor.shape(sizes), tensor.numpy) for tensor in spec.cached}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("images", "text", "before"), CALLS)
def test_feeds_have_the_order_the_sizes_and_the_dtypes_that_are_declared(
    kind: str, images: int, text: int, before: int
) -> None:
    plan = plan_of(kind)
    for spec in decoder_graphs(plan, "float16", "last"):
        batch = spec.batch or 2
        rows = rows_of(images, batch, plan)
        feeds = feeds_of(spec, rows, past_of(spec, batch, before))
        # Every axis has one size in a call, and as many inputs as there are declared.
        sizes = sizes_of(spec.inputs, [feed.shape for feed in feeds])
        assert (sizes["visual"], sizes["text"]) == (images * N, text)
        assert [feed.dtype for feed in feeds] == [tensor.numpy for tensor in spec.inputs]


@pytest.mark.parametrize("kind", KINDS)
def test_of_fixed_caches_their_lengths_are_fed_and_their_buffers_are_not(kind: str) -> None:
    plan = plan_of(kind)
    for spec in decoder_graphs(plan, "float16", "last", LIMITS):
        rows = rows_of(2, 1, plan)
        filled = {f"{name}_length": np.zeros(1, np.int64) for name in spec.lengths}
        feeds = feeds_of(spec, rows, filled)
        fed = [tensor for tensor in spec.inputs if tensor not in spec.cached]
        sizes_of(fed, [feed.shape for feed in feeds])
        assert [feed.dtype for feed in feeds] == [tensor.numpy for tensor in fed]


class Kept:
    """Stands for a graph: keeps what it is fed, gives zeros of the declared shapes."""

    def __init__(self, spec: GraphSpec) -> None:
        self.spec, self.feeds = spec, []

    def __call__(self, feeds: list[Any]) -> list[np.ndarray]:
        self.feeds.append(feeds)
        sizes = sizes_of(self.spec.inputs, [feed.shape for feed in feeds])
        more = {
            axis.replace("past", "total", 1): rows + sizes["text"] + sizes["visual"]
            for axis, rows in sizes.items()
            if axis.startswith("past")
        }
        sizes |= more | {"asked": min(sizes["visual"], 1)}
        found = [np.zeros(t.shape(sizes), t.numpy) for t in self.spec.outputs]
        for tensor, array in zip(self.spec.outputs, found, strict=True):
            if tensor.name == "gate_logits":
                array[:, 1] = 1  # it fires
        return found


def test_stages_pass_states_on_and_behind_a_gate_that_fires_text_rows_and_their_positions() -> None:
    plan = on_three_axes(plan_of("staged"))
    specs = decoder_graphs(plan, "float32", "last")
    graphs = {spec.name: Kept(spec) for spec in specs}
    session = GraphSession(specs, lambda spec: graphs[spec.name])
    rows = rows_of(2, 1, plan)
    positions = np.arange(3 * (2 * N + TEXT), dtype=np.int64)[::-1].reshape(1, -1, 3)
    session.decode(rows._replace(positions=positions), session.empty_past(1))
    first, second, third = (graph.feeds[0] for graph in graphs.values())
    assert first[0].shape[1] == 2 * N
    assert np.array_equal(np.concatenate(first[-2:], axis=1), positions)
    for later in (second, third):
        assert (later[0].shape[1], later[2].shape[1]) == (0, 0)
        assert np.array_equal(later[3], rows.text_index)
        assert later[-2].shape == (1, 0, 3)
        assert np.array_equal(later[-1], positions[:, 2 * N :])


def test_positions_are_fed_where_they_are_declared_and_are_else_the_places() -> None:
    plan = plan_of("identity")
    spec = decoder_graph(plan, "float32", "last")
    rows, past = rows_of(2, 2, plan), past_of(spec, 2, 0)
    places = np.concatenate([rows.visual_index, rows.text_index], axis=1)[..., None]
    turned = decoder_graph(on_three_axes(plan), "float32", "last")
    assert turned.cached == spec.cached
    assert [t.axes for t in turned.inputs[-2:]] == [("batch", "visual", 3), ("batch", "text", 3)]
    other = np.tile(places, (1, 1, 3)) // 2
    of_visual, of_text = feeds_of(turned, rows._replace(positions=other), past)[-2:]
    assert np.array_equal(of_visual, other[:, : 2 * N])
    assert np.array_equal(of_text, other[:, 2 * N :])
    with pytest.raises(ValueError, match=r"not the same: text_positions, visual_positions$"):
        feeds_of(turned, rows, past)
    # One input for both: what is equal needs no second, what differs has none.
    assert len(feeds_of(spec, rows._replace(positions=places), past)) == len(spec.inputs)
    with pytest.raises(ValueError, match="decoder: turns rotations by places"):
        feeds_of(spec, rows._replace(positions=other), past)


def test_an_input_without_a_value_and_a_value_without_an_input_are_named() -> None:
    plan = plan_of("identity")
    spec = decoder_graph(plan, "float32", "last")
    rows, past = rows_of(2, 2, plan), past_of(spec, 2, 0)
    del past["past_key_values.1.value"]
    with pytest.raises(ValueError, match=r"not the same: more, past_key_values\.1\.value$"):
        feeds_of(spec, rows, past | {"more": rows.text_index})


class Three(ModelFacts):
    """Facts in which the three numbers differ that are one in most models."""

    @property
    def picture_rows(self) -> int:
        return 7

    @property
    def tile_rows(self) -> int:
        return 5

    @property
    def grid_cells(self) -> int:
        return 6


def test_rows_of_tiles_and_pictures_and_cells_of_a_grid_are_read_where_each_is_meant() -> None:
    """Only facts read the number that is stored for all three."""
    plan = plan_of("window")
    three = Three(**facts(plan.model.decoder, token_grid=(3, 4)).model_dump())
    plan = plan.model_copy(update={"model": three})
    assert vision_graph(three, "float32").outputs[0].axes[1] == 5
    assert plan.visual == 7 * plan.workload.images
    assert limits_of(ProfilesSection(), three).max_visual == 7
    assert decoder_graph(plan, "float32", "last").visual_multiple == 6
