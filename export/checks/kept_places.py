"""Which visual tokens of the pictures of some questions go on, for the reports to show."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from compressor.samples.pictures import load_image
from compressor.samples.questions import Sample
from export.results.answers import Answers, KeptPlaces
from export.runtime.images import rows_of

if TYPE_CHECKING:
    from export.runtime.runtime import Runtime


def with_places(
    runtime: "Runtime", samples: Sequence[Sample], answers: Answers, shown: Collection[int]
) -> Answers:
    """Return answers that hold the places of the visual tokens that go on; see `Answer.kept`.

    Args:
        runtime: that answered; one that keeps all visual tokens, or some of grids that are not the pictures'
            tiles, leaves the answers as they are.
        samples: that were asked.
        answers: to all of them.
        shown: places of the samples that a report shows.
    """
    if runtime.session.rows_kept is None or runtime.facts.grids_differ:
        return answers
    found = list(answers.answers)
    for place in shown:
        if samples[place].images:
            kept = kept_places(runtime, samples[place])
            found[place] = found[place].model_copy(update={"kept": kept})
    return replace(answers, answers=tuple(found))


def kept_places(runtime: "Runtime", sample: Sample) -> tuple[KeptPlaces, ...]:
    """Return which visual tokens of each picture of a question go on, as the vision graph chooses."""
    opened = [load_image(path) for path in sample.images]
    seen = runtime.look(opened)
    kept = np.asarray(rows_of(runtime.session, seen).kept)
    starts, tile_rows = np.cumsum([0, *(one.rows for one in seen)]), runtime.facts.tile_rows

    def places(first: int) -> tuple[int, ...]:
        return tuple((kept[(kept >= first) & (kept < first + tile_rows)] - first).tolist())

    return tuple(
        KeptPlaces(
            size=(image.height, image.width),
            tiles=tuple(places(start + tile_rows * tile) for tile in range(len(one.pixels))),
        )
        for image, one, start in zip(opened, seen, starts, strict=False)
    )
