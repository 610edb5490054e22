"""Kinds of paths that commands take; a path that no file can have ends in one line."""

import os
from pathlib import Path
from typing import Any

import click

from compressor.disk.paths import check_path


class _PathKind(click.Path):
    """Paths as click takes them, but for those that no file can have; `~` is the home folder.

    Shells leave `--output=~/name` as it is, and a folder named `~` is one that people remove with care.
    """

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; see `check_path` for what is refused."""
        # expanduser leaves a user that does not exist as it is.
        value = os.path.expanduser(value)  # noqa: PTH111
        check_path(Path(value))
        return super().convert(value, param, ctx)


FILE = _PathKind(path_type=Path, dir_okay=False)
READ = _PathKind(path_type=Path)
"""What is read; who reads it says what was given instead."""

FOLDER = _PathKind(path_type=Path, file_okay=False)
