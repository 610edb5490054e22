"""A document as one HTML file that needs nothing else: no network, no script, no fonts.

Everything that comes from a recipe, data or a model is escaped by the template; charts are SVG inside.
"""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from compressor.samples.small_pictures import small_picture
from export.report.charts.cells import cells_charts
from export.report.document import Document
from export.report.kept_pictures import KeptPicture
from export.report.questions import Question
from export.report.text.characters import printable

TEMPLATES = Path(__file__).parent.parent / "templates"
# Longer answers are cut in the page; the artifact holds them whole.
LONGEST_ANSWER = 1200
TONES = {"lost": "bad", "won": "good", "same": ""}


def html(document: Document) -> str:
    """Return the whole page; every value is escaped unless it is markup of ours."""
    # Commands that write no page start without it.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: (
            printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
        ),
    )
    environment.filters |= {"kind": lambda block: type(block).__name__, "card": _card}
    return environment.get_template("page.html.j2").render(document=document)


def _card(row: tuple[Question, tuple[KeptPicture, ...]], number: int) -> dict[str, Any]:
    """Return what the template shows of a question: of each picture its name, itself, and drawings of it."""
    question, kept = row
    same, original, compressed = _common(question.original, question.compressed)
    pictures = []
    for place, path in enumerate(question.images):
        name, small, drawn = f"Picture {place + 1} of the question", small_picture(path), []
        if small is not None and place < len(kept):
            drawn = list(cells_charts(f"kept-{number}-{place}", name, kept[place], small))
        pictures.append((name, small, drawn))
    return {
        "question": question,
        "pictures": pictures,
        "same": same,
        "original": original,
        "compressed": compressed,
        "tone": TONES.get(question.outcome, "changed"),
    }


def _common(original: str, compressed: str) -> tuple[str, str, str]:
    """Return what two answers begin with, word by word, and the rests."""
    a, b = original[:LONGEST_ANSWER], compressed[:LONGEST_ANSWER]
    ends = ["…" if len(whole) > LONGEST_ANSWER else "" for whole in (original, compressed)]
    if a == b:
        return a + ends[0], "", ""
    differ = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    length = a.rfind(" ", 0, next(differ, min(len(a), len(b)))) + 1
    return a[:length], a[length:] + ends[0], b[length:] + ends[1]
