"""How results look to a person on the command line."""

from collections.abc import Mapping, Sequence
from typing import Any

from compressor.methods import MEASURES
from compressor.plan.plan import Plan
from compressor.profile import Profile
from export.artifact.manifest import Manifest
from export.checks.stored import NO_ANSWERS
from export.report.pages.markdown_report import BENCH_COLUMNS, STATISTICS, layer_columns, layer_rows
from export.report.words.checks import (
    INTERVAL_WORDS,
    RIGHT_COLUMNS,
    TOKEN_COLUMNS,
    loud,
    right_rows,
    token_rows,
)
from export.report.words.cuts import semantics_words
from export.report.words.dtypes import dtype_words
from export.report.words.exits import (
    CACHE_COLUMNS,
    EXIT_COLUMNS,
    cache_rows,
    cache_words,
    exit_rows,
    gates_words,
    mean_words,
)
from export.report.words.ladder import COLUMNS as LADDER_COLUMNS
from export.report.words.ladder import EngineFacts, Rung, claim, ladder, rows
from export.results.backend_parity import REFERENCE, BackendParity
from export.results.bench import BenchReport, bench_rows, ms_words, ratio_words, work_words
from export.results.fidelity import FidelityReport
from export.results.loss_report import LossReport
from export.results.rewrite import RewriteReport, rewrite_words
from export.results.verdict import verdict_words
from vtcompress.console import Output
from vtcompress.stages.export import predicted

# Longer values are counted in the table of `inspect`; --json has them all.
LONGEST_VALUE = 60


def show_plan(out: Output, chosen: Plan, dtype: str) -> None:
    """Print what visual rows do in each layer, and the predicted costs, with caches in a dtype."""
    out.table(f"Plan for {chosen.model.name}", layer_columns(chosen), layer_rows(chosen))
    p = predicted(chosen, dtype)
    out.line(
        f"prefill of {p.visual} visual and {p.text} text rows{chosen.workload.assumed_words}, predicted:"
    )
    out.line(f"  FLOPs    {p.flops_original:,} -> {p.flops:,} ({work_words(p.speedup)})")
    out.line(
        f"  KV bytes {p.kv_bytes_original:,} -> {p.kv_bytes:,} ({dtype}, the dtype of the export)"
    )
    for words in semantics_words(chosen):
        out.line(words)
    for note in chosen.notes:
        out.line(f"note: {note}")
    if chosen.gates is not None:
        for words in (*gates_words(chosen.gates), mean_words(chosen)):
            out.line(words)


def show_profile(out: Output, profile: Profile) -> None:
    """Print what calibration measured, one table or sentence a measure."""
    for name in MEASURES:
        if name in profile.measures:
            found = MEASURES[name].table(profile.found(name))
            if found.columns:
                out.table(found.title, found.columns, list(found.rows))
            else:
                out.line(found.title)


def show_checks(
    out: Output, manifest: Manifest, chosen: Plan, engines: Sequence[EngineFacts] = ()
) -> None:
    """Print times and both checks."""
    if manifest.measured is not None:
        show_bench(out, manifest.measured, chosen, manifest.dtype)
    show_rewrite(out, manifest.rewrite)
    show_fidelity(out, manifest.fidelity)
    for line in dtype_words(manifest):
        out.line(line)
    show_loss(out, manifest.loss)
    show_exits(out, chosen, manifest.loss)
    show_ladder(out, ladder(manifest, engines))


def show_ladder(out: Output, rungs: Sequence[Rung]) -> None:
    """Print how far an artifact was checked, and what that proves."""
    out.table("Ladder of checks", LADDER_COLUMNS, rows(rungs))
    out.line(claim(rungs))


def show_bench(out: Output, report: BenchReport, chosen: Plan, dtype: str) -> None:
    """Print the times of original and compressed, and the KV caches beside what the plan predicts."""
    rows = [
        (name, ms_words(t.original_ms), ms_words(t.compressed_ms), ratio_words(t))
        for name, t in bench_rows(report)
    ]
    title = (
        f"Times: {report.visual} visual and {report.text} text rows, {report.rounds} rounds in turns, "
        f"{report.threads} thread(s)"
    )
    out.table(title, BENCH_COLUMNS, rows)
    out.line(STATISTICS[report.statistic])
    out.table("KV cache", CACHE_COLUMNS, cache_rows(chosen, report, dtype))
    out.line(cache_words(chosen, report, dtype))


def show_rewrite(out: Output, report: RewriteReport | None) -> None:
    """Print how far the rewritten model, nothing cut, is from the original."""
    out.line(rewrite_words(report))


def show_fidelity(out: Output, report: FidelityReport | None) -> None:
    """Print the first check."""
    if report is None:
        out.line("Export fidelity: not run")
        return
    out.line(
        f"Export fidelity (compressed torch model against its graphs, {report.calls} outputs): "
        f"max abs {report.worst_abs.max_abs:.2e}, max relative {report.worst_relative.max_relative:.2e}, "
        f"cosine {report.worst_cosine.cosine:.7f}: {loud(verdict_words(report))}"
    )


def show_parity(out: Output, parity: BackendParity, unmeasured: str = NO_ANSWERS) -> None:
    """Print how a backend compares with ONNX Runtime on the CPU, and what its answers lose."""
    o = parity.outputs
    what = ", ".join(filter(None, (parity.backend, parity.precision, parity.device)))
    out.line(
        f"Backend parity ({what} against {REFERENCE}, {o.calls} outputs): max abs {o.worst_abs.max_abs:.2e}, "
        f"max relative {o.worst_relative.max_relative:.2e}, cosine {o.worst_cosine.cosine:.7f}: "
        f"{loud(verdict_words(o))}"
    )
    show_loss(out, parity.loss, unmeasured)


def show_loss(out: Output, report: LossReport | None, unmeasured: str = NO_ANSWERS) -> None:
    """Print the second check, or why it was not run."""
    if report is None:
        out.line(f"Compression loss: not run, {unmeasured}")
        return
    title = "Compression loss (original model against the artifact)"
    out.table(title, TOKEN_COLUMNS, token_rows(report))
    if rows := right_rows(report):
        out.table("Right answers", RIGHT_COLUMNS, rows)
    out.line(INTERVAL_WORDS)
    out.line(f"Compression loss: {loud(verdict_words(report))}")
    for line in report.warnings:
        out.warn(line)


def show_exits(out: Output, chosen: Plan, loss: LossReport | None) -> None:
    """Print behind which layers visual tokens left, if gates decide on it."""
    if rows := exit_rows(chosen, loss):
        out.table("Exits", EXIT_COLUMNS, rows)


def flat_rows(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """One row a leaf; long lists are counted."""
    rows = []
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and key != "files":
            rows += flat_rows(value, f"{name}.")
        elif isinstance(value, list | Mapping) and len(str(value)) > LONGEST_VALUE:
            rows.append((name, f"{len(value)} entries"))
        else:
            rows.append((name, str(value)))
    return rows
