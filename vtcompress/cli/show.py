"""How results look to a person on the command line: the blocks of reports, a table or a line each."""

from collections.abc import Mapping, Sequence
from typing import Any

from compressor.methods import MEASURES
from compressor.plan.measured_cost import MeasuredCosts
from compressor.plan.plan import Plan
from compressor.profile import Profile
from export.artifact.manifest import Manifest
from export.checks.known.report import SelftestReport
from export.checks.stored import NO_ANSWERS
from export.report.document import Block, Bullets, Group, Outcome, Table, Words, flat
from export.report.sections.checks import fidelity_outcome, ladder_blocks, loss_blocks
from export.report.sections.layers import layer_table, plan_blocks
from export.report.sections.speed import bench_blocks
from export.report.sweep.page import point_words
from export.report.words.dtypes import dtype_words
from export.report.words.exits import exits_table
from export.report.words.front import visual_words
from export.report.words.ladder import EngineFacts, ladder
from export.results.backend_parity import REFERENCE, BackendParity
from export.results.bench import BenchReport, ms_words, work_words
from export.results.fidelity import FidelityReport
from export.results.loss_report import LossReport, unjudged_words
from export.results.rewrite import RewriteReport, rewrite_words
from vtcompress.console import Output
from vtcompress.stages.plan import predicted, time_words
from vtcompress.stages.sweeping.points import Point

# Longer values are counted in the table of `inspect`; --json has them all.
LONGEST_VALUE = 60


def show_blocks(out: Output, blocks: Sequence[Block]) -> None:
    """Print blocks of a report, without its drawings."""
    for block in flat(blocks):
        match block:
            case Table():
                out.table(block.title, block.columns, block.rows)
            case Words():
                out.line(block.text)
            case Outcome():
                out.line(block.line)
            case Bullets():
                for line in block.lines:
                    out.line(f"- {line.line if isinstance(line, Outcome) else line}")
            case Group():
                out.line(f"{block.title}:")
                show_blocks(out, block.blocks)


def show_plan(out: Output, chosen: Plan, dtype: str, measured: MeasuredCosts | None = None) -> None:
    """Print what visual rows do in each layer, and the predicted costs, with caches in a dtype.

    Time is predicted where it was measured what layers take.
    """
    p = predicted(chosen, dtype)
    lines = [
        f"Plan for {chosen.model.name}",
        f"prefill of {visual_words(chosen)} visual and {p.text} text rows{chosen.workload.assumed_words}, "
        "predicted:",
        f"  FLOPs    {p.flops_original:,} -> {p.flops:,} ({work_words(p.speedup)})",
        f"  KV bytes {p.kv_bytes_original:,} -> {p.kv_bytes:,} ({dtype}, the dtype of the export)",
    ]
    if measured is not None:
        lines.append(f"  time     {time_words(measured, chosen)}")
    show_blocks(out, [layer_table(chosen, dtype), *map(Words, lines), *plan_blocks(chosen)])


def show_costs(out: Output, measured: MeasuredCosts) -> None:
    """Print the calls that were timed, and how well layers by themselves explain their times."""
    rows = [
        (call.graph, str(call.visual), str(call.text), ms_words(1e3 * call.seconds))
        for call in measured.calls
    ]
    columns = ("layers", "visual rows", "text rows", "ms")
    out.table(f"Measured on {measured.measured_on.words}", columns, rows)
    out.line(f"made up of layers, these times are off by {measured.misfit:.1%} at most")


def show_points(out: Output, points: Sequence[Point]) -> None:
    """Print the points of a sweep, with what is known of them before anything is measured."""
    rows = [
        (
            point.label + (", baseline" if point.baseline else ""),
            "; ".join(point.asked) or "none",
            "by calibration"
            if (plan := point.plan) is None
            else point_words(plan, point.recipe.methods),
        )
        for point in points
    ]
    out.table("Points", ("point", "methods", "visual tokens"), rows)
    if any(point.plan is None for point in points):
        out.line("baselines of points whose rows calibration decides on are added then")


def show_profile(out: Output, profile: Profile) -> None:
    """Print what calibration measured, one table or sentence a measure."""
    for name in MEASURES:
        if name in profile.measures:
            found = MEASURES[name].table(profile.measurement(name))
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
    show_blocks(out, [Words(words) for words in dtype_words(manifest)])
    show_validation(out, manifest.fidelity, manifest.loss, chosen)
    show_blocks(out, ladder_blocks(ladder(manifest, engines)))
    if unjudged := unjudged_words(manifest.loss, unparted=bool(manifest.unparted)):
        out.warn(unjudged)


def show_rewrite(out: Output, report: RewriteReport | None) -> None:
    """Print how far the rewritten model, nothing cut, is from the original."""
    show_blocks(out, [Words(rewrite_words(report))])


def show_bench(out: Output, report: BenchReport, chosen: Plan, dtype: str) -> None:
    """Print the times of original and compressed, and the KV caches beside what the plan predicts."""
    show_blocks(out, bench_blocks(report, chosen, dtype))


def show_validation(
    out: Output,
    fidelity: FidelityReport | None,
    loss: LossReport | None,
    chosen: Plan,
    unmeasured: str = NO_ANSWERS,
) -> None:
    """Print both checks and the exits of the questions; `unmeasured` is why answers were not compared."""
    show_blocks(out, [fidelity_outcome(fidelity)])
    show_loss(out, loss, unmeasured)
    exits = exits_table(chosen, loss)
    show_blocks(out, [exits] if exits else [])


def show_parity(out: Output, parity: BackendParity, unmeasured: str = NO_ANSWERS) -> None:
    """Print how a backend compares with ONNX Runtime on the CPU, and what its answers lose."""
    what = ", ".join(filter(None, (parity.backend, parity.precision, parity.device)))
    compared = f"{what} against {REFERENCE}"
    show_blocks(out, [fidelity_outcome(parity.outputs, "Backend parity", compared)])
    show_loss(out, parity.loss, unmeasured)


def show_selftest(out: Output, report: SelftestReport) -> None:
    """Print what became of each part, what could not be judged, where states part, and the verdict."""
    for part in report.parts:
        out.line(part.line)
        for line in part.notes:
            out.line(f"- {line}")
    if report.located is not None:
        out.line(report.located.line)
    if report.not_located:
        out.line(f"where states part is not told: {report.not_located}")
    out.always(report.line)


def show_loss(out: Output, report: LossReport | None, unmeasured: str = NO_ANSWERS) -> None:
    """Print the second check, or why it was not run; warnings however quiet the output is."""
    show_blocks(out, loss_blocks(report, unmeasured))
    for line in report.warnings if report else ():
        out.warn(line)


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
