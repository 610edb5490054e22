"""Kinds of paths that commands take; a path that no file can have ends in one line."""

from pathlib import Path
from typing import Any

import click

from compressor.disk.paths import at_home, check_path


class _PathKind(click.Path):
    """Paths as click takes them, but for those that no file can have; `~` is the home folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; see `check_path` for what is refused."""
        value = at_home(value)
        check_path(Path(value))
        return super().convert(value, param, ctx)


FILE = _PathKind(path_type=Path, dir_okay=False)
READ = _PathKind(path_type=Path)
"""What is read; who reads it says what was given instead."""

FOLDER = _PathKind(path_type=Path, file_okay=False)
