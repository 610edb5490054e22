"""What a healing was given, and what came of it."""

from pathlib import Path

from compressor.contract.healing import Healed
from compressor.disk.files import write_text
from vtcompress.console import Output
from vtcompress.stages.training.report import show_course

WORDS = {
    "norms": "norms",
    "neurons_scale": "layers' factors of neurons",
    "lora": "matrices (low rank)",
}
"""What is counted, by the recipe's word."""


class HealReport(Healed):
    """What a healing was given and what came of it.

    Attributes:
        model: hub id or folder name; for people.
        asked: of the recipe's methods, in words.
        heal_digest: sha256 of the file.
        seconds: that training took, all runs together.
        minutes: that were given; None: steps were.
    """

    heal_report_format: int = 1
    model: str
    asked: tuple[str, ...]
    heal_digest: str
    seconds: float
    minutes: float | None = None

    def save(self, path: Path) -> None:
        """Write the report as JSON, atomically."""
        write_text(path, self.model_dump_json(indent=1) + "\n")


def show_heal(out: Output, report: HealReport) -> None:
    """Print a report."""
    prompts = [
        ("learned from", f"{report.samples} questions of {report.data}"),
        ("judged on", f"{report.judged} others of them"),
        ("answers of the original's own", f"{report.own_answers}"),
    ]
    title = "Healing: towards the original's next tokens"
    trained = _trained(report)
    show_course(out, title, report, trained, prompts, by_which(report))
    if report.best_step:
        out.line("what it is worth, held-out questions tell (export --validate-data)")


def gain_words(report: HealReport) -> tuple[str, ...]:
    """Return in lines what a healing within an export trained, and what it gained on what judged it."""
    cut_off = report.steps < report.train.steps
    lines = [
        f"healed by {report.steps} steps in {report.seconds:.0f} s: {_trained(report)}",
        f"KL on the {report.judged} questions that judged it: {report.kl_before:.4f} nats before, "
        f"{report.kl_after:.4f} after",
    ]
    if cut_off:
        lines.append(
            f"WARNING: the time was over before all {report.train.steps} steps were taken, while steps were "
            "not yet small"
        )
    if not report.best_step:
        lines.append(f"WARNING: nothing was gained: {by_which(report)}")
    return tuple(lines)


def _trained(report: HealReport) -> str:
    return ", ".join(f"{count} {WORDS[kind]}" for kind, count in report.trained.items())


def by_which(report: HealReport) -> str:
    """Return by which questions nothing was gained, and what follows for the file."""
    return (
        f"on the {report.judged} questions that judged it KL was lowest before the first: the file changes "
        "nothing and need not be used"
    )
