"""The report of an artifact: one document, as HTML and as Markdown."""

from export.artifact.manifest import Manifest
from export.report.data import ReportData, headline
from export.report.document import (
    Beside,
    Block,
    Bullets,
    Cards,
    Code,
    Document,
    Group,
    Headline,
    Outcome,
    Section,
    Table,
    Words,
)
from export.report.kept_pictures import KeptPicture, kept_pictures
from export.report.questions import chosen_questions
from export.report.render.html import html
from export.report.render.markdown import markdown
from export.report.sections.checks import fidelity_section, ladder_section, loss_section
from export.report.sections.layers import layers_section
from export.report.sections.short import done, gained, lost
from export.report.sections.speed import speed_section
from export.report.words.front import cells_words, drawable
from export.report.words.ladder import ran_on_gpu
from export.report.words.methods import methods_words
from export.results.loss_report import unjudged_words

HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"
NOT_BY_RECIPE = {
    False: (
        "The plan was changed since a recipe made it, or made by another recipe: what stands under compress "
        "here is not what decided on it."
    ),
    None: (
        "The plan does not say what made it: it is by hand, or of an earlier version of vtcompress. Whether "
        "what stands under compress here decided on it is not known."
    ),
}
"""What is said of a recipe, by whether it made the plan; None: nobody knows."""


def html_report(data: ReportData) -> str:
    """Return the whole report as a page."""
    return html(report_document(data))


def markdown_report(data: ReportData) -> str:
    """Return the whole report as Markdown."""
    return markdown(report_document(data))


def report_document(data: ReportData) -> Document:
    """Return the report of an artifact."""
    manifest = data.manifest
    sections = (
        Section("head", "Headline", "", head_blocks(manifest)),
        Section("short", "In short", "In short", _short(data)),
        layers_section(data),
        speed_section(data),
        fidelity_section(manifest),
        loss_section(manifest.loss),
        Section("questions", "Questions", "Sample questions", _questions(data)),
        ladder_section(data),
        Section("made", "Made with", "Made with", _made_with(data)),
        recipe_section(data),
    )
    foot = "The same in Markdown: report.md."
    if not ran_on_gpu(data.rungs):
        foot += " Nothing here was run on a GPU."
    version = manifest.tools.get("vtcompress", "")
    methods = methods_words(data.methods, by_recipe=bool(data.by_recipe))
    sub = f"{methods} · {manifest.dtype} ONNX · vtcompress {version}"
    return Document(f"{manifest.model.name}, compressed", sub, sections, foot)


def head_blocks(manifest: Manifest) -> list[Block]:
    """Return that nobody judged the answers if so, the headline, what became of the checks, and warnings."""
    checks = (
        Outcome.of("Export fidelity (compressed model and its files)", manifest.fidelity),
        Outcome.of(f"Compression loss ({_asked(manifest)})", manifest.loss),
    )
    blocks: list[Block] = []
    if unjudged := unjudged_words(manifest.loss, unparted=bool(manifest.unparted)):
        blocks.append(Bullets((f"WARNING: {unjudged}",), bad=True))
    blocks += [Headline(headline(manifest)), Bullets(checks)]
    if manifest.loss and manifest.loss.warnings:
        lines = tuple(f"WARNING: {line}" for line in manifest.loss.warnings)
        blocks.append(Bullets(lines, bad=True))
    return blocks


def _asked(manifest: Manifest) -> str:
    return (
        "right answers forced, by layer" if _forced(manifest) else "original and compressed answers"
    )


def _forced(manifest: Manifest) -> bool:
    return manifest.loss is not None and manifest.loss.by_layer is not None


def _short(data: ReportData) -> list[Block]:
    parts = (("done", done(data)), ("gained", gained(data)), ("lost", lost(data)))
    groups = [[Group(f"What was {part}", [*map(Words, words)])] for part, words in parts]
    return [Beside(groups, "three")]


def _questions(data: ReportData) -> list[Block]:
    """Return how many answers differ, and some questions."""
    total, shown = len(data.questions), chosen_questions(data.questions)
    if not total:
        why = (
            "answers were not generated"
            if _forced(data.manifest)
            else "compression loss was not run"
        )
        return [Words(f"None: {why}.")]
    words = f"All {total} answers are equal, word for word. {len(shown)} are shown."
    if different := sum(not question.equal for question in data.questions):
        words = (
            f"{different} of {total} answers differ. {len(shown)} are shown, lost answers first."
        )
    kept: tuple[tuple[KeptPicture, ...], ...] = ()
    if drawable(data.plan):
        kept = tuple(kept_pictures(question, data.manifest) for question in shown)
    pictured = any(question.images or question.missing for question in shown)
    cells = cells_words(data.plan, drawn=any(kept)) if pictured else ()
    return [Words(words), *map(Words, cells), Cards(shown, kept)]


def _made_with(data: ReportData) -> list[Block]:
    manifest, profile, loss = data.manifest, data.profile, data.manifest.loss
    digests = [("model", manifest.model_digest)]
    if profile is not None:
        digests.append((f"calibration data, {profile.data}", profile.data_digest))
    if loss is not None:
        digests.append((f"validation data, {loss.data}", loss.data_digest))
    words = f"Model: {manifest.model.architecture}."
    if peak := manifest.peak_memory_bytes:  # 0 where the system does not tell
        words = f"Peak memory of the export: {peak / 2**20:,.0f} MiB. {words}"
    peaks = manifest.peak_memory_by_stage or {}
    stages = [(stage, f"{peak / 2**20:,.0f}") for stage, peak in peaks.items()]
    by_stage = [Table("Peak memory by stage", ("stage", "MiB"), stages)] if stages else []
    tools = Table("Versions", ("tool", "version"), sorted(manifest.tools.items()))
    return [
        Beside(
            [[tools], [Table("Digests", ("sha256 of", "digest"), digests), *by_stage, Words(words)]]
        )
    ]


def recipe_section(data: ReportData) -> Section:
    """Return the recipe as it was resolved."""
    block = Code(data.recipe, "yaml") if data.recipe else Words("Not stored.")
    words = [] if data.by_recipe else [Words(NOT_BY_RECIPE[data.by_recipe])]
    return Section("recipe", "Recipe", "Recipe", [*words, block])
