"""The report of an artifact: what was done, gained and lost, as Markdown from the manifest and plan alone."""

from collections.abc import Iterable, Sequence

from compressor.cost import predict
from compressor.plan import LayerPlan, Plan
from export.bench import BenchReport, Timing
from export.manifest import Manifest
from export.memory import Footprint
from export.parity.fidelity import Difference, FidelityReport
from export.parity.loss import LossFigures, LossReport

REPORT_FILE = "report.md"


def markdown_report(manifest: Manifest, plan: Plan) -> str:
    """Return the whole report."""
    parts = [
        f"# {manifest.model.name}, compressed by vtcompress {manifest.tools['vtcompress']}",
        _headline(manifest),
        "## Layers",
        _layers(plan),
        "## Predicted",
        _predicted(manifest, plan),
        "## Measured",
        _measured(manifest.measured),
        "## Memory",
        _memory(manifest.memory),
        "## Check 1: export fidelity",
        "Compressed torch model (float32) against its own exported graphs; numerical, tight.",
        _fidelity(manifest.fidelity),
        "## Check 2: compression loss",
        "Original model against the artifact, from image file to text; quality.",
        _loss(manifest.loss),
        "## Made with",
        _table(("tool", "version"), sorted(manifest.tools.items())),
        f"Model digest `{manifest.model_digest}`. Peak memory of the export: "
        f"{manifest.peak_memory_bytes / 2**20:,.0f} MiB.",
    ]
    return "\n\n".join(parts) + "\n"


def _headline(manifest: Manifest) -> str:
    p = manifest.predicted
    lines = [
        f"- Decoder prefill needs **{p.flops / p.flops_original:.0%}** of the original's work "
        f"(predicted speed-up {p.speedup:.2f} x).",
    ]
    if manifest.measured:
        m = manifest.measured
        lines.append(
            f"- Measured: prefill **{_ratio(m.prefill)}**, first token with vision "
            f"{_ratio(m.first_token)}, decode step {_ratio(m.decode_step)}."
        )
    if manifest.loss:
        kept = manifest.loss.overall.exact_match_kept
        if kept is not None:
            lines.append(f"- Right answers kept: **{kept:.1%}** of the original's.")
    fidelity = _verdict(manifest.fidelity)
    lines.append(f"- Export fidelity: {fidelity}. Compression loss: {_verdict(manifest.loss)}.")
    lines.append("- The weight file does not shrink: text rows still use every weight.")
    return "\n".join(lines)


def _verdict(check: FidelityReport | LossReport | None) -> str:
    if check is None:
        return "not run"
    return "passed" if check.passed else "**FAILED**"


def what_visual_rows_do(layer: LayerPlan) -> str:
    """Return in words what visual rows do in a layer."""
    if not layer.frozen:
        return "updated"
    return "frozen (dead rows: exact)" if layer.reason == "dead" else f"frozen ({layer.reason})"


def layer_rows(plan: Plan) -> list[tuple[str, str, str, str]]:
    """Return one row a layer: index, what visual rows do, MFLOPs original, MFLOPs of the plan."""
    before, after = predict(plan.naive()), predict(plan)
    return [
        (str(layer.index), what_visual_rows_do(layer), _short(a), _short(b))
        for layer, a, b in zip(plan.layers, before.layer_flops, after.layer_flops, strict=True)
    ]


LAYER_COLUMNS = ("layer", "visual rows", "MFLOPs original", "MFLOPs now")


def _short(flops: int) -> str:
    return f"{flops / 1e6:,.1f}"


def _layers(plan: Plan) -> str:
    return _table(LAYER_COLUMNS, layer_rows(plan))


def _predicted(manifest: Manifest, plan: Plan) -> str:
    p = manifest.predicted
    rows = [
        ("prefill MFLOPs", _short(p.flops_original), _short(p.flops), f"{p.speedup:.2f} x"),
        (
            f"KV cache bytes ({manifest.dtype})",
            f"{p.kv_bytes_original:,}",
            f"{p.kv_bytes:,}",
            f"{p.kv_bytes_original / p.kv_bytes:.2f} x",
        ),
    ]
    head = f"For {p.images} image(s), {p.visual} visual and {p.text} text rows; "
    head += f"{len(plan.frozen_layers())} of {len(plan.layers)} layers frozen for visual rows."
    return head + "\n\n" + _table(("", "original", "compressed", "ratio"), rows)


def _ratio(timing: Timing) -> str:
    return f"{timing.ratio:.2f} x ({timing.ratio_low:.2f} to {timing.ratio_high:.2f})"


def _measured(report: BenchReport | None) -> str:
    if report is None:
        return "Not measured."
    rows = [
        (name, f"{t.original_ms:.2f}", f"{t.compressed_ms:.2f}", _ratio(t))
        for name, t in bench_rows(report)
    ]
    head = (
        f"{report.visual} visual and {report.text} text rows, {report.rounds} rounds in turns, "
        f"{report.threads} thread(s), {report.processor}. Times are the least of the rounds; the ratio is "
        "the median of the rounds' ratios with its quartiles. Only ratios carry over to another machine."
    )
    return (
        head + "\n\n" + _table(("", "original ms", "compressed ms", "original / compressed"), rows)
    )


def _memory(footprint: Footprint | None) -> str:
    if footprint is None:
        return "Not measured."
    empty, loaded, answered = (
        f"{count / 2**20:,.0f} MiB"
        for count in (footprint.empty_bytes, footprint.loaded_bytes, footprint.answered_bytes)
    )
    return (
        f"Resident memory of a process that runs the artifact (ONNX Runtime, CPU): {loaded} after load, "
        f"{answered} after one picture and {footprint.tokens} tokens; {empty} of it are Python's own."
    )


def bench_rows(report: BenchReport) -> list[tuple[str, Timing]]:
    """Return the timings under the names people read."""
    return [
        ("prefill", report.prefill),
        ("decode step", report.decode_step),
        ("first token with vision", report.first_token),
    ]


def _fidelity(report: FidelityReport | None) -> str:
    if report is None:
        return "Not run."
    rows = [
        ("max abs", _scientific(report.worst_abs.max_abs), f"<= {report.limits.max_abs:g}"),
        (
            "max relative",
            _scientific(report.worst_relative.max_relative),
            f"<= {report.limits.max_relative:g}",
        ),
        ("cosine", f"{report.worst_cosine.cosine:.7f}", f">= {report.limits.min_cosine:g}"),
    ]
    calls = (report.worst_abs, report.worst_relative, report.worst_cosine)
    table = _table(
        ("measure", "worst", "limit", "in call"),
        [(*row, _call(difference)) for row, difference in zip(rows, calls, strict=True)],
    )
    return f"{report.calls} outputs compared.\n\n{table}" + _failures(report.failures)


def _call(difference: Difference) -> str:
    return difference.call


def _scientific(value: float) -> str:
    return f"{value:.2e}"


def _loss(report: LossReport | None) -> str:
    if report is None:
        return "Not run: the recipe names no validation data."
    rows = [loss_row(figures) for figures in (report.overall, *report.kinds)]
    limits = {k: v for k, v in report.limits.model_dump().items() if v is not None}
    judged = ", ".join(f"{k} {v:g}" for k, v in limits.items()) or "none, figures are reported only"
    head = f"Data: {report.data}. Limits: {judged}."
    return f"{head}\n\n{_table(LOSS_COLUMNS, rows)}" + _failures(report.failures)


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
        _percent(figures.exact_match_original),
        _percent(figures.exact_match),
        _percent(figures.exact_match_kept),
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _failures(failures: Sequence[str]) -> str:
    if not failures:
        return "\n\nPassed."
    return "\n\n**Failed:**\n\n" + "\n".join(f"- {line}" for line in failures)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return (
            "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"
        )

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])
