"""Work, times, caches and memory: predicted by counting, and measured."""

from compressor.methods import label_of_cuts
from compressor.plan.plan import Plan
from export.artifact.manifest import Manifest
from export.report.charts.bars import speed_chart
from export.report.data import ReportData
from export.report.document import Beside, Block, Chart, Section, Table, Words
from export.report.sections.layers import mflops
from export.report.words.cuts import cuts_words
from export.report.words.dtypes import not_timed_words
from export.report.words.exits import (
    cache_table,
    cache_words,
    exits_words,
    may_exit,
    mean_words,
    timed_plan,
)
from export.report.words.front import visual_words
from export.results.bench import BenchReport, bench_rows, ms_words, ratio_words
from export.results.footprint import Footprint

STATISTICS = {
    "middle round": (
        "Times and ratio are those of the round in the middle, whose ratio is the median; in brackets the "
        "quartiles of the rounds' ratios."
    ),
    "least": (
        "Times are the least of the rounds, so that the ratio, the median of the rounds' ratios with its "
        "quartiles, is not the ratio of these times (an older vtcompress wrote this)."
    ),
}
"""What the times of a report are, by its statistic."""


def speed_section(data: ReportData) -> Section:
    """Return the section of a report."""
    manifest, measured = data.manifest, data.manifest.measured
    caption = (
        "Speed beside the original's, which is 1 x. Striped: predicted by counting; whiskers: quartiles of "
        "measured rounds."
    )
    timings = bench_rows(measured) if measured else []
    chart = Chart(speed_chart(manifest.predicted.speedup, timings), caption)
    timed: list[Block] = [Words(not_timed_words(manifest))]
    if measured is not None:
        timed = bench_blocks(measured, data.plan, manifest.dtype)
    blocks: list[Block] = [
        Words(_workload_words(data)),
        Beside([[chart], [predicted_table(manifest), *timed]], "two stack"),
        Words(_memory_words(manifest.memory)),
    ]
    return Section("speed", "Speed", "Speed: predicted and measured", blocks)


def bench_blocks(report: BenchReport, plan: Plan, dtype: str) -> list[Block]:
    """Return the times of original and compressed, and the KV caches beside what the plan predicts."""
    rows = [
        (name, ms_words(t.original_ms), ms_words(t.compressed_ms), ratio_words(t))
        for name, t in bench_rows(report)
    ]
    words = (
        f"{visual_words(timed_plan(plan, report))} visual and {report.text} text rows, {report.rounds} "
        f"rounds in turns, {report.threads} thread(s), {report.processor}. {STATISTICS[report.statistic]} "
        "Only ratios carry over to another machine."
    )
    columns = ("call", "original ms", "compressed ms", "original / compressed")
    return [
        Table("Measured", columns, rows),
        Words(words, minor=True),
        cache_table(plan, report, dtype),
        Words(cache_words(plan, report, dtype)),
    ]


def predicted_table(manifest: Manifest) -> Table:
    """Return the predicted figures: name, original, compressed, ratio."""
    p, dtype = manifest.predicted, manifest.dtype
    rows = [("prefill MFLOPs", mflops(p.flops_original), mflops(p.flops), f"{p.speedup:.2f} x")]
    cache = (f"KV cache bytes ({dtype})", p.kv_bytes_original, p.kv_bytes)
    fixed = f"KV buffers of fixed size, at most, bytes ({dtype})"
    for name, before, after in (cache, (fixed, p.kv_buffer_bytes_original, p.kv_buffer_bytes)):
        if before is not None and after is not None:
            rows.append((name, f"{before:,}", f"{after:,}", f"{before / after:.2f} x"))
    return Table("Predicted", ("", "original", "compressed", "ratio"), rows)


def _workload_words(data: ReportData) -> str:
    """Return the prompt that predictions are for, and how many layers are frozen or exited."""
    p, plan = data.manifest.predicted, data.plan
    words = (
        f"For {p.images} image(s), {visual_words(plan)} visual and {p.text} text rows"
        f"{plan.workload.assumed_words}; {len(plan.frozen_layers())} of {len(plan.layers)} layers frozen for "
        "visual rows"
    )
    if may_exit(plan):
        words += f"; exited: {exits_words(plan)}"
    if (cuts := cuts_words(plan, data.methods)) != "none":
        words += f"; {label_of_cuts()}: {cuts}"
    return f"{words}. {mean_words(plan)}".strip()


def _memory_words(footprint: Footprint | None) -> str:
    """Return what an artifact takes of memory while it runs."""
    if footprint is None:
        return "Memory: not measured."
    counts = (footprint.empty_bytes, footprint.loaded_bytes, footprint.answered_bytes)
    empty, loaded, answered = (f"{count / 2**20:,.0f} MiB" for count in counts)
    return (
        f"Resident memory of a process that runs the artifact (ONNX Runtime, CPU): {loaded} after load, "
        f"{answered} after one picture and {footprint.tokens} tokens; {empty} of it are Python's own."
    )
