"""Where visual and text rows are: found from the image token wherever it stands."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import DataError
from compressor.layout import layout_of

IMAGE = 99
PICTURE = [IMAGE] * 3


def laid_out(ids, start=0):
    return layout_of(ids, image_token_id=IMAGE, visual_tokens=3, start=start)


def problems(ids):
    with pytest.raises(DataError) as caught:
        laid_out(ids)
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
    layout = laid_out(ids)
    assert layout.visual_index.tolist() == visual
    assert layout.text_index.tolist() == text
    assert layout.text_ids.tolist() == [i for i in ids if i != IMAGE]
    assert layout.images == images
    assert layout.rows == len(ids)
    assert layout.visual_index.dtype == layout.text_index.dtype == layout.text_ids.dtype == np.int64


def test_a_later_turn_starts_where_the_conversation_ends():
    layout = laid_out([5, *PICTURE, 7], start=40)
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
    layout = laid_out(ids, start)
    again = dict.fromkeys(layout.visual_index.tolist(), IMAGE)
    again |= dict(zip(layout.text_index.tolist(), layout.text_ids.tolist(), strict=True))
    assert [again[place] for place in range(start, start + len(ids))] == ids
    assert len(again) == layout.rows == len(ids)
    assert layout.images == parts.count(PICTURE)


def test_a_part_of_an_image_is_refused():
    assert problems([IMAGE, IMAGE, 5]) == (
        "the prompt has 2 image tokens; an image takes 3: give whole images only, and write no "
        "image token into the text",
    )


@pytest.mark.parametrize("ids", [[5, *PICTURE], [], PICTURE])
def test_a_prompt_that_does_not_end_with_text_is_refused(ids):
    assert problems(ids) == (
        "the prompt ends with an image; the next token is predicted from text: put a word after it",
    )


def test_both_reasons_are_given_at_once():
    lines = problems([5, IMAGE])
    assert [line.split(";")[0] for line in lines] == [
        "the prompt has 1 image tokens",
        "the prompt ends with an image",
    ]


def test_an_unfinished_part_may_end_with_an_image_but_needs_a_text_row():
    layout = layout_of([5, *PICTURE], image_token_id=IMAGE, visual_tokens=3, unfinished=True)
    assert layout.visual_index.tolist() == [1, 2, 3]
    assert layout.text_index.tolist() == [0]
    for ids in ([], PICTURE):
        with pytest.raises(DataError, match="ends with an image"):
            layout_of(ids, image_token_id=IMAGE, visual_tokens=3, unfinished=True)
