"""Words for a terminal. What a file, a model or data says must not move its cursor or turn words round.

Everything that the commands print goes through here.
"""

import json
import logging
import os
import re
import sys
from typing import Any

import click

from export.report.text.characters import ACTS

_ACTS = re.compile(f"[\r{ACTS}]")


def written_out(words: str) -> str:
    r"""Return words with each character that a terminal acts on written out, ESC as `\x1b`."""
    return _ACTS.sub(lambda found: ascii(found[0])[1:-1], words)


def say(words: str, *, err: bool = False, nl: bool = True) -> None:
    """Print words on stdout or stderr, with a line feed behind them or without."""
    click.echo(written_out(words), err=err, nl=nl)


def say_line(words: str) -> None:
    r"""Print one line on stderr: a line feed in a name is written out too, as `\n`."""
    say(words.replace("\n", "\\n"), err=True)


def say_json(document: Any) -> None:
    """Print a document as JSON: escapes are JSON's own, so that a reader gets the very characters."""
    text = json.dumps(document, indent=1, ensure_ascii=False)
    click.echo(_ACTS.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def take_closed_streams() -> str | None:
    """Open nothing in the place of closed standard streams; return why nothing can be said, if so.

    A file that is opened next would take the number of a closed one, and what libraries print would go into
    it. Nothing is read from a closed stdin; a closed stderr is not missed.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the least number that is free
    silent = sys.stdout is None
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123
    return "standard output is closed: send it to a file, or to /dev/null" if silent else None


class WrittenOutFormatter(logging.Formatter):
    """Formats log records of libraries, whose words come from files too."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as words for a terminal."""
        return written_out(super().format(record))
