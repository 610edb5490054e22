"""The two checks and the ladder: what was found, what was allowed, and what became of it."""

from collections.abc import Sequence

from export.artifact.manifest import Manifest
from export.report.charts.bars import kinds_chart
from export.report.data import ReportData
from export.report.document import Beside, Block, Bullets, Chart, Outcome, Section, Table, Words
from export.report.words.dtypes import dtype_words, reference_words
from export.report.words.ladder import COLUMNS, Rung, claim
from export.results.fidelity import FidelityReport
from export.results.loss_report import (
    LossFigures,
    LossReport,
    by_layer_loss_words,
    changes_words,
    nats,
    percent,
    share,
)
from export.results.rewrite import rewrite_words
from export.results.verdict import Verdict

INTERVAL_WORDS = (
    "In brackets: 95% intervals, how far as many other questions of this sort might give other figures; "
    "Wilson's for shares, Bonett and Price's for the ratio of the two on the same questions"
)
GRADED_INTERVAL_WORDS = "; for scores between 0 and 1 these are at least as wide as they must be"
LADDER_WORDS = (
    "How far the artifact was checked. A claim reaches as far as the last check that ran. Engines may have "
    "been built since this page was written: the command vtcompress report shows the ladder as it is now."
)


def fidelity_section(manifest: Manifest) -> Section:
    """Return check 1 of a report."""
    report = manifest.fidelity
    words = (
        "Do the exported files compute what the compressed model computes? Numbers against numbers; limits "
        "are tight.",
        reference_words(manifest.dtype, ran=report is not None),
        rewrite_words(manifest.rewrite),
        *dtype_words(manifest),
        *by_layer_words(report),
    )
    found = [] if report is None else [_fidelity_table(report), *_failures(report.failures)]
    blocks = [*map(Words, words), fidelity_outcome(report), *found]
    return Section("fidelity", "Check 1", "Check 1: export fidelity", blocks)


def fidelity_outcome(
    report: FidelityReport | None,
    name: str = "Export fidelity",
    what: str = "compressed torch model against its graphs",
) -> Outcome:
    """Return the worst of each measure in one sentence, and what became of the check."""
    if report is None:
        return Outcome.of(name, None)
    worst = (
        f"max abs {report.worst_abs.max_abs:.2e}, max relative "
        f"{report.worst_relative.max_relative:.2e}, cosine {report.worst_cosine.cosine:.7f}"
    )
    what = f"{what} by layer" if report.layers else what
    return Outcome.of(f"{name} ({what}, {report.calls} outputs): {worst}", report)


def by_layer_words(report: FidelityReport | None) -> tuple[str, ...]:
    """Return how layers were checked by themselves, and which is the worst; nothing of whole graphs."""
    worst = report.worst_layer if report is not None else None
    if report is None or worst is None:
        return ()
    return (
        f"By layer: the decoder's graph was cut into its {len(report.layers) - 1} layers and what is behind "
        "them, and each part ran with its own weights in memory alone: on the torch model's states, which "
        "tells what it differs by itself, and on the states that the parts in front of it made, which gives "
        "the logits. States and keys are judged without max abs, because their size is the model's. The "
        f"part that differs most by itself: {worst.call} (max relative {worst.max_relative:.2e}).",
    )


def _fidelity_table(report: FidelityReport) -> Table:
    """Return the worst of each measure beside its limit, and the call it was found in."""
    limits, rows = report.limits, []
    for name, worst, form, limit in (
        ("max_abs", report.worst_abs, ".2e", limits.max_abs),
        ("max_relative", report.worst_relative, ".2e", limits.max_relative),
        ("cosine", report.worst_cosine, ".7f", limits.min_cosine),
    ):
        value, sign = getattr(worst, name), ">=" if name == "cosine" else "<="
        kept = value >= limit if sign == ">=" else value <= limit
        verdict = Verdict.PASSED if kept else Verdict.FAILED
        rows.append(
            (name.replace("_", " "), format(value, form), f"{sign} {limit:g}", verdict, worst.call)
        )
    columns = ("measure", "worst", "limit", "verdict", "in call")
    return Table("Export fidelity: largest differences and their limits", columns, rows)


def _failures(lines: Sequence[str]) -> list[Block]:
    return [Bullets(tuple(lines), bad=True)] if lines else []


def loss_section(report: LossReport | None) -> Section:
    """Return check 2 of a report."""
    question = "How far are the answers from the original model's, from image file to text?"
    blocks = [Words(question), *loss_blocks(report, "the recipe names no validation data")]
    return Section("loss", "Check 2", "Check 2: compression loss", blocks)


def loss_blocks(report: LossReport | None, unmeasured: str) -> list[Block]:
    """Return what the answers lost, beside the recipe's limits and by kind of question.

    Args:
        report: None: the check did not run.
        unmeasured: why, then.
    """
    if report is None:
        return [Outcome("Compression loss", Verdict.NOT_RUN, f"{Verdict.NOT_RUN}, {unmeasured}")]
    limits: list[list[Block]] = [[_limits_table(report), *_failures(report.failures)]]
    if (chart := kinds_chart(report.kinds, report.words.right)) is not None:
        right = report.words.right
        caption = f"{_title(right)} for each kind of question; in brackets the number of questions."
        limits.append([Chart(chart, caption)])
    changed = changes_words(report.overall, report.score)
    return [
        Outcome.of("Compression loss", report),
        *map(Words, by_layer_loss_words(report)),
        *([Words(changed)] if changed else []),
        Beside(limits),
        *kinds_tables(report),
        Words(_figures_words(report), minor=True),
    ]


def _title(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}"


def _figures_words(report: LossReport) -> str:
    """Return what makes an answer right, and what intervals are."""
    same = (
        ""
        if report.score == "exact"
        else " Answers are the same, word for word, whatever they score."
    )
    graded = GRADED_INTERVAL_WORDS if report.words.graded else ""
    return f"{report.words.rule}{same} {INTERVAL_WORDS}{graded}."


def _limits_table(report: LossReport) -> Table:
    """Return every measure over all samples beside its limit; shares with their 95% interval."""
    all_, right = report.overall, report.words
    names = {
        "mean KL": ("KL mean, nats", nats(all_.kl)),
        "agreement of next tokens": ("next token equal", _with_interval(all_, "agreement")),
        "common prefix": ("common prefix of the answers", percent(all_.common_prefix)),
        right.name: (right.right, _with_interval(all_, "exact_match")),
        f"{right.name} kept": (right.kept, _with_interval(all_, "exact_match_kept")),
    }
    rows = []
    for measure in report.measures:
        limit = "none"
        if measure.limit is not None:
            limit = f"<= {measure.limit:g}" if measure.at_most else f">= {measure.limit:.1%}"
        if why := measure.in_place or (measure.limit is not None and measure.cannot):
            limit = f"{limit} ({why})"
        rows.append((*names[measure.words], limit, measure.verdict))
    columns = ("measure", "value", "limit", "verdict")
    title = f"Over all {all_.samples} questions of {report.data}, and the recipe's limits"
    return Table(title, columns, rows)


def _with_interval(figures: LossFigures, name: str) -> str:
    return share(getattr(figures, name), getattr(figures, f"{name}_interval"))


def kinds_tables(report: LossReport) -> list[Table]:
    """Return the tables of all kinds of questions: next tokens, and right answers if some are known."""
    kinds = (report.overall, *report.kinds)
    names = [k.kind for k in kinds]
    tokens = {
        "kind": names,
        "questions": [k.counted for k in kinds],
        "KL mean": [nats(k.kl) for k in kinds],
        "KL worst": [nats(k.kl_worst) for k in kinds],
        "next token equal (95%)": [_with_interval(k, "agreement") for k in kinds],
        "common prefix": [percent(k.common_prefix) for k in kinds],
        "same answer": [_count(k.equal_answers) for k in kinds],
    }
    graded = report.words.graded
    what = "" if graded else "right "
    down, up = ("lower", "higher") if graded else ("right to wrong", "wrong to right")
    changes = [k.changes or (None, None) for k in kinds]
    right = {
        "kind": names,
        "with an answer": [str(k.answered) for k in kinds],
        f"{what}before (95%)": [_with_interval(k, "exact_match_original") for k in kinds],
        f"{what}now (95%)": [_with_interval(k, "exact_match") for k in kinds],
        "kept (95%)": [_with_interval(k, "exact_match_kept") for k in kinds],
        down: [_count(change[0]) for change in changes],
        up: [_count(change[1]) for change in changes],
    }
    found = [Table.of_columns("Next tokens and answers, by kind of question", tokens)]
    if report.overall.answered:
        found.append(Table.of_columns(f"{_title(report.words.right)}, by kind of question", right))
    return found


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def ladder_section(data: ReportData) -> Section:
    """Return how far the artifact was checked."""
    known = known_words(data.manifest)
    blocks = [Words(LADDER_WORDS), *ladder_blocks(data.rungs), *map(Words, known)]
    return Section("ladder", "Ladder", "Ladder of checks", blocks)


def known_words(manifest: Manifest) -> tuple[str, ...]:
    """Return what known answers the artifact holds, and what they are for; nothing without any."""
    known = manifest.selftest
    if known is None:
        return ()
    few = "" if "decoder" in known.parts else ", but for the decoder's, which was never in memory"
    return (
        f"Known answers of {known.pictures} made pictures lie beside the graphs{few}: the command vtcompress "
        "selftest tells on any machine which part, if one, computes something else there.",
    )


def ladder_blocks(rungs: Sequence[Rung]) -> list[Block]:
    """Return every rung with what it proves, lowest first, and what may be claimed."""
    rows = [(rung.name, rung.outcome, rung.proves, rung.detail) for rung in rungs]
    return [Table("Ladder of checks, lowest first", COLUMNS, rows), Words(claim(rungs))]
