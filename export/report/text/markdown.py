"""Markdown from plain words: tables, fences and escaped text, for reports and model cards."""

import re
from collections.abc import Iterable, Sequence

from export.report.text.svg import plain

_SPECIAL = re.compile(r"([\\`*_\[\]<>#!~&$])")


def escaped(words: str) -> str:
    """Return words from a recipe, data or model so that Markdown and HTML show them as they are.

    Line breaks become spaces. Pipes are left to `table`.
    """
    return _SPECIAL.sub(r"\\\1", " ".join(plain(words).split()))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; pipes and line breaks in its cells do not break it."""

    def line(cells: Sequence[str]) -> str:
        return (
            "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"
        )

    return "\n".join([line(columns), line(["---"] * len(columns)), *map(line, rows)])


def fenced(content: str, language: str = "") -> str:
    """Return a code block that no run of backticks inside it ends."""
    longest = max((len(run) for run in re.findall("`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{plain(content).rstrip()}\n{fence}"
