"""The choice of a backend and a precision: of those there are when the command runs."""

from collections.abc import Callable

import click

from export.backends.checked_on import CHECKED_ON
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


def loading_options(command: Command) -> Command:
    """Add the options of `Runtime.load` to a command that runs an artifact."""
    for option in reversed(
        (
            click.option(
                "--backend",
                type=OneOfBackends(),
                default=CHECKED_ON.name,
                help="What runs the graphs.",
            ),
            precision_option,
            click.option(
                "--mapped",
                is_flag=True,
                help="Leave weights in the mapped file: less memory, slower.",
            ),
            click.option("--threads", type=click.IntRange(min=1), help="Of one operator."),
            gpu_option("Number of the GPU, where one is used."),
            click.option(
                "--no-verify", is_flag=True, help="Do not compare the files' sha256 first."
            ),
        )
    ):
        command = option(command)
    return command


def gpu_option(words: str) -> Callable[[Command], Command]:
    """Return the option that tells the number of a backend's GPU.

    Args:
        words: its help.
    """
    return click.option("--gpu", type=click.IntRange(min=0), default=0, help=words)
