"""Errors that are the user's to mend: one line that says where, what was found, what to do.

Anything that is not a `VtcompressError` was not foreseen: the command line writes its traceback into a file.
"""

from collections.abc import Iterable

from compressor.installing import how_to_install

LONGEST = 300
"""Characters of another's message that one of ours repeats."""

MOST_PROBLEMS, LONGEST_PROBLEM = 100, 4000
"""Lines of one error, and characters of a line: a hostile file may have 300,000 faults, or a key of 10 MB."""

ENDINGS = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""What is no failure. All else is, also a panic of a library in Rust, which is no `Exception`."""


class VtcompressError(Exception):
    """An error of input or environment; the message names the place and the remedy."""


class ProblemsError(VtcompressError):
    """Several problems found in one check, reported together.

    Attributes:
        problems: one complete sentence each, in the order of the input; of more than `MOST_PROBLEMS` the
            first, and how many more there are.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        found = tuple(problems)
        more = len(found) - MOST_PROBLEMS
        told = (*found[:MOST_PROBLEMS], f"and {more:,} more") if more > 0 else found
        self.problems = tuple(
            line if len(line) <= LONGEST_PROBLEM else f"{line[:LONGEST_PROBLEM]} ..."
            for line in told
        )
        super().__init__("\n".join(self.problems))


class RecipeError(ProblemsError):
    """A recipe that cannot be read, or whose values are not allowed."""


class DataError(ProblemsError):
    """Calibration or validation data that cannot be used."""


class ModelError(ProblemsError):
    """A model that cannot be loaded or is not supported, with what would be."""


class PlanError(ProblemsError):
    """Methods that cannot be applied to this model as asked."""


class GatesError(ProblemsError):
    """A gate file that cannot be used, or belongs to another model."""


class RoutersError(ProblemsError):
    """A file of routers that cannot be used, or belongs to another model."""


class ProfileError(ProblemsError):
    """A profile that is broken or belongs to another model or other data."""


class ArtifactError(ProblemsError):
    """An artifact that is incomplete, altered or of another format version."""


class PackError(ProblemsError):
    """An artifact that a stock client cannot run, with every reason; or a client that nobody knows."""


class ArtifactWarning(UserWarning):
    """An artifact that runs, and whose checks failed, were not judged or did not run."""


class BackendError(VtcompressError):
    """A backend that is installed and cannot run here, or not as asked."""


class MissingExtraError(VtcompressError):
    """A command needs packages of an extra that is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"{what} needs packages that are not installed: {how_to_install(extra)}")


def first_line(failure: BaseException) -> str:
    """Return the first line that an exception says something in, cut at a length that fits a message."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    line = lines[0] if lines else type(failure).__name__
    if line.endswith(":") and len(lines) > 1:  # a heading: what is wrong stands below it
        line = f"{line} {lines[1]}"
    return line if len(line) <= LONGEST else line[:LONGEST] + " ..."
