"""Numbers that Python's callers and the command line give: how often, how many, which."""

import math
import os
from numbers import Integral, Real

from compressor.errors import BackendError


def check_whole(
    name: str, value: object, least: int, most: int | None = None, *, why: str = ""
) -> None:
    """Refuse what is no whole number, or out of bounds; those of arrays are whole numbers too.

    Args:
        name: of the argument.
        value: that was given.
        least: allowed.
        most: allowed; None: any.
        why: more are not.

    Raises:
        BackendError: says what is allowed.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):  # type: ignore[operator]
        bounds = f"{least} or more" if most is None else f"{least} to {most}"
        raise BackendError(f"{name}: {value!r:.60} is not allowed; a whole number, {bounds}{why}")


def check_above_zero(name: str, value: object) -> None:
    """Refuse what is no number above 0; None, nothing was given.

    Raises:
        BackendError: says what is allowed.
    """
    real = isinstance(value, Real) and not isinstance(value, bool)
    if value is not None and (not real or not 0 < value < math.inf):  # type: ignore[operator]
        raise BackendError(f"{name}: {value!r:.60} is not allowed; a number above 0")


def check_threads(threads: object) -> None:
    """Refuse what is no number of threads; more than there are processors only wait for each other.

    Thousands of them stop a machine: they are made where nothing listens to Ctrl-C.

    Args:
        threads: that was given; None, whoever runs the graphs chooses.

    Raises:
        BackendError: says what is allowed.
    """
    processors = os.cpu_count()
    if threads is not None:
        why = "" if processors is None else ", as many as this machine has processors"
        check_whole("threads", threads, 1, processors, why=why)
