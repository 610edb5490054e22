"""A search as one document: the chosen plan and why, the front beside single methods, sums of losses."""

from collections.abc import Sequence

from markupsafe import Markup

from compressor.search.results import FrontPoint, HalfFigures, KeptAnswers, SearchReport
from export.report.charts.points import Axis, Mark, points_chart
from export.report.charts.sums import sums_chart
from export.report.document import (
    Beside,
    Block,
    Bullets,
    Chart,
    Code,
    Document,
    Group,
    Section,
    Table,
    Words,
)
from export.report.search.scored import bound_words, kept_name, scored_words, what_is_kept
from export.results.intervals import Interval, share_interval
from export.results.loss_report import nats, percent, share
from export.results.score_words import score_words

PAGE_FILE, TEXT_FILE, CHART_FILE, SUMS_FILE = "front.html", "front.md", "front.svg", "sums.svg"
APART = 1.5
"""From this ratio of a plan's loss and the sum of its changes' on, losses are said not to add up."""
SPEEDS = {
    "FLOPs": "prefill work, original / plan, predicted",
    "FLOPs up to the first token": "work up to the first token, original / plan, predicted",
    "KV bytes": "KV cache, original / plan, predicted",
}
FIRST = ", vision tower, projector and choice in front included,"


def search_document(report: SearchReport) -> Document:
    """Return the chosen plan, plot and table of the front, whether losses add up, and what was not tried."""
    sections = (
        Section("short", "In short", "In short", _short(report)),
        Section("plot", "Plot", "Answers kept against speed", _plot(report)),
        Section(
            "table",
            "Figures",
            "Figures",
            [front_table(report), *_tables(report), *_caption(report)],
        ),
        Section("chosen", "Chosen plan", "The chosen plan", _chosen(report)),
        Section("sums", "Sums", "Do losses add up?", _sums(report)),
        Section("left", "Not tried", "What was not tried", _not_tried(report)),
        Section("singles", "Changes", "Changes, each alone", [_singles(report)]),
    )
    version = report.tools.get("vtcompress", "")
    sub = f"{report.asked} · {len(report.front)} plans · {report.questions} questions · vtcompress {version}"
    foot = "The same in Markdown: front.md; for machines: front.json."
    return Document(f"{report.model}, searched", sub, sections, foot)


def _judged(point: FrontPoint) -> HalfFigures:
    """Return a plan's figures on the half to judge on; where there are none, on the half to choose on."""
    return point.judged_on or point.chosen_on


def _interval(kept: KeptAnswers) -> Interval | None:
    return share_interval(kept.kept, kept.original) if kept.original else None


def _kept(kept: KeptAnswers | None) -> str:
    return "-" if kept is None else share(kept.share, _interval(kept))


def _is_judged(point: FrontPoint) -> str:
    return "" if point.judged_on else " (not judged)"


def _name(report: SearchReport, point: FrontPoint) -> str:
    what = f"{point.series} alone" if point.series else "search"
    chosen = ", CHOSEN" if point.name == report.chosen else ""
    return f"{what} {point.predicted:.2f} x{chosen}{_is_judged(point)}"


def front_table(report: SearchReport) -> Table:
    """Return a row a plan, those of the search first, by rising speed; what is kept is of the judged half."""
    rows = []
    for point in report.points:
        overall = _judged(point).overall
        rows.append(
            (
                _name(report, point),
                point.label,
                f"{point.predicted:.2f} x",
                _kept(overall),
                percent(overall.bound),
                nats(_judged(point).kl) + " (chosen on)" * (point.judged_on is None),
                f"{point.kv_bytes:.0%}",
            )
        )
    columns = (
        "plan",
        "what it does",
        "faster",
        f"{kept_name(report.score)} (95%)",
        "95% sure of",
        "KL, nats (judged on)",
        "KV cache",
    )
    return Table("Plans, measured as wholes", columns, rows)


def _tables(report: SearchReport) -> list[Block]:
    """Return the table of kinds of questions, folded, and both halves beside each other."""
    kinds = [kept.kind for kept in _judged(report.points[0]).kinds]
    by_kind = [
        (_name(report, p), *(_kept(_of(_judged(p).kinds, kind)) for kind in kinds))
        for p in report.points
    ]
    halves = [
        (
            _name(report, p),
            _kept(p.chosen_on.overall),
            _kept(p.judged_on.overall if p.judged_on else None),
            nats(p.chosen_on.kl),
            nats(p.judged_on.kl if p.judged_on else None),
            str(p.swaps),
        )
        for p in report.points
    ]
    columns = (
        "plan",
        "kept, chosen on",
        "kept, judged on",
        "KL, chosen on",
        "KL, judged on",
        "swaps",
    )
    found: list[Block] = []
    if len(kinds) > 1:
        found.append(Table("Answers kept, by kind of question (95%)", ("plan", *kinds), by_kind))
    both = Table(
        "The half that plans were chosen on beside the half that they were judged on",
        columns,
        halves,
    )
    return [*found, Group("Both halves of the questions", [both], folded=True)]


def _of(kinds: Sequence[KeptAnswers], kind: str) -> KeptAnswers | None:
    return next((kept for kept in kinds if kept.kind == kind), None)


def _short(report: SearchReport) -> list[Block]:
    point = report.chosen_point
    kept, on = (
        _judged(point).overall,
        "it was judged on" if point.judged_on else "it was chosen on",
    )
    blocks: list[Block] = [
        Words(
            f"Asked: {report.asked}. Chosen: {point.predicted:.2f} x, {point.label}. On the half of the "
            f"questions {on} it keeps {scored_words(kept, report.score)}."
        ),
        Words(f"Why this one: {report.why}."),
    ]
    if (best := _best_single(report, point)) is not None and _judged(best).overall.original:
        blocks.append(
            Words(
                f"Of single methods at that speed or faster {best.series} keeps most: "
                f"{scored_words(_judged(best).overall, report.score)}, at {best.predicted:.2f} x."
            )
        )
    elif report.baselines and best is None:
        blocks.append(Words("No single method was measured at that speed or faster."))
    if point.judged_on is None:
        line = "WARNING: the chosen plan was not judged on other questions than it was chosen on"
        blocks.insert(0, Bullets((line,), bad=True))
    return blocks


def _best_single(report: SearchReport, point: FrontPoint) -> FrontPoint | None:
    """Return the baseline that keeps most answers at a point's speed or faster."""
    # Speeds are predicted by sums: the same one may differ in its last digits.
    fast = [p for p in report.baselines if p.predicted >= point.predicted * (1 - 1e-6)]
    return max(fast, key=lambda p: _judged(p).overall.share or 0.0, default=None)


def _plot(report: SearchReport) -> list[Block]:
    caption = (
        "Up and right is better. The cross is the original, the line the plans of the search, the filled "
        "point the chosen one; single methods are dashed. Vertical lines: 95% intervals. Nothing is known "
        "between two points."
    )
    drawn = Words("The plot is front.svg, too.", minor=True)
    chart = search_chart(report)
    if chart is None:
        return [
            Words("No plot: the original answers none of the questions right that plans stand on.")
        ]
    blocks: list[Block] = [Chart(chart, caption), drawn]
    if unjudged := [p for p in report.points if p.judged_on is None]:
        words = f"Plans that were not judged are drawn as on the half they were chosen on: {len(unjudged)}."
        blocks.append(Words(words))
    return blocks


def search_chart(report: SearchReport) -> Markup | None:
    """Return answers kept against predicted speed: the front as a line, single methods as points.

    None where the original answers nothing right, so that nothing can be kept.
    """
    points = report.points
    if any(not _judged(point).overall.original for point in points):
        return None
    series: dict[str, list[int]] = {}
    for place, point in enumerate(points):
        series.setdefault(point.series, []).append(place)
    fastest = {max(places, key=lambda i: points[i].predicted) for places in series.values()}
    marks = []
    for place, point in enumerate(points):
        if point.name == report.chosen:
            marks.append(Mark("chosen", "stay", "point-front"))
        else:
            name = point.series if place in fastest else ""
            marks.append(Mark(name, "stay", "point-baseline" if point.series else "point"))
    kept = [_judged(point).overall for point in points]
    words = "; ".join(
        f"{_name(report, p)}: {percent(k.share)}" for p, k in zip(points, kept, strict=True)
    )
    shares = tuple(k.share or 0.0 for k in kept)
    title = SPEEDS.get(report.unit, "prefill time here, original / plan, predicted")
    return points_chart(
        "front",
        marks,
        Axis(title, tuple(point.predicted for point in points)),
        Axis(score_words(report.score).kept, shares, tuple(map(_interval, kept))),
        f"{words}.",
        joined=[places for places in series.values() if len(places) > 1],
    )


def _caption(report: SearchReport) -> list[Block]:
    lines = [
        f"{report.questions} questions of {report.data}, split in two halves by seed {report.seed}: plans "
        f"were chosen on one and judged on the other{what_is_kept(report)}",
        f"In brackets Wilson's intervals of 95%; {bound_words(report)} "
        "Many plans were tried, so that the half that plans were chosen on flatters them. The chosen one was "
        "picked among those that were judged, which flatters its figure on the other half a little, too: an "
        "export with held-out questions (`vtcompress export --validate-data FILE`) tells.",
        f"Faster: {report.unit}{FIRST * (report.target == 'first_token')} of a prefill of {report.visual} "
        f"visual and {report.text} text tokens, original / plan, predicted; KV cache behind it, share that "
        "is left. KL: mean over the tokens of the answers, then over questions.",
    ]
    return [Words(line) for line in lines]


def _chosen(report: SearchReport) -> list[Block]:
    point = report.chosen_point
    why = point.reasons or ("-",) * len(point.layers)
    rows = [
        (str(place), does, reason)
        for place, (does, reason) in enumerate(zip(point.layers, why, strict=True))
    ]
    export = (
        f"vtcompress export --recipe recipe.yaml --plan {point.plan} --model MODEL --output OUT"
    )
    return [
        Words("What visual tokens do in each layer, and what speaks for it:"),
        Table("The chosen plan", ("layer", "visual tokens", "why"), rows, wrapped=False),
        Words("Each plan of the front is beside this page. An export of this one:"),
        Code(export, "console"),
    ]


def _summed(report: SearchReport) -> list[tuple[FrontPoint, float]]:
    """Return the plans whose changes were all measured alone, by rising sums, with these."""
    found = [(p, p.summed_kl) for p in report.points if p.summed_kl is not None]
    return sorted(found, key=lambda pair: pair[1])


def additivity_chart(report: SearchReport) -> Markup | None:
    """Return each plan's joint KL over the sum of its changes'; None: no plan has both."""
    pairs = _summed(report)
    styles = [
        "point-front" if p.name == report.chosen else "point-baseline" if p.series else "point"
        for p, _ in pairs
    ]
    wholes = [p.chosen_on.kl for p, _ in pairs]
    return sums_chart("sums", [summed for _, summed in pairs], wholes, styles, "nats")


def additivity_words(report: SearchReport) -> str:
    """Return where the sum of single losses tells a plan's loss, and where it does not."""
    ratios = [(s, p.chosen_on.kl / s) for p, s in _summed(report) if s > 0]
    if not ratios:
        return "No plan has changes that were all measured alone."
    more = [(s, ratio) for s, ratio in ratios if ratio > APART]
    less = [(s, ratio) for s, ratio in ratios if ratio < 1 / APART]
    near = len(ratios) - len(more) - len(less)
    words = [
        f"Of {len(ratios)} plans {near} lose what their changes do alone, within a factor of {APART:g}"
    ]
    for found, what, most in ((more, "more", max), (less, "less", min)):
        if found:
            far = most(ratio for _, ratio in found)
            words.append(
                f"; {len(found)} {what}, the first of them at a sum of {found[0][0]:.3g} nats, the one "
                f"furthest off {far:.2f} times"
            )
    return f"{''.join(words)}. That is why every plan was measured as a whole."


def _sums(report: SearchReport) -> list[Block]:
    blocks: list[Block] = [Words(additivity_words(report))]
    chart = additivity_chart(report)
    if chart is not None:
        caption = (
            "Each point is a plan, on the half that plans were chosen on: on the thin line its loss is the "
            "sum of what its changes lose alone, above it more. Exchanges pick plans that lose less than "
            "their sums say, so that points below the line are partly luck. Filled: the chosen plan; in "
            "another colour: single methods."
        )
        columns: list[list[Block]] = [[Chart(chart, caption)], [_sums_table(report)]]
        blocks += [Beside(columns), Words("The plot is sums.svg, too.", minor=True)]
    return blocks


def _sums_table(report: SearchReport) -> Table:
    rows = [
        (
            _name(report, point),
            nats(summed),
            nats(point.chosen_on.kl),
            f"{point.chosen_on.kl / summed:.2f}" if summed > 0 else "-",
        )
        for point, summed in _summed(report)
    ]
    columns = ("plan", "sum, nats", "as a whole, nats", "ratio")
    return Table("Sums of single losses, and losses as wholes", columns, rows)


def _not_tried(report: SearchReport) -> list[Block]:
    took = f"The search took {_minutes(report.seconds)}"
    took += "; no end was set." if report.budget is None else f" of {_minutes(report.budget)}."
    if not report.not_tried:
        return [Words(f"Nothing was left out for want of time. {took}")]
    return [Words(took), Bullets(report.not_tried)]


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _singles(report: SearchReport) -> Group:
    rows = [
        (
            single.change,
            single.method,
            "-" if single.layer is None else str(single.layer),
            nats(single.kl),
            f"{single.saved:.1%}",
        )
        for single in report.singles
    ]
    columns = ("change", "method", "layer", "KL alone, nats", "saves alone")
    title = f"{len(rows)} changes, each measured alone on {report.singles_questions} questions"
    return Group(title, [Table("Changes", columns, rows)], folded=True)
