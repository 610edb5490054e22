"""How much memory a process can still have: what the system has left, within limits of control groups."""

from collections.abc import Iterator
from pathlib import Path

UNLIMITED = 1 << 60
"""Limits from here on are none; version 1 of control groups has a large number where there is none."""


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return how much memory this process can still have; None where the system does not tell.

    Linux tells it: memory that is free or can be freed, and, where a control group (a container) limits it,
    what is left of that. Pages of files that a group has read count as left: they can be dropped.

    Args:
        root: of the file system.
    """
    system = _numbers(root / "proc/meminfo", ":").get("MemAvailable")
    if system is None:
        return None
    return min([system * 1024, *_left_of_groups(root)])


def _left_of_groups(root: Path) -> Iterator[int]:
    for base, of_limit, of_usage in _groups(root):
        limit, used = _number(base / of_limit), _number(base / of_usage)
        if limit is not None and used is not None and limit < UNLIMITED:
            stat = _numbers(base / "memory.stat", " ")
            dropped = stat.get("total_inactive_file", stat.get("inactive_file", 0))
            yield max(0, limit - used + dropped)


def _groups(root: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield the folders of this process's groups and of those that they are in, with two files' names."""
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            base, names = mount, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            base, names = mount / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        inner = base / path.strip("/")
        for folder in (inner, *inner.parents):
            if folder == base or base in folder.parents:
                yield (folder, *names)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _numbers(path: Path, mark: str) -> dict[str, int]:
    """Return the numbers of a file of names and numbers, a pair in a line, without their units."""
    found = {}
    for line in _text(path).splitlines():
        name, _, rest = line.partition(mark)
        number = rest.split()[:1]
        if number and number[0].isdecimal():
            found[name] = int(number[0])
    return found
