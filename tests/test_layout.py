"""Where visual and text rows are: found from the image token wherever it stands."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import Qwen2VLModel

from compressor.errors import DataError
from compressor.samples.layout import Layout, joined, layout_around, layout_of
from tests import facts

IMAGE = 99
PICTURE = [IMAGE] * 3
MODEL = facts.facts(facts.dims(vocab=100), visual_tokens=3, image_token_id=IMAGE)


def laid_out(ids, images, start=0, **more):
    return layout_of(ids, MODEL, (3,) * images, start=start, **more)


def problems(ids, images=0, **more):
    with pytest.raises(DataError) as caught:
        laid_out(ids, images, **more)
    return caught.value.problems


@pytest.mark.parametrize(
    ("ids", "visual", "text", "images"),
    [
        ([*PICTURE, 7, 8], [0, 1, 2], [3, 4], 1),
        ([5, *PICTURE, 7], [1, 2, 3], [0, 4], 1),
        ([5, 6, 7], [], [0, 1, 2], 0),
        ([*PICTURE, *PICTURE, 7], [0, 1, 2, 3, 4, 5], [6], 2),
        ([*PICTURE, 5, *PICTURE, 7], [0, 1, 2, 4, 5, 6], [3, 7], 2),
    ],
)
def test_rows_are_found_with_the_image_first_in_the_middle_several_times_and_not_at_all(
    ids, visual, text, images
):
    layout = laid_out(ids, images)
    assert layout.visual_index.tolist() == visual
    assert layout.text_index.tolist() == text
    assert layout.text_ids.tolist() == [i for i in ids if i != IMAGE]
    assert layout.images == images
    assert layout.rows == len(ids)
    assert layout.visual_index.dtype == layout.text_index.dtype == layout.text_ids.dtype == np.int64


def test_a_later_turn_starts_where_the_conversation_ends():
    layout = laid_out([5, *PICTURE, 7], 1, start=40)
    assert layout.visual_index.tolist() == [41, 42, 43]
    assert layout.text_index.tolist() == [40, 44]


@given(
    st.lists(st.one_of(st.integers(0, 98).map(lambda i: [i]), st.just(PICTURE)), max_size=20),
    st.integers(0, 98),
    st.integers(0, 1000),
)
def test_every_place_is_one_row_of_one_kind_and_the_prompt_can_be_put_together_again(
    parts, last, start
):
    ids = [i for part in parts for i in part] + [last]
    layout = laid_out(ids, parts.count(PICTURE), start)
    again = dict.fromkeys(layout.visual_index.tolist(), IMAGE)
    again |= dict(zip(layout.text_index.tolist(), layout.text_ids.tolist(), strict=True))
    assert [again[place] for place in range(start, start + len(ids))] == ids
    assert len(again) == layout.rows == len(ids)
    assert layout.images == parts.count(PICTURE)


def test_a_part_of_an_image_is_refused():
    assert problems([IMAGE, IMAGE, 5], 1) == (
        "the prompt has 2 image tokens (id 99), but 1 picture(s) of 3 rows come with it: give each "
        "picture its place in the prompt, and write no image token into the text",
    )


@pytest.mark.parametrize(
    ("ids", "images"),
    [([5, 7], 1), ([5, *PICTURE, 7], 0), ([5, *PICTURE, 7], 2), ([*PICTURE, *PICTURE, 7], 1)],
    ids=["dropped", "none given", "one dropped", "one too many places"],
)
def test_a_picture_without_a_place_and_a_place_without_a_picture_are_refused(ids, images):
    (line,) = problems(ids, images)
    assert f"has {ids.count(IMAGE)} image tokens (id 99), but {images} picture(s) of 3" in line


def test_tokens_without_a_row_in_the_embedding_table_are_refused_by_text_and_id():
    words = {100: "<new>", 104: "<other>"}
    (line,) = problems([5, 100, *PICTURE, 104, 100, 99 + 1, 7], 1, spell=words.get)
    assert "tokens without an embedding: '<new>' (id 100), '<other>' (id 104); " in line
    assert "ids 0 to 99" in line
    assert laid_out([98, 7], 0).text_ids.tolist() == [98, 7]
    # The image token's own row is never read.
    assert layout_of([200, 7], MODEL.model_copy(update={"image_token_id": 200}), (1,)).images == 1


@pytest.mark.parametrize("ids", [[5, *PICTURE], [], PICTURE])
def test_a_prompt_that_does_not_end_with_text_is_refused(ids):
    assert problems(ids, ids.count(IMAGE) // 3) == (
        "the prompt ends with an image; the next token is predicted from text: put a word after it",
    )


def test_both_reasons_are_given_at_once():
    lines = problems([5, IMAGE])
    assert [line.split(";")[0] for line in lines] == [
        "the prompt has 1 image tokens (id 99), but 0 picture(s) of 3 rows come with it: give each picture "
        "its place in the prompt, and write no image token into the text",
        "the prompt ends with an image",
    ]


def test_an_unfinished_part_may_end_with_an_image_but_needs_a_text_row():
    layout = laid_out([5, *PICTURE], 1, unfinished=True)
    assert layout.visual_index.tolist() == [1, 2, 3]
    assert layout.text_index.tolist() == [0]
    for ids in ([], PICTURE):
        with pytest.raises(DataError, match="ends with an image"):
            laid_out(ids, len(ids) // 3, unfinished=True)


def test_pictures_of_one_prompt_may_have_different_numbers_of_rows():
    layout = layout_of([5, *PICTURE, 6, IMAGE, *PICTURE, *PICTURE, 7], MODEL, (3, 1, 6), start=10)
    assert layout.image_rows == (3, 1, 6)
    assert layout.images == 3
    assert layout.visual_index.tolist() == [11, 12, 13, *range(15, 22)]
    assert layout.text_index.tolist() == [10, 14, 22]
    assert layout.end == 23


def test_unequal_counts_that_are_not_those_of_the_prompt_are_all_named():
    with pytest.raises(DataError) as caught:
        layout_of([5, *PICTURE, *PICTURE, 7], MODEL, (4, 2, 4))
    (line,) = caught.value.problems
    assert "has 6 image tokens (id 99), but 3 picture(s) of 4 and 2 rows come with it" in line


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 3))
def test_rows_of_the_tiles_of_all_pictures_are_joined_in_their_order(tiles, batch):
    rows, width = 3, 2
    features = np.random.default_rng(0).standard_normal((batch * sum(tiles), rows, width))
    wanted = [
        [features[b * sum(tiles) + i, k] for i in range(sum(tiles)) for k in range(rows)]
        for b in range(batch)
    ]
    assert np.array_equal(joined(features, batch), np.array(wanted))
    assert joined(torch.from_numpy(features), batch).tolist() == np.array(wanted).tolist()


def test_a_made_up_prompt_has_text_before_and_behind_its_pictures():
    layout = layout_around(np.array([4, 5, 6]), (2, 1), before=2)
    assert layout.text_index.tolist() == [0, 1, 5]
    assert layout.visual_index.tolist() == [2, 3, 4]
    assert (layout.text_ids.tolist(), layout.image_rows, layout.end) == ([4, 5, 6], (2, 1), 6)


SEVERAL = MODEL.model_copy(update={"decoder": facts.dims(vocab=100, rope_axes=(0, 1))})


def picture(grid: tuple[int, int]) -> list[int]:
    return [IMAGE] * (grid[0] * grid[1])


def positions_of(parts: list[int | tuple[int, int]], **more: Any) -> tuple[Layout, NDArray[Any]]:
    """Return a prompt's layout, and its positions [S, 3] in the order of the prompt; a grid is a picture."""
    grids = [part for part in parts if isinstance(part, tuple)]
    ids = [i for part in parts for i in ([part] if isinstance(part, int) else picture(part))]
    layout = layout_of(ids, SEVERAL, [h * w for h, w in grids], grids=grids, **more)
    places = np.concatenate([layout.visual_index, layout.text_index])
    return layout, layout.positions[np.argsort(places)]


PARTS = st.lists(
    st.one_of(st.integers(5, 9), st.tuples(st.integers(1, 5), st.integers(1, 5))), max_size=6
)


@given(PARTS)
def test_positions_on_three_axes_are_those_of_transformers(parts):
    # There two pictures that touch are one group; a chat template never writes them so.
    parts = [p for part in parts for p in (part, 8)] or [8]
    layout, found = positions_of(parts)
    ids = np.full((1, layout.end), 8)
    ids[0, layout.visual_index] = IMAGE
    grids = [(1, *part) for part in parts if isinstance(part, tuple)]
    asked = SimpleNamespace(
        config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=1)),
        get_vision_position_ids=partial(Qwen2VLModel.get_vision_position_ids, None),
    )
    wanted, delta = Qwen2VLModel.get_rope_index(
        asked, torch.from_numpy(ids), torch.from_numpy(ids == IMAGE).int(), torch.tensor(grids)
    )
    assert found.tolist() == wanted[:, 0].T.tolist()
    step = layout.behind(2)
    assert step.positions.tolist() == [[step.text_index[0] + delta.item()] * 3]


def test_pictures_that_touch_have_positions_behind_each_other():
    _, found = positions_of([5, (2, 3), (3, 1), 7])
    assert found.T.tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 4, 4, 4, 7],
        [0, 1, 1, 1, 2, 2, 2, 4, 5, 6, 7],
        [0, 1, 2, 3, 1, 2, 3, 4, 4, 4, 7],
    ]


@given(PARTS, PARTS)
def test_a_later_turn_has_the_positions_that_it_has_in_the_whole_conversation(before, after):
    first, second = [5, *before, 6], [5, *after, 6]
    layout, _ = positions_of(first)
    earlier = [part for part in before if isinstance(part, tuple)]
    later, found = positions_of(second, start=layout.end, earlier=earlier)
    whole, wanted = positions_of(first + second)
    assert found.tolist() == wanted[layout.end :].tolist()
    assert later.behind(3).positions.tolist() == whole.behind(3).positions.tolist()
    # Without pictures of its own it goes on as a step does.
    if not any(isinstance(part, tuple) for part in after):
        assert layout.behind(0, len(second)).positions.tolist() == found.tolist()


def test_made_up_prompts_have_the_positions_of_the_models_own_grid():
    model = SEVERAL.model_copy(update={"token_grid": (1, 3)})
    layout = layout_around(np.array([5, 6, 7]), (3, 3), facts=model)
    wanted = layout_of([5, *PICTURE, *PICTURE, 6, 7], model, (3, 3))
    assert layout.positions.tolist() == wanted.positions.tolist()
    assert layout_around(np.array([5, 6, 7]), (3, 3)).positions is None
    assert layout_of([5, *PICTURE, 6], MODEL, (3,)).positions is None


@pytest.mark.parametrize("grids", [None, [(1, 3)], [(1, 3), (2, 2)]])
def test_pictures_that_are_not_on_their_grids_are_refused(grids):
    with pytest.raises(ValueError, match=r"pictures of \(3, 3\) tokens are not on grids of"):
        layout_of([5, *PICTURE, *PICTURE, 6], SEVERAL, (3, 3), grids=grids)


def test_text_goes_on_behind_the_last_place_and_behind_the_largest_position():
    prompt = laid_out([5, *PICTURE, 7], 1)
    assert prompt.behind(2, 3).text_index.tolist() == [7, 8, 9]
    assert prompt.behind(0).positions is None
    # Rows of a grid have fewer positions than places, so what follows has too.
    turned = replace(prompt, positions=np.array([[1, 1], [1, 2], [2, 1], [0, 0], [3, 3]]))
    follows = turned.behind(1, 2)
    assert follows.text_index.tolist() == [6, 7]
    assert follows.positions.tolist() == [[5, 5], [6, 6]]
