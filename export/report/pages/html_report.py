"""The report of an artifact as one HTML file that needs nothing else: no network, no script, no fonts.

Everything that comes from a recipe, data or a model is escaped by the template; charts are SVG inside.
"""

from itertools import chain
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from export.report import done_gained_lost as in_words
from export.report.charts.bars import contribution_chart, exit_chart, kinds_chart, speed_chart
from export.report.charts.decoder import decoder_picture
from export.report.charts.heads import HEAD_COLUMNS, head_chart, head_rows
from export.report.data import (
    ReportData,
    exit_kl,
    head_score,
    headline,
    layer_contribution,
)
from export.report.pages import markdown_report as report
from export.report.questions import Question, Thumbnail, chosen_questions, thumbnail
from export.report.text.svg import plain
from export.report.words import checks, exits, ladder
from export.report.words.cuts import semantics_words
from export.report.words.dtypes import dtype_words, not_timed_words, reference_words
from export.report.words.methods import method_words
from export.report.words.states import states
from export.results.bench import bench_rows, ms_words, ratio_words
from export.results.rewrite import rewrite_words
from export.results.verdict import Verdict, verdict_of, verdict_words

HTML_FILE = "report.html"
TEMPLATES = Path(__file__).parent.parent / "templates"
# Longer answers are cut in the page; the artifact holds them whole.
LONGEST_ANSWER = 1200


def render(name: str, **values: Any) -> str:
    """Return a template filled in; every value is escaped unless it is markup of ours."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: (
            plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value
        ),
    )
    return environment.get_template(name).render(**values)


def html_report(data: ReportData) -> str:
    """Return the whole report."""
    manifest, plan = data.manifest, data.plan
    measured, loss, fidelity = manifest.measured, manifest.loss, manifest.fidelity
    timings = bench_rows(measured) if measured else []
    scores = head_score(data.profile)
    return render(
        "report.html.j2",
        manifest=manifest,
        methods=[method_words(method) for method in data.methods],
        figures=headline(manifest),
        done=in_words.done(data),
        gained=in_words.gained(data),
        lost=in_words.lost(data),
        verdicts=_verdicts(data),
        decoder=decoder_picture(plan, manifest.dtype),
        states=states(plan),
        exited=any(layer.exited for layer in plan.layers),
        gates=[*exits.gates_words(plan.gates)[1:], exits.mean_words(plan)] if plan.gates else [],
        exit_columns=exits.EXIT_COLUMNS,
        exit_rows=exits.exit_rows(plan, loss),
        contribution=_contribution(data),
        exit=_exit(data),
        heads=_heads(data),
        head_words=report.HEAD_WORDS,
        head_columns=HEAD_COLUMNS,
        head_rows=head_rows(scores, plan) if scores else [],
        semantics=semantics_words(plan, data.methods),
        notes=plan.notes,
        calibrated=data.profile,
        layer_columns=(
            *report.layer_columns(plan),
            report.CONTRIBUTION_COLUMN,
            *report.exit_kl_columns(data),
            *report.kv_columns(plan),
        ),
        layer_rows=_layer_rows(data),
        workload=report.workload_words(data),
        predicted=report.predicted_rows(manifest),
        speed=speed_chart(manifest.predicted.speedup, timings),
        warnings=report.warnings(manifest),
        bench=report.bench_words(measured) if measured else None,
        cache_columns=exits.CACHE_COLUMNS,
        cache_rows=exits.cache_rows(plan, measured, manifest.dtype) if measured else [],
        cache=exits.cache_words(plan, measured, manifest.dtype) if measured else None,
        memory=report.memory_words(manifest.memory) if manifest.memory else None,
        bench_columns=report.BENCH_COLUMNS,
        timings=[
            (name, ms_words(t.original_ms), ms_words(t.compressed_ms), ratio_words(t))
            for name, t in timings
        ],
        reference=reference_words(manifest.dtype),
        dtype_lines=(rewrite_words(manifest.rewrite), *dtype_words(manifest)),
        not_timed=not_timed_words(manifest),
        fidelity_rows=checks.fidelity_rows(fidelity) if fidelity else [],
        loss_limits=checks.loss_limit_rows(loss) if loss else [],
        token_columns=checks.TOKEN_COLUMNS,
        token_rows=checks.token_rows(loss) if loss else [],
        right_columns=checks.RIGHT_COLUMNS,
        right_rows=checks.right_rows(loss) if loss else [],
        interval_words=checks.INTERVAL_WORDS,
        kinds=kinds_chart(loss.kinds) if loss else None,
        ladder_words=report.LADDER_WORDS,
        rungs=data.rungs,
        claim=ladder.claim(data.rungs),
        on_gpu=ladder.ran_on_gpu(data.rungs),
        questions=[_card(question) for question in chosen_questions(data.questions)],
        questions_words=report.questions_words(data),
        digests=report.digest_rows(data),
        tools=sorted(manifest.tools.items()),
        recipe=data.recipe,
    )


def _layer_rows(data: ReportData) -> list[tuple[str, ...]]:
    parts = (
        report.layer_rows(data.plan),
        report.contribution_rows(data),
        report.exit_kl_rows(data),
        report.kv_rows(data.plan, data.manifest.dtype),
    )
    return [tuple(chain(*row)) for row in zip(*parts, strict=True)]


def _contribution(data: ReportData) -> Markup | None:
    values = layer_contribution(data.profile)
    if values is None or data.profile is None:
        return None
    return contribution_chart(values, len(data.profile.samples), data.plan)


def _exit(data: ReportData) -> Markup | None:
    values = exit_kl(data.profile)
    if values is None or data.profile is None:
        return None
    bounds = [method.bounds().get("exit_kl") for method in data.methods]
    allowed = next((bound for bound in bounds if bound is not None), None)
    return exit_chart(values, len(data.profile.samples), data.plan.exit_layer, allowed)


def _heads(data: ReportData) -> Markup | None:
    scores = head_score(data.profile)
    if scores is None or data.profile is None:
        return None
    return head_chart(scores, len(data.profile.samples), data.plan)


def _verdicts(data: ReportData) -> list[tuple[str, str, Verdict, str]]:
    """Return the two checks: name, what it compares, the verdict, and its words."""
    rows = (
        ("Export fidelity", "compressed model and its files", data.manifest.fidelity),
        ("Compression loss", "original and compressed answers", data.manifest.loss),
    )
    return [(name, what, verdict_of(check), verdict_words(check)) for name, what, check in rows]


def _card(question: Question) -> dict[str, Any]:
    pictures: list[Thumbnail | None] = [thumbnail(path) for path in question.images]
    same, original, compressed = _common(question.original, question.compressed)
    return {
        "question": question,
        "pictures": pictures,
        "same": same,
        "original": original,
        "compressed": compressed,
    }


def _common(original: str, compressed: str) -> tuple[str, str, str]:
    """Return what two answers begin with, word by word, and the rests."""
    a, b = original[:LONGEST_ANSWER], compressed[:LONGEST_ANSWER]
    ends = ["…" if len(whole) > LONGEST_ANSWER else "" for whole in (original, compressed)]
    if a == b:
        return a + ends[0], "", ""
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    length = a.rfind(" ", 0, length) + 1
    return a[:length], a[length:] + ends[0], b[length:] + ends[1]
