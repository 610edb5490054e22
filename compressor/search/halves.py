"""The questions of a search in two halves: plans are chosen on one and judged on the other."""

import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from compressor.contract.searched import SearchedMethod
from compressor.errors import DataError, PlanError
from compressor.samples.questions import Sample
from compressor.schema.problems import nearest

if TYPE_CHECKING:
    from pathlib import Path

MOST_SINGLES = 64
"""Questions that calibration and single changes are measured on."""

Halves = tuple[tuple[int, ...], tuple[int, ...]]
"""Places of the questions to choose on, and of those to judge on, ascending."""


def split(samples: Sequence[Sample], seed: int) -> Halves:
    """Return the two halves; questions of one picture are in one of them.

    Raises:
        DataError: there are no two questions with different pictures.
    """
    groups = list(_by_picture(samples))
    if len(groups) < 2:
        raise DataError(
            [
                "a search chooses plans on one half of the questions and judges them on the other, and all "
                "of these share one picture; give questions of more pictures"
            ]
        )
    random.Random(seed).shuffle(groups)  # noqa: S311
    halves: tuple[list[int], list[int]] = ([], [])
    for group in groups:
        smaller = halves[0] if len(halves[0]) <= len(halves[1]) else halves[1]
        smaller += group
    choose, judge = (tuple(sorted(half)) for half in halves)
    return choose, judge


def _by_picture(samples: Sequence[Sample]) -> Iterable[list[int]]:
    """Return the questions that share pictures, directly or by others, in the order of their first."""
    group_of: dict[Path, list[int]] = {}
    groups: list[list[int]] = []
    for place, sample in enumerate(samples):
        joined = [place]
        touching = {id(g): g for path in sample.images if (g := group_of.get(path)) is not None}
        for group in touching.values():
            joined += group
            groups.remove(group)
        groups.append(joined)
        for member in joined:
            group_of.update(dict.fromkeys(samples[member].images, joined))
    return sorted(groups, key=min)


def measured_alone(places: Sequence[int]) -> tuple[int, ...]:
    """Return those of the questions to choose on that single changes are measured on, evenly taken."""
    step = max(1, -(-len(places) // MOST_SINGLES))
    return tuple(places[::step])


def check_floor(searched: SearchedMethod, where: str, samples: Sequence[Sample]) -> None:
    """Refuse floors of kinds that no question has.

    Raises:
        PlanError: a line for each.
    """
    kinds = sorted({sample.kind for sample in samples if sample.kind})
    drawn = f"the {len(samples)} that were drawn"
    known = f"{drawn} have: {', '.join(kinds)}" if kinds else f"{drawn} have no kinds"
    if unknown := [kind for kind in searched.floor or {} if kind not in kinds]:
        raise PlanError(
            f"{where}.floor.{kind}: no question of the search is of this kind{nearest(kind, kinds)} ({known})"
            for kind in unknown
        )
