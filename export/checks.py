"""The two checks as rows of words: what was found, what was allowed, and whether it was kept."""

from typing import NamedTuple

from export.parity.fidelity import FidelityReport
from export.parity.loss import LossFigures, LossReport


class Row(NamedTuple):
    """One judged measure."""

    measure: str
    found: str
    limit: str
    verdict: str


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


def loss_limit_rows(report: LossReport) -> list[Row]:
    """Return every measure over all samples beside its limit."""
    found, limits = report.overall, report.limits
    least = (
        ("next token equal", found.agreement, limits.min_agreement),
        ("common prefix of the answers", found.common_prefix, limits.min_common_prefix),
        ("right answers", found.exact_match, limits.min_exact_match),
        ("right answers kept", found.exact_match_kept, limits.min_exact_match_kept),
    )
    first = Row("KL mean, nats", f"{found.kl:.4f}", "none", "reported only")
    if limits.max_kl is not None:
        kept = _kept(found.kl <= limits.max_kl)
        first = first._replace(limit=f"<= {limits.max_kl:g}", verdict=kept)
    rows = [first]
    for name, value, limit in least:
        row = Row(name, percent(value), "none", "reported only")
        if limit is not None:
            kept = _kept(value is not None and value >= limit)
            row = row._replace(limit=f">= {limit:.1%}", verdict=kept)
        rows.append(row)
    return rows


def verdict(check: FidelityReport | LossReport | None) -> str:
    """Return `passed`, `failed`, `not run`, or that there was nothing to pass."""
    if check is None:
        return "not run"
    if not check.passed:
        return "failed"
    judged = isinstance(check, FidelityReport) or check.limits.given
    return "passed" if judged else "reported, no limits set"


def _kept(kept: bool) -> str:
    return "kept" if kept else "missed"


LOSS_COLUMNS = (
    "kind",
    "samples",
    "KL mean",
    "KL worst",
    "next token equal",
    "common prefix",
    "exact match original",
    "exact match",
    "kept",
)


def loss_row(figures: LossFigures) -> tuple[str, ...]:
    """Return one row of the compression-loss table."""
    return (
        figures.kind,
        str(figures.samples),
        f"{figures.kl:.4f}",
        f"{figures.kl_worst:.3f}",
        f"{figures.agreement:.1%}",
        f"{figures.common_prefix:.1%}",
        percent(figures.exact_match_original),
        percent(figures.exact_match),
        percent(figures.exact_match_kept),
    )


def percent(value: float | None) -> str:
    """Return a share in percent, a dash where there is none."""
    return "-" if value is None else f"{value:.1%}"
