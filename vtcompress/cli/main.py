"""The command line: reads options, calls one stage, prints what it returns.

Exit codes: 0 done, 1 an error of input or environment, 2 wrong usage, 3 a check missed a threshold,
130 interrupted, 143 and 129 ended by SIGTERM and SIGHUP.
"""

import io
import logging
import os
import re
import sys
from contextlib import suppress
from typing import Any

import click

from compressor.errors import ProblemsError, VtcompressError
from compressor.version import __version__
from vtcompress.cli.build import build, pack
from vtcompress.cli.checking import ThresholdMissedError, bench, costs, selftest, validate
from vtcompress.cli.doctor import doctor
from vtcompress.cli.generating import generate
from vtcompress.cli.looking import inspect, models, recipes
from vtcompress.cli.making import (
    calibrate,
    compress,
    export,
    merge_profiles,
    plan,
    search,
    sweep,
)
from vtcompress.cli.options import KEYS
from vtcompress.cli.report import compare, report
from vtcompress.cli.serving.command import serve
from vtcompress.cli.training import heal, train_gates, train_parts
from vtcompress.console import Output
from vtcompress.interrupts import SIGNAL_CODES, Interrupts
from vtcompress.last_resort import Doing, discard_output, watched_threads
from vtcompress.terminal import WrittenOutFormatter, say, say_line, take_closed_streams

EXIT_ERROR, EXIT_USAGE, EXIT_MISSED = 1, 2, 3


class UnforeseenError(Exception):
    """Carries an error through click, which would take it for the user's interrupt; see its cause."""


class Commands(click.Group):
    """The commands; an error inside is handed on as it is."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except EOFError as error:  # of a truncated file, say: nothing here asks the user for lines
            raise UnforeseenError from error
        except KeyboardInterrupt:  # click would say something of its own
            raise click.Abort from None


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True}
)
@click.version_option(__version__, prog_name="vtcompress")
@click.option("-v", "--verbose", count=True, help="Say more; twice: the libraries' own logs too.")
@click.option("-q", "--quiet", is_flag=True, help="Print results only.")
@click.option("--json", "machine", is_flag=True, help="Print results as JSON on stdout.")
@click.pass_context
def cli(context: click.Context, verbose: int, quiet: bool, machine: bool) -> None:
    """Compress the visual-token work of a multimodal LLM and export it, with proof of loss and gain.

    The main job is `vtcompress export --recipe shortv --model MODEL --data QUESTIONS.jsonl --output DIR`;
    the other commands are its stages, each starting from the file of the one before.
    """
    doing = context.obj if isinstance(context.obj, Doing) else Doing()
    doing.command, doing.verbose = context.invoked_subcommand, verbose > 0
    context.obj = Output(verbosity=-1 if quiet else verbose, machine=machine, doing=doing)
    _set_logs(verbose)


def _set_logs(verbose: int) -> None:
    level = logging.WARNING if verbose < 1 else logging.INFO if verbose == 1 else logging.DEBUG
    handler = logging.StreamHandler()
    handler.setFormatter(WrittenOutFormatter("%(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=level)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a shell's completion script, e.g. `vtcompress completion bash >> ~/.bashrc`."""
    from click.shell_completion import get_completion_class

    maker = get_completion_class(shell)
    if maker is None:
        raise VtcompressError(f"{shell}: no completion for this shell")
    say(maker(cli, {}, "vtcompress", "_VTCOMPRESS_COMPLETE").source())


for command in (
    calibrate,
    merge_profiles,
    train_gates,
    train_parts,
    heal,
    costs,
    plan,
    search,
    compress,
    export,
    sweep,
    validate,
    selftest,
    bench,
    generate,
    serve,
    report,
    compare,
    build,
    pack,
    doctor,
    inspect,
    recipes,
    models,
):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    code = run_command(arguments)
    if code > SIGNAL_CODES:
        # Under `python -m`, CPython kills itself by SIGINT when an interrupt, even a handled one, passed
        # through exec() of a string (dataclasses do that); leaving without its shutdown keeps the code.
        with suppress(OSError):  # a terminal that closed
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run_command(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit code. Errors that nobody foresaw end in one line as well."""
    doing = Doing()
    if (silent := take_closed_streams()) is not None:
        say_line(f"error: {silent}")
        return EXIT_ERROR
    try:
        with doing.interrupts.heard(), watched_threads(doing):
            code = _run(arguments, doing)
        sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt):
        _tell_end(doing.interrupts)
        return doing.interrupts.code
    except BrokenPipeError:  # whoever read what we print has left
        discard_output()
        return EXIT_ERROR
    except Exception as error:  # noqa: BLE001 - the last resort
        cause = error.__cause__ if isinstance(error, UnforeseenError) else None
        doing.tell(error if cause is None else cause)
        return EXIT_ERROR
    return EXIT_ERROR if doing.failed and code == 0 else code


def spoken(problem: str, command: str | None) -> str:
    """Return a problem in the words of a command: an argument or key in backticks is its option.

    Libraries name arguments, which are true in Python too. Some commands write something and have no
    `--output`.
    """
    asked = cli.commands.get(command or "")
    for option in asked.params if asked else ():
        for flag in option.opts:
            name = flag.removeprefix("--")
            for argument in (name, KEYS.get(name.replace("-", "_"), name)):
                problem = problem.replace(f"`{argument}`", flag)
    # One thing in the place of another, and a command that takes the first nowhere.
    problem = re.sub(r"; give it as `\w+`$", "", problem)
    return problem.replace("another `output`", "another place")


def _tell_end(interrupts: Interrupts) -> None:
    with suppress(OSError):  # a terminal that closed
        # Behind the ^C that a terminal shows.
        say(f"\n{interrupts}" if sys.stderr.isatty() else f"{interrupts}", err=True)


def _run(arguments: list[str] | None, doing: Doing) -> int:
    try:
        result = cli.main(arguments, prog_name="vtcompress", standalone_mode=False, obj=doing)
    except ThresholdMissedError:
        return EXIT_MISSED
    except VtcompressError as error:
        for problem in error.problems if isinstance(error, ProblemsError) else (str(error),):
            say_line(f"error: {spoken(problem, doing.command)}")
        return EXIT_ERROR
    except click.ClickException as error:
        error.show(file=(words := io.StringIO()))
        say(words.getvalue(), err=True, nl=False)
        return EXIT_USAGE if isinstance(error, click.UsageError) else EXIT_ERROR
    return result if isinstance(result, int) else 0
