"""What a search found, for the console."""

from compressor.search.picking import share_words
from compressor.search.results import FrontPoint, SearchReport
from vtcompress.console import Output


def show_search(out: Output, report: SearchReport) -> None:
    """Print the front beside single methods, the chosen plan and why, and what was not tried."""
    columns = ("speed-up", "KL to choose, nats", "kept to choose", "kept to judge", "what it does")
    out.line(f"answers are scored as validate.score says: {report.score}")
    out.table("The front", columns, [_row(point) for point in report.front])
    if report.baselines:
        out.table("Single methods", columns, [_row(point) for point in report.baselines])
    chosen = report.chosen_point
    reasons = zip(chosen.layers, chosen.reasons, strict=True)
    rows = [(str(i), layer, why) for i, (layer, why) in enumerate(reasons)]
    out.table(f"Chosen: {chosen.name}", ("layer", "visual tokens", "why"), rows)
    for words in report.not_tried:
        out.line(f"not tried: {words}")


def chosen_words(report: SearchReport) -> str:
    """Return the chosen plan and why it was chosen, in a sentence."""
    chosen = report.chosen_point
    return f"chosen: {chosen.predicted:.2f} x, predicted from {report.unit}: {report.why}"


def _row(point: FrontPoint) -> tuple[str, ...]:
    judged = point.judged_on
    return (
        f"{point.predicted:.2f} x",
        f"{point.chosen_on.kl:.3g}",
        share_words(point.chosen_on.overall),
        "-" if judged is None else share_words(judged.overall),
        f"{point.series}: " * bool(point.series) + point.label,
    )
