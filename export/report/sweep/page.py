"""A sweep as one document: what loses to a baseline, accuracy against speed, every figure of every point."""

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from compressor.contract.method import Method
from compressor.plan.plan import Plan
from export.report.charts.points import Axis, Mark, points_chart
from export.report.compare.comparison import SPEEDS
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
from export.report.sweep.beside import APART, beside_table
from export.report.words.cuts import choices_words, cuts_words
from export.report.words.exits import exits_words
from export.results.bench import ratio_words, unsteady
from export.results.loss_report import LossFigures, percent, share
from export.results.sweep import (
    Beaten,
    SweepPoint,
    SweepReport,
    accuracy,
    accuracy_interval,
    beaten,
)

PAGE_FILE, TEXT_FILE, CHART_FILE = "sweep.html", "sweep.md", "sweep.svg"
ALL = "all"


def point_words(plan: Plan, methods: Sequence[Method]) -> str:
    """Return what a plan does with visual tokens, in a few words for a table cell."""
    frozen = sum(layer.frozen and layer.reason != "dead" for layer in plan.layers)
    exits = exits_words(plan)
    said = (
        choices_words(plan),
        cuts_words(plan, methods),
        "none" if exits == "none" else f"gone {exits}" if plan.gates else f"gone in {exits}",
        f"{frozen} of {len(plan.layers)} layers frozen" if frozen else "none",
    )
    return "; ".join(words for words in said if words != "none") or "as in the original"


def sweep_document(report: SweepReport) -> Document:
    """Return baselines that win, plots, the table, and how it was measured."""
    sections = (
        Section("short", "In short", "In short", _short(report)),
        Section("plot", "Plot", "Accuracy against speed", _plots(report)),
        *_beside(report),
        Section("table", "Figures", "Figures", [sweep_table(report), *_caption(report)]),
        Section("plans", "Plans", "Plans", _plans(report)),
    )
    version = report.tools.get("vtcompress", "")
    sub = f"{len(report.points)} plans · {report.questions} questions · vtcompress {version}"
    foot = "The same in Markdown: sweep.md; for machines: sweep.json."
    return Document(f"{report.model}, swept", sub, sections, foot)


def _beside(report: SweepReport) -> list[Section]:
    """Return what stands at the speeds of a search's plans; without any, nothing."""
    table = beside_table(report)
    if table is None:
        return []
    words = Words(
        f"{_what(report)}: at each predicted speed of a plan that a search found, those of it and of the "
        f"point of each method that is nearest to it, within {APART:.0%}; in brackets its speed where that "
        "differs. A dash: no point of the method stands there."
    )
    return [Section("beside", "Beside", "Beside the search, at the same speeds", [table, words])]


def sweep_table(report: SweepReport) -> Table:
    """Return a row a point, the original first; shares of right answers for each kind of question."""
    kinds = [f"{figures.kind} ({figures.samples})" for figures in report.points[0].loss.kinds]
    columns = ["", "visual tokens", f"{_what(report)} (95% interval)", *kinds]
    columns += ["prefill predicted", "prefill measured (quartiles)", "KV cache, predicted"]
    rows = [_original_row(report)]
    for point in report.points:
        overall = point.loss.overall
        rows.append(
            (
                point.label + (", baseline" if point.baseline else ""),
                point.done,
                share(accuracy(overall), accuracy_interval(overall)),
                *(percent(accuracy(figures)) for figures in point.loss.kinds),
                f"{point.predicted:.2f} x",
                ratio_words(point.measured.prefill) if point.measured else "-",
                f"{point.kv_bytes / point.kv_bytes_original:.0%}",
            )
        )
    if not any(point.measured for point in report.points):
        rows = [(*row[:-2], row[-1]) for row in rows]
        columns.remove("prefill measured (quartiles)")
    return Table("Points of the sweep", columns, rows)


def _original_row(report: SweepReport) -> tuple[str, ...]:
    loss = report.points[0].loss
    overall, interval = _of_original(loss.overall), loss.overall.exact_match_original_interval
    return (
        "original",
        "all",
        share(overall, interval if report.by_answers else None),
        *(percent(_of_original(figures)) for figures in loss.kinds),
        "1.00 x",
        "1.00 x",
        "100%",
    )


def _of_original(figures: LossFigures) -> float:
    """Return the original's own accuracy: all its first tokens are its own."""
    return 1.0 if figures.exact_match_original is None else figures.exact_match_original


def _what(report: SweepReport) -> str:
    right = report.points[0].loss.words.right
    return right if report.by_answers else "first tokens equal to the original's"


def _short(report: SweepReport) -> list[Block]:
    found, what = beaten(report.points), _what(report)
    baselines = [point for point in report.points if point.baseline]
    told: dict[bool, list[str]] = {True: [], False: []}
    for ones in found:
        told[any(one.told_apart for one in ones)].append(beaten_words(ones, what))
    blocks: list[Block] = [Bullets(tuple(lines), bad=lost) for lost, lines in told.items() if lines]
    if not baselines:
        return [Words("No baselines: nothing tells what a choice without looking would do.")]
    fastest = max(point.predicted for point in baselines)
    alone = [p.label for p in report.points if not p.baseline and p.predicted > fastest]
    if alone:
        faster = f"No baseline is predicted as fast as {', '.join(alone)}"
        blocks.append(Words(f"{faster}: nothing there says what they are worth beside one."))
    names = {ones[0].point.name for ones in found}
    others = [p for p in report.points if not p.baseline and p.name not in names]
    if kept := [p.label for p in others if p.label not in alone]:
        words = f"No baseline that is predicted as fast has more {what} than {', '.join(kept)}."
        blocks.append(Words(words))
    return blocks


def beaten_words(ones: Sequence[Beaten], what: str) -> str:
    """Return which baselines beat a point, and whether the questions tell them apart."""

    def figures(point: SweepPoint) -> str:
        return f"{percent(accuracy(point.loss.overall))} {what}, predicted {point.predicted:.2f} x"

    said = [
        f"{'loses to' if one.told_apart else 'is below, and not told apart from,'} {one.by.label} "
        f"({figures(one.by)}): {100 * one.change:+.1f} points, 95% interval {_points(one.interval)}"
        for one in ones
    ]
    return f"{ones[0].point.label} ({figures(ones[0].point)}) {'; '.join(said)}"


def _points(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def _plots(report: SweepReport) -> list[Block]:
    caption = (
        "Up and right is better. The cross is the original; points of one method are joined, baselines are "
        "dashed. Nothing is known between two points."
    )
    if any(point.searched for point in report.points):
        caption += " What a search found is filled."
    columns = [[Chart(sweep_chart(report), caption)]]
    if report.timed:
        columns.append([Chart(sweep_chart(report, speed="measured"), "The same, as measured.")])
    kinds = [figures.kind for figures in report.points[0].loss.kinds]
    each = [
        Chart(sweep_chart(report, kind=kind), f"Questions of the kind {kind} alone.")
        for kind in kinds
    ]
    folded = [Group("Each kind of question", each, folded=True)] if len(each) > 1 else []
    drawn = Words("The plot by predicted figures is sweep.svg, too.", minor=True)
    return [Beside(columns) if len(columns) > 1 else columns[0][0], drawn, *folded]


def sweep_chart(report: SweepReport, *, kind: str = ALL, speed: str = "predicted") -> Markup:
    """Return accuracy against speed, a line a method.

    Args:
        report: of the sweep.
        kind: of questions; `all`.
        speed: `predicted` or `measured`, which every point must be.
    """
    points = report.points
    series: dict[str, list[int]] = {}
    for place, point in enumerate(points):
        series.setdefault(f"{point.series} {point.baseline}", []).append(place)
    speeds = tuple(_speed(point, speed) for point in points)
    # Lines run apart towards their fast ends.
    named = {max(places, key=speeds.__getitem__) for places in series.values()}
    marks = [
        Mark(
            point.series if place in named else "",
            point.leaves,
            _style(point),
        )
        for place, point in enumerate(points)
    ]
    by_kind = [_figures(point, kind) for point in points]
    rights = tuple(accuracy(figures) for figures in by_kind)
    said = zip(points, speeds, rights, strict=True)
    words = "; ".join(f"{p.label}: {a:.2f} times, {b:.1%}" for p, a, b in said)
    what = _what(report) if kind == ALL else f"{_what(report)}, {kind}"
    return points_chart(
        f"sweep-{speed}-{kind}",
        marks,
        Axis(SPEEDS[speed], speeds),
        Axis(what, rights),
        f"{words}.",
        original=_of_original(by_kind[0]),
        joined=[places for places in series.values() if len(places) > 1],
    )


def _style(point: SweepPoint) -> str:
    if point.searched:
        return "point-front"
    return "point-baseline" if point.baseline else "point"


def _figures(point: SweepPoint, kind: str) -> LossFigures:
    kinds: Mapping[str, LossFigures] = {figures.kind: figures for figures in point.loss.kinds}
    return point.loss.overall if kind == ALL else kinds[kind]


def _speed(point: SweepPoint, speed: str) -> float:
    if speed == "measured" and point.measured is not None:
        return point.measured.prefill.ratio
    return point.predicted


def _caption(report: SweepReport) -> list[Block]:
    assumed = " (assumed: no calibration measured prompts)" if report.assumed else ""
    if report.by_answers:
        intervals = (
            f"{report.points[0].loss.words.rule} Intervals are Wilson's; two points answered the same "
            "questions, so that their difference is known better than each."
        )
    else:
        intervals = (
            "Not every question has a right answer, so first tokens are compared with the original's. "
            "Intervals are Wilson's."
        )
    lines = [
        f"{report.questions} questions of {report.data}, answers of at most {report.max_new_tokens} tokens "
        "by the compressed models in torch, float32; those of an exported artifact differ as far as its "
        f"dtype rounds. {intervals}",
        f"Predicted: FLOPs of a prefill of {report.visual} visual and {report.text} text tokens{assumed}, "
        f"original / compressed, of the decoder alone; KV cache in {report.dtype} behind it.",
    ]
    first = next((point.measured for point in report.points if point.measured), None)
    if first is not None:
        lines.append(
            "Measured: the same prefill in ONNX graphs of float32 on the CPU, one decoder beside the "
            f"original's in turns, median and quartiles of {first.rounds} rounds, threads of one operator: "
            f"{first.threads}; {first.processor}."
        )
        unsteady_ones = [
            p.label for p in report.points if p.measured and "prefill" in unsteady(p.measured)
        ]
        if unsteady_ones:
            lines.append(f"Times are not steady, the machine was busy: {', '.join(unsteady_ones)}.")
    if report.calibration:
        lines.append(
            f"Calibrated once, on {report.calibration_samples} samples of {report.calibration}; the "
            "questions had no part in it."
        )
    return [Words(line) for line in lines]


def _plans(report: SweepReport) -> list[Block]:
    point = next((p for p in report.points if not p.baseline), report.points[0])
    blocks: list[Block] = [
        Words(
            "Each point's plan and the recipe that it was made by are beside this page. An export:"
        ),
        Code(
            f"vtcompress export --recipe {point.recipe} --plan {point.plan} --model MODEL \\\n"
            "    --validate-data DATA.jsonl --output OUT",
            "console",
        ),
        Table(
            "What was asked of the methods",
            ("point", "methods", "plan"),
            [(p.label, "; ".join(p.methods) or "none", p.plan) for p in report.points],
        ),
    ]
    noted = [(p.label, note) for p in report.points for note in p.notes]
    if noted:
        blocks.append(Table("Notes of the plans", ("point", "note"), noted))
    return blocks
