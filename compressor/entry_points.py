"""Classes that other packages bring by an entry point: one loader, and one sentence for those of no use."""

from collections.abc import Callable
from importlib.metadata import entry_points
from traceback import walk_tb
from typing import Any

from compressor.errors import first_line

GROUPS = "vtcompress."
"""Begins the name of every group of entry points that is read."""


def package_in(error: BaseException) -> str:
    """Return the package, by name and version, whose code an error came through; empty: none that we load.

    Of several the innermost: one package's method may have called another's.
    """
    owners: dict[str, Any] = {
        point.module.partition(".")[0]: point.dist
        for group in entry_points().groups
        if group.startswith(GROUPS)
        for point in entry_points(group=group)
    }
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    modules = [str(frame.f_globals.get("__name__", "")).partition(".")[0] for frame in frames]
    dist = next((owners[name] for name in reversed(modules) if name in owners), None)
    return "" if dist is None else f"{dist.name} {dist.version}"


def taken(group: str, what: str, take: Callable[[Any, str, str], str]) -> list[str]:
    """Load what other packages bring; return a line for each that cannot be used.

    Args:
        group: the entry points' group.
        what: a word for what they bring.
        take: gets what was loaded with the package's name and version, keeps it, or returns why it cannot be
            used; may raise.
    """
    problems = []
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        dist: Any = point.dist  # what stands among the installed has one
        try:
            problem = take(point.load(), dist.name, dist.version)
        except Exception as failure:  # noqa: BLE001 - it is another's code
            problem = f"cannot be loaded: {type(failure).__name__}: {first_line(failure)}"
        if problem:
            at = f"{what} {point.value} (entry point {point.name!r} of {group})"
            remedy = f"remove or upgrade {dist.name}"
            problems.append(f"package {dist.name}: its {at} {problem}; {remedy}")
    return problems
