"""What a training towards the original's next tokens prints when it is done."""

from collections.abc import Sequence
from typing import Protocol

from vtcompress.console import Output


class Course(Protocol):
    """What a training was asked for: steps, and prompts of each."""

    steps: int
    batch: int


class CourseReport(Protocol):
    """What every such training tells: see `vtcompress.stages.parts.report.PartsReport`."""

    @property
    def train(self) -> Course:
        """Its settings."""

    steps: int
    best_step: int
    seconds: float
    kl_before: float
    kl_after: float


def show_course(
    out: Output,
    title: str,
    report: CourseReport,
    trained: str,
    prompts: Sequence[tuple[str, str]],
    unmoved: str,
) -> None:
    """Print how a training went, and warn where it ended early or gained nothing.

    Args:
        out: to print to.
        title: of the table.
        report: of the training.
        trained: what was trained, in words.
        prompts: rows on its questions.
        unmoved: by what it is known where nothing was gained, and what that means for what is written.
    """
    rows = [
        ("trained", f"{trained}; nothing else"),
        ("steps", f"{report.steps} of {report.train.steps}, {report.train.batch} prompts each"),
        ("best after", f"{report.best_step} steps"),
        ("time", f"{report.seconds:.0f} s"),
        *prompts,
        ("KL before, nats", f"{report.kl_before:.4f}"),
        ("KL after, nats", f"{report.kl_after:.4f}"),
    ]
    out.table(title, ("", ""), rows)
    cut_off = report.steps < report.train.steps
    if cut_off:
        out.warn("the time was over before all steps were taken, while steps were not yet small")
    if report.best_step == 0:
        remedy = "give it more --minutes" if cut_off else "take a lower --learning-rate"
        out.warn(f"nothing was gained by {report.steps} steps: {unmoved}; {remedy} to try again")
