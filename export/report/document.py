"""What a report is made of: sections of words, lists, tables, charts and code, whatever they are shown in.

A document is built once from facts; `render/` shows it as HTML or Markdown, the command line its blocks.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from export.report.kept_pictures import KeptPicture
from export.report.questions import Question
from export.results.verdict import Check, Verdict, verdict_of, verdict_words

# What a cell begins with that holds a figure, or none.
FIGURE_STARTS = ("", *"0123456789-")


@dataclass(frozen=True)
class Words:
    """A paragraph; a minor one is small print."""

    text: str
    minor: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a check, marked as good or bad.

    Attributes:
        what: the check, and its figures.
        words: the verdict's, with the reason if it was not judged.
    """

    what: str
    verdict: Verdict
    words: str

    @classmethod
    def of(cls, what: str, check: Check | None) -> "Outcome":
        """Return what became of a check; None: it did not run."""
        return cls(what, verdict_of(check), verdict_words(check))

    @property
    def line(self) -> str:
        """All of it as plain text, where nothing but letters can warn."""
        failed = self.verdict is Verdict.FAILED
        return f"{self.what}: {self.words.upper() if failed else self.words}"


@dataclass(frozen=True)
class Bullets:
    """A list; the lines of a bad one are faults."""

    lines: tuple[str | Outcome, ...]
    bad: bool = False


@dataclass(frozen=True)
class Table:
    """A table; a cell that is a `Verdict` is marked as such.

    Columns of a wrapped one are narrow and all alike, as those of a comparison.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    wrapped: bool = False

    @classmethod
    def of_columns(cls, title: str, columns: Mapping[str, Iterable[str]]) -> "Table":
        """Return a table from its columns, by their headings."""
        return cls(title, tuple(columns), list(zip(*columns.values(), strict=True)))

    def holds_figures(self, column: int) -> bool:
        """Whether every cell of a column is a figure, or none."""
        return all(row[column][:1] in FIGURE_STARTS for row in self.rows)


@dataclass(frozen=True)
class Chart:
    """A drawing, nothing where there are none; `legend`: its words, and what each means."""

    drawing: Markup
    caption: str
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Code:
    """Text as it is in a file."""

    text: str
    language: str = ""


@dataclass(frozen=True)
class Headline:
    """The headline: values, each with what it is the figure of."""

    figures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Cards:
    """Questions with the answers of both models.

    Attributes:
        questions: in the order in which they are shown.
        kept: of each what goes on of its pictures; none where that is not known, or nothing of any is.
    """

    questions: tuple[Question, ...]
    kept: tuple[tuple[KeptPicture, ...], ...] = ()

    @property
    def rows(self) -> Iterator[tuple[Question, tuple[KeptPicture, ...]]]:
        """Each question with what goes on of its pictures."""
        return zip(self.questions, self.kept or ((),) * len(self.questions), strict=True)


@dataclass(frozen=True)
class Group:
    """Blocks under a heading of their own; folded ones a page shows when asked to."""

    title: str
    blocks: "Sequence[Block]"
    folded: bool = False


@dataclass(frozen=True)
class Beside:
    """Columns of blocks, beside each other where there is room.

    `layout` is a class of the page's style: `two`, `three`, or `two stack`, which prints one below the other.
    """

    columns: "Sequence[Sequence[Block]]"
    layout: str = "two"


Block = Words | Outcome | Bullets | Table | Chart | Code | Headline | Cards | Group | Beside


@dataclass(frozen=True)
class Section:
    """One part of a document.

    Attributes:
        key: its place in a page's address.
        short: its name among the page's links.
        title: its heading; empty: none.
    """

    key: str
    short: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Document:
    """A report, a model card or a comparison; `sub` is a line below the title, `foot` ends a page."""

    title: str
    sub: str
    sections: tuple[Section, ...]
    foot: str = ""


def flat(blocks: Sequence[Block]) -> Iterator[Block]:
    """Yield blocks in reading order, those inside others too, without what only arranges them."""
    for block in blocks:
        if isinstance(block, Beside):
            for column in block.columns:
                yield from flat(column)
        elif isinstance(block, Group) and block.folded:
            yield from flat(block.blocks)
        else:
            yield block
