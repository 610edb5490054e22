"""Words for a terminal. What a file, a model or data says must not move its cursor or turn words round.

Everything that the commands print goes through here.
"""

import json
import logging
import re
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


class WrittenOutFormatter(logging.Formatter):
    """Formats log records of libraries, whose words come from files too."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as words for a terminal."""
        return written_out(super().format(record))
