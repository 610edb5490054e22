"""What a command prints with -q: its results, a line each, and nothing else."""

from collections.abc import Sequence
from pathlib import Path

from compressor.plan.plan import Plan
from export.machine.diagnosis import Diagnosis
from export.report.compare.comparison import Comparison, comparison_table
from export.report.document import Outcome
from export.results.backend_parity import BackendParity
from export.results.bench import BenchReport, bench_rows, ratio_words, work_words
from export.results.fidelity import FidelityReport
from export.results.loss_report import LossReport, share
from export.results.sweep import SweepReport, accuracy, accuracy_interval
from vtcompress.console import Output
from vtcompress.stages.plan import predicted


def written(out: Output, path: Path) -> None:
    """Print what was written."""
    out.brief(f"written: {path}")


def planned(out: Output, plan: Plan, dtype: str) -> None:
    """Print how much work a plan leaves."""
    out.brief(f"prefill, predicted: {work_words(predicted(plan, dtype).speedup)}")


def checked(out: Output, fidelity: FidelityReport | None, loss: LossReport | None) -> None:
    """Print what became of both checks."""
    out.brief(Outcome.of("export fidelity", fidelity).line)
    out.brief(Outcome.of("compression loss", loss).line)


def compared_backend(out: Output, parity: BackendParity) -> None:
    """Print how a backend compares with the reference."""
    out.brief(Outcome.of("backend parity", parity.outputs).line)
    out.brief(Outcome.of("compression loss", parity.loss).line)


def timed(out: Output, report: BenchReport | None) -> None:
    """Print the ratio of each call."""
    for name, timing in bench_rows(report) if report is not None else ():
        out.brief(f"{name}: {ratio_words(timing)}")


def facts(out: Output, rows: Sequence[Sequence[str]]) -> None:
    """Print rows of a table, `name: value`."""
    for name, *values in rows:
        out.brief(": ".join((name, *values)))


def compared(out: Output, comparison: Comparison) -> None:
    """Print the main figures of each artifact, and what forbids comparing them."""
    told = (
        "measured prefill",
        "predicted prefill",
        comparison.kept,
        "next token equal",
        "on the Pareto front",
    )
    rows = {name: cells for name, *cells in comparison_table(comparison).rows}
    for place, entry in enumerate(comparison.entries):
        figures = "; ".join(f"{name} {rows[name][place]}" for name in told)
        out.brief(f"{entry.number}: {entry.name}: {figures}")
    for note in comparison.notes:
        out.brief(f"note: {note}")


def swept(out: Output, report: SweepReport) -> None:
    """Print the score and the speed of each point."""
    for point in report.points:
        overall = point.loss.overall
        measured = ratio_words(point.measured.prefill) if point.measured else "not measured"
        out.brief(
            f"{point.label}: {share(accuracy(overall), accuracy_interval(overall))}; prefill predicted "
            f"{point.predicted:.2f} x, measured {measured}"
        )


def diagnosed(out: Output, diagnosis: Diagnosis) -> None:
    """Print which backends run here."""
    for ability in diagnosis.abilities:
        runs = "runs" if ability.runs else f"does not run, {ability.words}"
        out.brief(f"{ability.backend}: {runs}")
