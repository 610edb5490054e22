"""Made-up searches: what their reports read."""

from collections.abc import Sequence
from typing import Any

from compressor.search.results import (
    FrontPoint,
    HalfFigures,
    KeptAnswers,
    SearchReport,
    Single,
)
from tests import facts

QUESTIONS = 100


def kept(kind: str, count: int, of: int = QUESTIONS) -> KeptAnswers:
    """Return answers of a half, of which the original has all right and a plan so many."""
    return KeptAnswers(kind=kind, questions=of, original=of, kept=count, won=0)


def half(count: int, kl: float, kinds: Sequence[str] = ("count", "pick")) -> HalfFigures:
    """Return figures of one half; the first kind loses what is lost."""
    part = QUESTIONS // len(kinds)
    lost = QUESTIONS - count
    each = [kept(kind, part - lost * (not place), part) for place, kind in enumerate(kinds)]
    return HalfFigures(kl=kl, overall=kept("all", count), kinds=tuple(each))


def plan_point(speed: float, counts: tuple[int, int], kl: float, **changes: Any) -> FrontPoint:
    """Return a plan that keeps so many answers of the half that it was chosen on, and of the other."""
    series = changes.get("series", "")
    name = f"{series}-{speed:.2f}x".lstrip("-")
    values: dict[str, Any] = {
        "name": name,
        "label": "2 of 6 frozen, 2 with 1/4 of the neurons",
        "plan": f"plans/{name}.json",
        "predicted": speed,
        "predicted_prefill": speed,
        "kv_bytes": 1 / speed,
        "summed_kl": kl / speed,
        "chosen_on": half(counts[0], kl),
        "judged_on": half(counts[1], kl * 1.1),
        "layers": ("all", "all", "1/4 of the neurons", "1/4 of the neurons", "frozen", "frozen"),
        "reasons": (
            *("kept whole: of its changes the one that changes answers least costs 0.2 nats alone",)
            * 2,
            *(
                "1/4 of the neurons: alone it changes answers by 0.001 nats and saves 8.0% of the work",
            )
            * 2,
            "frozen: alone it changes answers by 0.002 nats and saves 16.0% of the work",
            "nobody reads what visual tokens become here, so that freezing them is exact",
        ),
    }
    return FrontPoint(**(values | changes))


def search_report(*points: FrontPoint, chosen: str, **changes: Any) -> SearchReport:
    """Return a search with these plans."""
    values: dict[str, Any] = {
        "tools": {"vtcompress": "0"},
        "model": "tiny",
        "model_digest": "0" * 64,
        "data": "questions.jsonl",
        "data_digest": facts.DATA_DIGEST,
        "questions": 2 * QUESTIONS,
        "seed": 0,
        "asked": "keep: 0.97",
        "target": "prefill",
        "unit": "FLOPs",
        "visual": 12,
        "text": 64,
        "original_chosen_on": kept("all", QUESTIONS),
        "original_judged_on": kept("all", QUESTIONS),
        "singles": (
            Single(method="shortv", change="frozen", layer=4, kl=0.002, saved=0.16),
            Single(method="pool", change="4 of 12 enter", layer=None, kl=0.9, saved=0.4),
        ),
        "singles_questions": 24,
        "points": points,
        "chosen": chosen,
        "why": "the fastest of 3 plans that reach keep: 0.97 on both halves of the questions",
        "not_tried": ("speed-ups above 4: at that one 41.0% of the right answers are kept",),
        "seconds": 95.0,
        "budget": 600.0,
    }
    return SearchReport(**(values | changes))


NOTHING = KeptAnswers(kind="all", questions=9, original=0, kept=0, won=2)
UNKNOWN = HalfFigures(kl=0.1, overall=NOTHING, kinds=(NOTHING,))
FRONT = (
    plan_point(1.25, (100, 100), 0.0004),
    plan_point(1.5, (100, 99), 0.0011, summed_kl=0.001),
    plan_point(2.0, (99, 98), 0.008, swaps=2),
    plan_point(2.5, (92, 90), 0.09),
    plan_point(4.0, (60, 55), 1.3),
)
ALONE = (
    plan_point(1.5, (97, 96), 0.01, series="shortv", label="3 of 6 frozen"),
    plan_point(2.0, (88, 86), 0.12, series="shortv", label="4 of 6 frozen"),
    plan_point(2.0, (95, 94), 0.03, series="yopo", label="5 with 1/8 of the neurons"),
)
SEARCHES = {
    "a front beside single methods": search_report(*FRONT, *ALONE, chosen="2.00x"),
    "nothing that could be kept": search_report(
        plan_point(2.0, (100, 100), 0.008, judged_on=UNKNOWN),
        plan_point(2.0, (100, 100), 0.008, judged_on=UNKNOWN, series="shortv"),
        chosen="2.00x",
        original_judged_on=NOTHING,
    ),
    "no baselines, not judged": search_report(
        plan_point(2.0, (99, 99), 0.008, judged_on=None, summed_kl=None),
        chosen="2.00x",
        not_tried=(),
        budget=None,
        unit="seconds of this machine",
        own_answers=20,
    ),
}
