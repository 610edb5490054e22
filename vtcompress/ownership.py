"""`compressor` and `export` are common names: looked at before any of them is imported.

Nothing but the standard library is imported here, and nothing of a file that is not ours is run.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import NoReturn

OWN_PACKAGES = ("compressor", "export")
MARK = 'DISTRIBUTION = "vtcompress"'
"""Line in the packages' own `__init__.py`."""

HOME = Path(__file__).parent.parent


class ShadowedError(ImportError):
    """A package that vtcompress consists of is another's; the message names the file and the remedy."""


def check_ownership() -> None:
    """Refuse to go on where an import would give another's package instead of our own.

    Raises:
        ShadowedError: names the file that is in the way. The command line ends with that line instead.
    """
    problems = [problem for name in OWN_PACKAGES if (problem := _problem(name)) is not None]
    if problems:
        _refuse("; ".join(problems))


def _problem(name: str) -> str | None:
    own = HOME / name / "__init__.py"
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module without a spec was put into sys.modules
        spec, origin = None, getattr(sys.modules[name], "__file__", None)
    else:
        origin = None if spec is None else spec.origin
    if origin is None:
        return (
            f"vtcompress's own package {name!r} cannot be found ({own}): the installation is incomplete, "
            "install it again"
        )
    if os.path.realpath(origin) != os.path.realpath(own):
        file = Path(origin)
        what = file.parent if file.stem == "__init__" else file
        return (
            f"{what} is in the way of vtcompress's own package {name!r}: rename it, or start from another "
            "folder (if it was installed: install vtcompress in an environment of its own)"
        )
    if MARK not in own.read_text(encoding="utf-8", errors="replace").splitlines():
        return (
            f"{own} is of another distribution, which has overwritten vtcompress's own package {name!r}: "
            "install vtcompress in an environment of its own"
        )
    return None


def _refuse(problem: str) -> NoReturn:
    if _is_command_line():
        # The command line is a module of this very package and cannot catch what is raised here.
        sys.exit(f"error: {problem}")
    raise ShadowedError(problem)


def _is_command_line() -> bool:
    """Whether this is `vtcompress ...` or `python -m vtcompress ...`, not an import of a program."""
    # While Python looks for the module of -m, the first argument is "-m" itself.
    if sys.argv[:1] == ["-m"]:
        return any(argument in ("vtcompress", "-mvtcompress") for argument in sys.orig_argv[1:])
    return bool(sys.argv) and Path(sys.argv[0]).stem in ("vtcompress", "vtcompress-script")
