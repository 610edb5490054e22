"""The two checks as rows of words: what was found, what was allowed, and what became of it."""

from typing import NamedTuple

from export.results.fidelity import FidelityReport
from export.results.intervals import Interval
from export.results.loss_report import LossFigures, LossReport, nats
from export.results.verdict import Verdict


class Row(NamedTuple):
    """One measure."""

    measure: str
    found: str
    limit: str
    verdict: Verdict


def fidelity_rows(report: FidelityReport) -> list[tuple[Row, str]]:
    """Return the worst of each measure beside its limit, and the call it was found in."""
    limits = report.limits
    a, r, c = report.worst_abs, report.worst_relative, report.worst_cosine
    return [
        (
            Row(
                "max abs",
                f"{a.max_abs:.2e}",
                f"<= {limits.max_abs:g}",
                _kept(a.max_abs <= limits.max_abs),
            ),
            a.call,
        ),
        (
            Row(
                "max relative",
                f"{r.max_relative:.2e}",
                f"<= {limits.max_relative:g}",
                _kept(r.max_relative <= limits.max_relative),
            ),
            r.call,
        ),
        (
            Row(
                "cosine",
                f"{c.cosine:.7f}",
                f">= {limits.min_cosine:g}",
                _kept(c.cosine >= limits.min_cosine),
            ),
            c.call,
        ),
    ]


def _kept(kept: bool) -> Verdict:
    return Verdict.PASSED if kept else Verdict.FAILED


def loss_limit_rows(report: LossReport) -> list[Row]:
    """Return every measure over all samples beside its limit; shares with their 95% interval."""
    found = report.overall
    names = {
        "mean KL": ("KL mean, nats", nats(found.kl)),
        "agreement of next tokens": (
            "next token equal",
            share(found.agreement, found.agreement_interval),
        ),
        "common prefix": ("common prefix of the answers", percent(found.common_prefix)),
        "exact match": ("right answers", share(found.exact_match, found.exact_match_interval)),
        "exact match kept": (
            "right answers kept",
            share(found.exact_match_kept, found.exact_match_kept_interval),
        ),
    }
    rows = []
    for measure in report.measures:
        name, value = names[measure.words]
        limit = "none"
        if measure.limit is not None:
            limit = f"<= {measure.limit:g}" if measure.at_most else f">= {measure.limit:.1%}"
        why = measure.in_place or (measure.limit is not None and measure.cannot)
        rows.append(Row(name, value, f"{limit} ({why})" if why else limit, measure.verdict))
    return rows


def loud(words: str) -> str:
    """Return a verdict's words for plain text, where nothing but letters can warn."""
    return words.upper() if words == Verdict.FAILED else words


TOKEN_COLUMNS = (
    "kind",
    "questions",
    "KL mean",
    "KL worst",
    "next token equal (95%)",
    "common prefix",
    "same answer",
)
RIGHT_COLUMNS = (
    "kind",
    "with an answer",
    "right before (95%)",
    "right now (95%)",
    "kept (95%)",
    "right to wrong",
    "wrong to right",
)
INTERVAL_WORDS = (
    "An answer is right, or the same, if it is equal character for character but for white space around it. "
    "In brackets: 95% intervals, how far as many other questions of this sort might give other figures; "
    "Wilson's for shares, Bonett and Price's for the ratio of the two on the same questions."
)


def _token_row(figures: LossFigures) -> tuple[str, ...]:
    return (
        figures.kind,
        figures.counted,
        nats(figures.kl),
        nats(figures.kl_worst),
        share(figures.agreement, figures.agreement_interval),
        percent(figures.common_prefix),
        count(figures.equal_answers),
    )


def right_rows(report: LossReport) -> list[tuple[str, ...]]:
    """Return the rows of `RIGHT_COLUMNS`, all samples first; none if no right answers are known."""
    rows = (report.overall, *report.kinds)
    return [_right_row(figures) for figures in rows] if report.overall.answered else []


def token_rows(report: LossReport) -> list[tuple[str, ...]]:
    """Return the rows of `TOKEN_COLUMNS`, all samples first."""
    return [_token_row(figures) for figures in (report.overall, *report.kinds)]


def _right_row(figures: LossFigures) -> tuple[str, ...]:
    return (
        figures.kind,
        str(figures.answered),
        share(figures.exact_match_original, figures.exact_match_original_interval),
        share(figures.exact_match, figures.exact_match_interval),
        share(figures.exact_match_kept, figures.exact_match_kept_interval),
        count(figures.right_to_wrong),
        count(figures.wrong_to_right),
    )


def percent(value: float | None) -> str:
    """Return a share in percent, a dash where there is none."""
    return "-" if value is None else f"{value:.1%}"


def share(value: float | None, interval: Interval | None) -> str:
    """Return a share in percent with its interval, such as `87.5% (52.9 to 97.8)`."""
    if interval is None:
        return percent(value)
    return f"{percent(value)} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def count(value: int | None) -> str:
    """Return a number, a dash where nobody counted."""
    return "-" if value is None else f"{value:,}"
