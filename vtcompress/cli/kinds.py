"""Kinds of paths and numbers that commands take; what no file or measure can be ends in one line."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

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


class Duration(click.ParamType[float]):
    """A length of time such as `20m`, `90s` or `1.5h`, in seconds."""

    name = "time"
    units: ClassVar[Mapping[str, float]] = {"s": 1.0, "m": 60.0, "h": 3600.0}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the seconds."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", str(value).strip())
        if found is None or not float(found[1]):
            self.fail(f"{value!r} is no time; write 90s, 20m or 1h.", param, ctx)
        return float(found[1]) * self.units[found[2]]


class Finite(click.FloatRange):
    """Numbers in a range, as click takes them, but for NaN and infinite ones, which pass its comparisons."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number
