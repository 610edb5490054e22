"""What a person sees: tables, progress bars on a terminal and plain lines elsewhere; logs go to stderr."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from compressor.progress import SILENT, Progress
from vtcompress.last_resort import Doing
from vtcompress.terminal import say, say_json, say_line, written_out

Item = TypeVar("Item")

# Shorter loops show nothing; longer ones tell every so many seconds when there is no terminal.
SHOW_AFTER_SECONDS = 2.0
LINE_EVERY_SECONDS = 15.0


# What a cell begins with that holds a figure, or none.
FIGURE_STARTS = ("", *"0123456789-")


@dataclass(frozen=True)
class Output:
    """How much is said, and in which form.

    Attributes:
        verbosity: -1 results only, 0 stages and progress, 1 details too.
        machine: results as one JSON document on stdout, nothing else there.
        doing: notes every stage, for what is said of an error; asked in every step whether to end.
    """

    verbosity: int = 0
    machine: bool = False
    doing: Doing = field(default_factory=Doing)

    @property
    def _tells(self) -> bool:
        return not self.machine and self.verbosity >= 0

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table for people, unless quiet."""
        if not self._tells:
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(written_out(title)) if title else None, title_justify="left")
        cells = [tuple(row) for row in rows]
        for number, column in enumerate(columns):
            figures = number > 1 and all(row[number][:1] in FIGURE_STARTS for row in cells)
            table.add_column(Text(written_out(column)), justify="right" if figures else "left")
        for row in cells:
            table.add_row(*(Text(written_out(cell)) for cell in row))  # a cell is text, not markup
        # Off a terminal a fixed width, so that what is piped into a file does not depend on where it ran.
        Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)

    def line(self, text: str) -> None:
        """Print a line for people, unless quiet."""
        if self._tells:
            say(text)

    def brief(self, text: str) -> None:
        """Print a result for people where quiet leaves out the tables and lines that told it."""
        if not self.machine and not self._tells:
            say(text)

    def always(self, text: str) -> None:
        """Print a result for people, quiet or not."""
        if not self.machine:
            say(text)

    def result(self, document: Any) -> None:
        """Print the result for machines."""
        if self.machine:
            say_json(document)

    def say(self, line: str) -> None:
        """Announce a stage on stderr."""
        self.doing.interrupts.check()
        self.doing.stage = line
        if self.verbosity >= 0:
            say_line(line)

    def warn(self, line: str) -> None:
        """Say on stderr what must not be overlooked, however quiet the output is."""
        say_line(f"WARNING: {line}")

    def track(self, items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
        """Yield the items; show progress on stderr if it takes more than two seconds."""
        self.doing.stage = label
        watched = items
        if self.verbosity >= 0:
            show = self._bar if sys.stderr.isatty() else self._lines
            watched = show(items, label, total)
        for item in watched:
            self.doing.interrupts.check()
            yield item

    def _bar(self, items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        started = time.monotonic()
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(written_out(label), total=total, visible=False)
            for item in items:
                yield item
                visible = time.monotonic() - started > SHOW_AFTER_SECONDS
                bars.update(task, advance=1, visible=visible)

    def _lines(self, items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
        started = printed = time.monotonic()
        for done, item in enumerate(items, start=1):
            yield item
            now = time.monotonic()
            if now - printed > LINE_EVERY_SECONDS and done < total:
                printed = now
                left = (now - started) / done * (total - done)
                self.say(f"{label}: {done} of {total}, {left:.0f} s left")
        taken = time.monotonic() - started
        if taken > SHOW_AFTER_SECONDS:
            self.say(f"{label}: {total} done in {taken:.0f} s")


def shown(progress: Progress | bool | None) -> Progress:
    """Return how a stage that Python calls reports.

    Args:
        progress: what shows it; True: as a command does; False: nothing does; None: as a command on a
            terminal, else nothing.

    Raises:
        TypeError: it is none of these.
    """
    if progress is None:
        progress = sys.stderr is not None and sys.stderr.isatty()
    if isinstance(progress, bool):
        return Output() if progress else SILENT
    if isinstance(progress, type) or not all(
        callable(getattr(progress, name, None)) for name in ("track", "say")
    ):
        raise TypeError(
            f"progress: {progress!r:.60} shows nothing: it has no methods track and say; give True, "
            "False, None or what has them"
        )
    return progress
