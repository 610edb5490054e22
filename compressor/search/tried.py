"""Plans that a search has measured, and what it comes to."""

from dataclasses import dataclass, field

from compressor.search.candidates import Choice
from compressor.search.results import HalfFigures


@dataclass
class Tried:
    """A plan that was measured.

    Attributes:
        choice: what it is.
        chosen_on: its figures on the half to choose on.
        judged_on: on the other; None: not yet.
        swaps: exchanges that made it better.
        series: empty, or the one method that it is of.
    """

    choice: Choice
    chosen_on: HalfFigures
    judged_on: HalfFigures | None = None
    swaps: int = 0
    series: str = ""


@dataclass
class SearchOutcome:
    """What a search comes to.

    Attributes:
        front: plans by rising speed-up.
        baselines: of single methods.
        chosen: one of the front.
        why: it was chosen.
        not_tried: what there was no time for, or no use in.
    """

    front: list[Tried]
    baselines: list[Tried]
    chosen: Tried
    why: str
    not_tried: list[str] = field(default_factory=list)
