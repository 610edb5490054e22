"""What became of a check: the one value that decides every word on it.

Console, reports, card, comparison, JSON and the warning of a runtime derive from it.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from pydantic import computed_field, model_validator

from compressor.facts import Facts


class Verdict(StrEnum):
    """What became of a check; the value is the word that people and machines read.

    Only `PASSED` says that something was proved: a check without a limit is `NOT_JUDGED`, whatever it found.
    """

    PASSED = "passed"
    FAILED = "failed"
    NOT_JUDGED = "not judged"
    NOT_RUN = "not run"


# What one verdict over several checks is: the first of these that any of them has.
WORST_FIRST = (Verdict.FAILED, Verdict.NOT_RUN, Verdict.NOT_JUDGED, Verdict.PASSED)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the one verdict over several checks; passed only if all are."""
    return min(verdicts, key=WORST_FIRST.index, default=Verdict.NOT_RUN)


class Derived(Facts):
    """Base of values with figures that follow from the others: stored for readers, never read back."""

    @model_validator(mode="before")
    @classmethod
    def _without_derived(cls, stored: Any) -> Any:
        if not isinstance(stored, Mapping):
            return stored
        derived = cls.model_computed_fields
        return {key: value for key, value in stored.items() if key not in derived}


class Judged(Derived):
    """Base of what has a verdict; it is stored as `verdict`."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> Verdict:
        """What became of it."""
        return self._judge()

    @property
    def passed(self) -> bool:
        """Whether it was judged and nothing was missed."""
        return self.verdict is Verdict.PASSED

    def _judge(self) -> Verdict:
        raise NotImplementedError


class Check(Judged):
    """Base of the reports of single checks.

    Attributes:
        failures: everything that was missed, a line each.
    """

    failures: tuple[str, ...]

    @property
    def not_judged(self) -> tuple[str, ...]:
        """Why nothing, or not all that was asked, could be judged; empty: everything was."""
        return ()

    def _judge(self) -> Verdict:
        if self.failures:
            return Verdict.FAILED
        return Verdict.NOT_JUDGED if self.not_judged else Verdict.PASSED


def verdict_of(check: Judged | None) -> Verdict:
    """Return what became of a check; None: it did not run."""
    return Verdict.NOT_RUN if check is None else check.verdict


def verdict_words(check: Check | None) -> str:
    """Return what became of a check, and why if nothing could be judged."""
    verdict = verdict_of(check)
    if check is None or verdict is not Verdict.NOT_JUDGED:
        return verdict
    return f"{verdict}: {', '.join(check.not_judged)}"
