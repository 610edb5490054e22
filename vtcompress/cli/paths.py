"""Kinds of paths that commands take; a path that no file can have ends in one line."""

from pathlib import Path
from typing import Any

import click

from compressor.disk.paths import check_path


class _PathKind(click.Path):
    """Paths as click takes them, but for those that no file can have."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; see `check_path` for what is refused."""
        check_path(Path(value))
        return super().convert(value, param, ctx)


FILE = _PathKind(path_type=Path, dir_okay=False)
FOLDER = _PathKind(path_type=Path, file_okay=False)
