"""Where visual and text rows are: found from the image token wherever it stands."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import DataError
from compressor.samples.layout import joined, layout_around, layout_of
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
    counts = [rows * count for count in tiles]
    assert np.array_equal(joined(features, counts), np.array(wanted))
    assert joined(torch.from_numpy(features), counts).tolist() == np.array(wanted).tolist()


def test_a_made_up_prompt_has_text_before_and_behind_its_pictures():
    layout = layout_around(np.array([4, 5, 6]), (2, 1), before=2)
    assert layout.text_index.tolist() == [0, 1, 5]
    assert layout.visual_index.tolist() == [2, 3, 4]
    assert (layout.text_ids.tolist(), layout.image_rows, layout.end) == ([4, 5, 6], (2, 1), 6)


def test_text_goes_on_behind_the_last_place_and_behind_the_largest_position():
    prompt = laid_out([5, *PICTURE, 7], 1)
    assert prompt.behind(2, 3).text_index.tolist() == [7, 8, 9]
    assert prompt.behind(0).positions is None
    # Rows of a grid have fewer positions than places, so what follows has too.
    turned = replace(prompt, positions=np.array([[1, 1], [1, 2], [2, 1], [0, 0], [3, 3]]))
    follows = turned.behind(1, 2)
    assert follows.text_index.tolist() == [6, 7]
    assert follows.positions.tolist() == [[5, 5], [6, 6]]
