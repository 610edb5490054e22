"""Made-up sweeps: what their reports read."""

from typing import Any

from export.results.loss_report import LossFigures, LossReport
from export.results.sweep import SweepPoint, SweepReport
from tests import facts


def losses(hits: str, kinds: dict[str, str] | None = None) -> LossReport:
    """Return answers of which those marked 1 are right; the original's are all right."""

    def figures(kind: str, marks: str) -> LossFigures:
        right, lost = marks.count("1") / len(marks), marks.count("0")
        return facts.figures(
            kind,
            samples=len(marks),
            answered=len(marks),
            exact_match=right,
            right_to_wrong=lost,
        )

    return facts.loss().model_copy(
        update={
            "overall": figures("all", hits),
            "kinds": tuple(figures(kind, marks) for kind, marks in (kinds or {}).items()),
        }
    )


def point(label: str, hits: str, predicted: float, **changes: Any) -> SweepPoint:
    """Return a point with as many questions as there are hits, half of them of each of two kinds."""
    half = len(hits) // 2
    name = label.replace(" ", "-")
    values: dict[str, Any] = {
        "name": name,
        "label": label,
        "series": label.split(maxsplit=1)[0],
        "methods": (label,),
        "plan": f"plans/{name}.json",
        "recipe": f"recipes/{name}.yaml",
        "done": "6 of 12 enter",
        "leaves": "stay",
        "predicted": predicted,
        "kv_bytes_original": 100,
        "kv_bytes": 50,
        "loss": losses(hits, {"count": hits[:half], "pick": hits[half:]}),
        "hits": hits,
    }
    return SweepPoint(**(values | changes))


def sweep_report(*points: SweepPoint, **changes: Any) -> SweepReport:
    """Return a sweep of these points."""
    values: dict[str, Any] = {
        "tools": {"vtcompress": "0"},
        "model": "tiny",
        "model_digest": "0" * 64,
        "data": "heldout.jsonl",
        "data_digest": facts.DATA_DIGEST,
        "questions": len(points[0].hits),
        "max_new_tokens": 4,
        "visual": 12,
        "text": 64,
        "dtype": "float32",
        "points": points,
    }
    return SweepReport(**(values | changes))


RIGHT, HALF = "1" * 40, "10" * 20
SWEEPS: dict[str, SweepReport] = {
    "beaten, not told apart, and alone": sweep_report(
        point("clever keep 0.5", HALF, 1.5, notes=("keep: 0.5 becomes 0.49",)),
        point("near keep 0.5", "1" * 37 + "000", 1.5),
        point("fast keep 0.1", HALF, 3.0, leaves="leave", done="gone in 2 of 6, from layer 4 on"),
        point("random keep 0.5", "1" * 38 + "00", 1.5, baseline=True),
        calibration="calibration.jsonl",
        calibration_samples=8,
    ),
    "timed, nothing beaten": sweep_report(
        point("clever keep 0.5", RIGHT, 1.5, measured=facts.measured()),
        point("random keep 0.5", HALF, 1.5, baseline=True, measured=facts.measured()),
        assumed=True,
    ),
    "no baselines, no right answers": sweep_report(
        point("clever keep 0.5", HALF, 1.5).model_copy(
            update={
                "loss": losses(HALF).model_copy(
                    update={
                        "overall": facts.figures(
                            samples=40, answered=0, agreement=0.5, exact_match=None,
                            exact_match_original=None, right_to_wrong=None, wrong_to_right=None,
                        )
                    }
                )
            }
        )
    ),
}  # fmt: skip
