"""Markdown from a document, without its drawings; nothing that it holds breaks out of its place."""

import re
from collections.abc import Iterator, Sequence

from export.report import document as doc
from export.report.document import Block, Cards, Document, Group, Outcome, flat
from export.report.text.characters import printable
from export.results.verdict import Verdict

# An underscore inside a word is none of Markdown's.
_SPECIAL = re.compile(r"([\\`*\[\]<>#!~&$]|(?<!\w)_|_(?!\w))")


def markdown(document: Document, *, front: str = "") -> str:
    """Return the whole text.

    Args:
        document: to show.
        front: what stands before its title, written already.
    """
    parts = [front, f"# {escaped(document.title)}", escaped(document.sub)]
    for section in document.sections:
        parts += [f"## {escaped(section.title)}" if section.title else "", *_blocks(section.blocks)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _blocks(blocks: Sequence[Block]) -> Iterator[str]:
    for block in flat(blocks):
        if isinstance(block, Group):
            yield f"### {escaped(block.title)}"
            yield from _blocks(block.blocks)
        else:
            yield _block(block)


def _block(block: Block) -> str:
    match block:
        case doc.Words():
            return escaped(block.text)
        case Outcome():
            return _outcome(block)
        case doc.Bullets():
            lines = (_outcome(x) if isinstance(x, Outcome) else escaped(x) for x in block.lines)
            return "\n".join(f"- **{line}**" if block.bad else f"- {line}" for line in lines)
        case doc.Headline():
            figures = ((escaped(value), escaped(meaning)) for value, meaning in block.figures)
            return "\n".join(f"- **{value}** {meaning}" for value, meaning in figures)
        case doc.Table():
            return f"**{escaped(block.title)}**\n\n{table(block.columns, block.rows)}"
        case doc.Code():
            return fenced(block.text, block.language)
        case Cards():
            return _cards(block)
    return ""  # drawings


def _cards(block: Cards) -> str:
    columns = ["question", "right answer", "original", "compressed", "outcome"]
    rows = [
        [q.sample.question, q.right or "-", q.original, q.compressed, q.verdict]
        for q in block.questions
    ]
    if any(block.kept):
        columns.append("of its pictures")
        for row, (_, kept) in zip(rows, block.rows, strict=True):
            row.append("; ".join(picture.words for picture in kept) or "-")
    return table(columns, rows)


def _outcome(outcome: Outcome) -> str:
    line = escaped(outcome.line)
    return f"**{line}.**" if outcome.verdict is Verdict.FAILED else f"{line}."


def escaped(words: str) -> str:
    """Return words from a recipe, data or model so that Markdown and HTML show them as they are.

    Line breaks become spaces; pipes are left to `table`.
    """
    return _SPECIAL.sub(r"\\\1", " ".join(printable(words).split()))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; nothing in its cells breaks it."""
    head, *cells = ([escaped(cell).replace("|", "\\|") for cell in row] for row in (columns, *rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *cells))


def fenced(content: str, language: str = "") -> str:
    """Return a code block that no run of backticks inside it ends."""
    longest = max((len(run) for run in re.findall("`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{printable(content).rstrip()}\n{fence}"
