"""What Linux tells of the memory of this process."""

from pathlib import Path

SELF = Path("/proc/self")


def status_bytes(name: str, process: Path = SELF) -> int | None:
    """Return a size of a process's status, such as `VmRSS`, in bytes; None where the system does not tell.

    Args:
        name: of the line.
        process: the folder in which the system tells of the process.
    """
    try:
        lines = (process / "status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith(f"{name}:"))
    kib = next(found, None)
    return None if kib is None else 1024 * int(kib)
