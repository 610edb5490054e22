"""The choice of a backend and a precision: of those there are when the command runs."""

from collections.abc import Callable

import click

from export.backends.registry import BACKENDS, having, precisions
from export.backends.torch_device import DEVICE_HELP, ON_CPU
from vtcompress.cli.options import Command


class OneOfBackends(click.Choice[str]):
    """A backend's name; one that is registered later may be chosen too."""

    case_sensitive = True

    def __init__(self) -> None:
        """See `choices`, which stand in no list."""

    @property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names."""
        return tuple(BACKENDS)


class OneOfPrecisions(OneOfBackends):
    """A precision of any backend."""

    @property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names."""
        return precisions()


precision_option = click.option(
    "--precision",
    type=OneOfPrecisions(),
    default=precisions()[0],
    help="; ".join(f"{name}: {having(name)} only" for name in precisions()[1:]) + ".",
)

device_option = click.option("--device", default=ON_CPU, metavar="DEVICE", help=DEVICE_HELP)
"""Where torch runs the original."""


def gpu_option(words: str) -> Callable[[Command], Command]:
    """Return the option that tells the number of a backend's GPU.

    Args:
        words: its help.
    """
    return click.option("--gpu", type=click.IntRange(min=0), default=0, help=words)
