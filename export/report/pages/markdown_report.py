"""The report of an artifact as Markdown, in the order of the HTML report."""

from itertools import chain
from typing import TYPE_CHECKING

from compressor.methods import label_of_cuts
from compressor.plan.cost import BYTES, predict
from compressor.plan.plan import LayerPlan, Plan
from export.artifact.manifest import Manifest
from export.report.charts.heads import HEAD_COLUMNS, head_rows
from export.report.data import (
    ReportData,
    exit_kl,
    head_score,
    headline,
    layer_contribution,
)
from export.report.done_gained_lost import done, gained, lost
from export.report.questions import chosen_questions
from export.report.text.markdown import escaped, fenced, table
from export.report.words.checks import (
    INTERVAL_WORDS,
    RIGHT_COLUMNS,
    TOKEN_COLUMNS,
    fidelity_rows,
    loss_limit_rows,
    loud,
    right_rows,
    token_rows,
)
from export.report.words.cuts import (
    cut_columns,
    cut_rows,
    cuts_words,
    kv_text_columns,
    kv_text_rows,
    semantics_words,
)
from export.report.words.dtypes import dtype_words, not_timed_words, reference_words
from export.report.words.exits import (
    CACHE_COLUMNS,
    EXIT_COLUMNS,
    cache_rows,
    cache_words,
    exit_rows,
    exits_words,
    gates_words,
    may_exit,
    mean_words,
    staying,
)
from export.report.words.ladder import COLUMNS, claim, rows
from export.report.words.methods import method_words
from export.results.bench import BenchReport, bench_rows, ms_words, ratio_words
from export.results.footprint import Footprint
from export.results.loss_report import LossReport
from export.results.rewrite import rewrite_words
from export.results.verdict import Check, Verdict, verdict_of, verdict_words

if TYPE_CHECKING:
    from collections.abc import Callable

REPORT_FILE = "report.md"


def markdown_report(data: ReportData) -> str:
    """Return the whole report."""
    manifest = data.manifest
    version = manifest.tools.get("vtcompress", "")
    parts = [f"# {escaped(manifest.model.name)}, compressed by vtcompress {escaped(version)}"]
    parts.append(_headline(manifest))
    sections: tuple[tuple[str, Callable[[], str]], ...] = (
        ("In short", lambda: _in_short(data)),
        ("Layers", lambda: _layers(data)),
        ("Predicted", lambda: _predicted(data)),
        ("Measured", lambda: _measured(data)),
        ("Memory", lambda: memory_words(manifest.memory)),
        ("Check 1: export fidelity", lambda: _fidelity(manifest)),
        ("Check 2: compression loss", lambda: _loss(manifest.loss)),
        ("Sample questions", lambda: _questions(data)),
        ("Ladder of checks", lambda: _ladder(data)),
        ("Made with", lambda: _made_with(data)),
        ("Recipe", lambda: fenced(data.recipe, "yaml") if data.recipe else "Not stored."),
    )
    for title, content in sections:
        parts += [f"## {title}", content()]
    return "\n\n".join(parts) + "\n"


def _headline(manifest: Manifest) -> str:
    lines = [f"- **{figure.value}** {figure.meaning}" for figure in headline(manifest)]
    if manifest.measured:
        m = manifest.measured
        lines.append(
            f"- Measured: prefill {ratio_words(m.prefill)}, first token with vision "
            f"{ratio_words(m.first_token)}, decode step {ratio_words(m.decode_step)}."
        )
    lines.append(
        f"- Export fidelity: {_verdict(manifest.fidelity)}. "
        f"Compression loss: {_verdict(manifest.loss)}."
    )
    lines += [f"- **WARNING: {line}.**" for line in warnings(manifest)]
    lines.append("- The weight file does not shrink: text rows still use every weight.")
    return "\n".join(lines)


def _verdict(check: Check | None) -> str:
    words = loud(verdict_words(check))
    return f"**{words}**" if verdict_of(check) is Verdict.FAILED else words


def warnings(manifest: Manifest) -> tuple[str, ...]:
    """Return what has changed so much that it must be said whatever the limits are."""
    return manifest.loss.warnings if manifest.loss else ()


def _in_short(data: ReportData) -> str:
    methods = ", ".join(map(method_words, data.methods)) or "none"
    parts = [
        f"**Done** (methods: {escaped(methods)}). {' '.join(done(data))}",
        f"**Gained.** {' '.join(gained(data))}",
        f"**Lost.** {' '.join(lost(data))}",
    ]
    return "\n\n".join(parts)


def what_visual_rows_do(layer: LayerPlan) -> str:
    """Return in words what visual rows do in a layer; where gates decide, what they do if they are there."""
    if layer.exited:
        return f"exited ({layer.reason})"
    if not layer.frozen:
        return "updated, read by no head (off)" if layer.off else "updated"
    return (
        "frozen (dead rows: nobody reads them)"
        if layer.reason == "dead"
        else f"frozen ({layer.reason})"
    )


LAYER_COLUMNS = ("layer", "visual rows", "MFLOPs original", "MFLOPs now")
CONTRIBUTION_COLUMN = "contribution (KL, nats)"
EXIT_KL_COLUMN = "exit before it, nats"
KV_COLUMNS = ("KV bytes original", "KV bytes now")


def layer_columns(plan: Plan) -> tuple[str, ...]:
    """Return the head of `layer_rows`."""
    return (*LAYER_COLUMNS[:2], *cut_columns(plan), *LAYER_COLUMNS[2:])


def kv_columns(plan: Plan) -> tuple[str, ...]:
    """Return the head of `kv_rows`."""
    return (*KV_COLUMNS, *kv_text_columns(plan))


def layer_rows(plan: Plan) -> list[tuple[str, ...]]:
    """Return one row a layer: index, what visual rows do, what is cut, MFLOPs original and of the plan."""
    before, after = predict(plan.naive()), predict(plan)
    gates = plan.gates.candidates if plan.gates else ()
    flops = zip(before.layer_flops, after.layer_flops, strict=True)
    rows = zip(plan.layers, staying(plan), cut_rows(plan), flops, strict=True)
    return [
        (
            str(layer.index),
            _state(layer, share, gate=layer.index in gates),
            *cuts,
            *map(mflops, pair),
        )
        for layer, share, cuts, pair in rows
    ]


def _state(layer: LayerPlan, share: float, *, gate: bool) -> str:
    """Return what visual rows do in a layer, in which share of prompts, and whether a gate follows."""
    words = what_visual_rows_do(layer)
    if share < 1 and not layer.exited:
        words = f"{words} in {share:.0%} of prompts"
    return f"{words}; gate behind it" if gate else words


def kv_rows(plan: Plan, dtype: str) -> list[tuple[str, ...]]:
    """Return one row a layer: bytes of the KV cache after the prefill, original and of the plan.

    Where heads were pruned, a third figure: what of the latter is held by heads without visual tokens.
    """
    size = BYTES[dtype]
    pairs = zip(predict(plan.naive()).layer_kv_values, predict(plan).layer_kv_values, strict=True)
    return [
        (f"{before * size:,}", f"{after * size:,}", *alone)
        for (before, after), alone in zip(pairs, kv_text_rows(plan, dtype), strict=True)
    ]


def contribution_rows(data: ReportData) -> list[tuple[str]]:
    """Return one row a layer: its contribution in nats, or a dash where none was measured."""
    if (values := layer_contribution(data.profile)) is None:
        return [("-",)] * len(data.plan.layers)
    return [(f"{value:.3g}",) for value in values]


def exit_kl_rows(data: ReportData) -> list[tuple[str, ...]]:
    """Return one row a layer: the KL of an exit before it, in nats; empty rows where none was measured."""
    if (values := exit_kl(data.profile)) is None:
        return [()] * len(data.plan.layers)
    return [(f"{value:.3g}",) for value in values]


def exit_kl_columns(data: ReportData) -> tuple[str, ...]:
    """Return the head of `exit_kl_rows`."""
    return () if exit_kl(data.profile) is None else (EXIT_KL_COLUMN,)


def mflops(flops: int) -> str:
    """Return a count of operations in millions."""
    return f"{flops / 1e6:,.1f}"


def _layers(data: ReportData) -> str:
    parts = (
        layer_rows(data.plan),
        contribution_rows(data),
        exit_kl_rows(data),
        kv_rows(data.plan, data.manifest.dtype),
    )
    rows = [tuple(chain(*row)) for row in zip(*parts, strict=True)]
    plan = data.plan
    contribution = (CONTRIBUTION_COLUMN, *exit_kl_columns(data))
    columns = (*layer_columns(plan), *contribution, *kv_columns(plan))
    found = [table(columns, rows), *semantics_words(plan, data.methods)]
    if plan.notes:
        found.append("\n".join(["Notes of the planner:", "", *notes_lines(plan)]))
    if (scores := head_score(data.profile)) is not None:
        found += [HEAD_WORDS, table(HEAD_COLUMNS, head_rows(scores, plan))]
    if plan.gates is not None:
        found.append(" ".join((*gates_words(plan.gates)[1:], mean_words(plan))))
        if exits := exit_rows(plan, data.manifest.loss):
            found.append(table(EXIT_COLUMNS, exits))
    return "\n\n".join(found)


HEAD_WORDS = (
    "Head scores: the attention that text tokens pay to visual tokens, divided by what they pay to text "
    "tokens."
)


def notes_lines(plan: Plan) -> list[str]:
    """Return the planner's notes as lines of a Markdown list."""
    return [f"- {escaped(note)}" for note in plan.notes]


def predicted_rows(manifest: Manifest) -> list[tuple[str, str, str, str]]:
    """Return the predicted figures: name, original, compressed, ratio."""
    p = manifest.predicted
    buffers = []
    if p.kv_buffer_bytes is not None and p.kv_buffer_bytes_original is not None:
        buffers = [
            (
                f"KV buffers of fixed size, at most, bytes ({manifest.dtype})",
                f"{p.kv_buffer_bytes_original:,}",
                f"{p.kv_buffer_bytes:,}",
                f"{p.kv_buffer_bytes_original / p.kv_buffer_bytes:.2f} x",
            )
        ]
    return [
        ("prefill MFLOPs", mflops(p.flops_original), mflops(p.flops), f"{p.speedup:.2f} x"),
        (
            f"KV cache bytes ({manifest.dtype})",
            f"{p.kv_bytes_original:,}",
            f"{p.kv_bytes:,}",
            f"{p.kv_bytes_original / p.kv_bytes:.2f} x",
        ),
        *buffers,
    ]


def workload_words(data: ReportData) -> str:
    """Return the prompt that predictions are for, and how many layers are frozen or exited."""
    p, plan = data.manifest.predicted, data.plan
    words = (
        f"For {p.images} image(s), {p.visual} visual and {p.text} text rows{plan.workload.assumed_words}; "
        f"{len(plan.frozen_layers())} of {len(plan.layers)} layers frozen for visual rows"
    )
    if may_exit(plan):
        words += f"; exited: {exits_words(plan)}"
    if (cuts := cuts_words(plan, data.methods)) != "none":
        words += f"; {label_of_cuts()}: {cuts}"
    return f"{words}. {mean_words(plan)}".strip()


def _predicted(data: ReportData) -> str:
    rows = predicted_rows(data.manifest)
    return f"{workload_words(data)}\n\n{table(('', 'original', 'compressed', 'ratio'), rows)}"


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


def bench_words(report: BenchReport) -> str:
    """Return how times were taken."""
    return (
        f"{report.visual} visual and {report.text} text rows, {report.rounds} rounds in turns, "
        f"{report.threads} thread(s), {report.processor}. {STATISTICS[report.statistic]} Only ratios carry "
        "over to another machine."
    )


BENCH_COLUMNS = ("call", "original ms", "compressed ms", "original / compressed")


def _measured(data: ReportData) -> str:
    report, dtype = data.manifest.measured, data.manifest.dtype
    if report is None:
        return not_timed_words(data.manifest)
    rows = [
        (name, ms_words(t.original_ms), ms_words(t.compressed_ms), ratio_words(t))
        for name, t in bench_rows(report)
    ]
    cache = table(CACHE_COLUMNS, cache_rows(data.plan, report, dtype))
    return "\n\n".join(
        [
            escaped(bench_words(report)),
            table(BENCH_COLUMNS, rows),
            cache,
            cache_words(data.plan, report, dtype),
        ]
    )


def memory_words(footprint: Footprint | None) -> str:
    """Return what an artifact takes of memory while it runs."""
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


def _fidelity(manifest: Manifest) -> str:
    report = manifest.fidelity
    dtype = map(escaped, dtype_words(manifest))
    lines = (reference_words(manifest.dtype), rewrite_words(manifest.rewrite), *dtype)
    about = "\n\n".join(lines)
    if report is None:
        return f"{about}\n\nNot run."
    rows = [(*row, escaped(call)) for row, call in fidelity_rows(report)]
    found = table(("measure", "worst", "limit", "verdict", "in call"), rows)
    return f"{about}\n\n{report.calls} outputs compared.\n\n{found}{_outcome(report)}"


def _loss(report: LossReport | None) -> str:
    about = "Original model against the artifact, from image file to text; quality."
    if report is None:
        return f"{about}\n\nNot run: the recipe names no validation data."
    limits = table(("measure", "found", "limit", "verdict"), loss_limit_rows(report))
    tables = "\n\n".join(kinds_tables(report))
    return (
        f"{about} Data: {escaped(report.data)}. {INTERVAL_WORDS}\n\n{limits}{_outcome(report)}\n\n"
        f"By kind of question:\n\n{tables}"
    )


def kinds_tables(report: LossReport) -> list[str]:
    """Return the tables of all kinds of questions: next tokens, and right answers if some are known."""
    pairs = ((TOKEN_COLUMNS, token_rows(report)), (RIGHT_COLUMNS, right_rows(report)))
    return [
        table(columns, [(escaped(kind), *rest) for kind, *rest in found])
        for columns, found in pairs
        if found
    ]


def _outcome(check: Check) -> str:
    if not check.failures:
        words = verdict_words(check)
        return f"\n\n{words[0].upper()}{words[1:]}."
    return "\n\n**Failed:**\n\n" + "\n".join(f"- {escaped(line)}" for line in check.failures)


LADDER_WORDS = (
    "How far the artifact was checked. A claim reaches as far as the last check that ran. Engines may have "
    "been built since this page was written: `vtcompress report ARTIFACT` shows the ladder as it is now."
)


def _ladder(data: ReportData) -> str:
    found = [tuple(escaped(cell) for cell in row) for row in rows(data.rungs)]
    return f"{LADDER_WORDS}\n\n{table(COLUMNS, found)}\n\n{escaped(claim(data.rungs))}"


def questions_words(data: ReportData) -> str:
    """Return how many answers differ, and which are shown."""
    total = len(data.questions)
    different = sum(not question.equal for question in data.questions)
    shown = len(chosen_questions(data.questions))
    if not different:
        return f"All {total} answers are equal, word for word. {shown} are shown."
    return f"{different} of {total} answers differ. {shown} are shown, lost answers first."


def _questions(data: ReportData) -> str:
    if not data.questions:
        return "None: compression loss was not run."
    rows = [
        tuple(
            escaped(words)
            for words in (q.question, q.right or "-", q.original, q.compressed, q.verdict)
        )
        for q in chosen_questions(data.questions)
    ]
    columns = ("question", "right answer", "original", "compressed", "")
    return f"{questions_words(data)}\n\n{table(columns, rows)}"


def digest_rows(data: ReportData) -> list[tuple[str, str]]:
    """Return the digests of what went in."""
    rows = [("model", data.manifest.model_digest)]
    if data.profile is not None:
        rows.append((f"calibration data, {data.profile.data}", data.profile.data_digest))
    if data.manifest.loss is not None:
        rows.append((f"validation data, {data.manifest.loss.data}", data.manifest.loss.data_digest))
    return rows


def _made_with(data: ReportData) -> str:
    manifest = data.manifest
    tools = [(escaped(name), escaped(version)) for name, version in sorted(manifest.tools.items())]
    digests = [(escaped(name), f"`{digest}`") for name, digest in digest_rows(data)]
    parts = [table(("tool", "version"), tools), table(("sha256 of", "digest"), digests)]
    if peak := manifest.peak_memory_bytes:  # 0 where the system does not tell
        parts.append(f"Peak memory of the export: {peak / 2**20:,.0f} MiB.")
    return "\n\n".join(parts)
