"""What a healing was given, and what came of it."""

from pathlib import Path

from compressor.contract.healing import Healed
from compressor.disk.files import write_text
from vtcompress.console import Output

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
    """

    heal_report_format: int = 1
    model: str
    asked: tuple[str, ...]
    heal_digest: str
    seconds: float

    def save(self, path: Path) -> None:
        """Write the report as JSON, atomically."""
        write_text(path, self.model_dump_json(indent=1) + "\n")


def show_heal(out: Output, report: HealReport) -> None:
    """Print a report."""
    trained = ", ".join(f"{count} {WORDS[kind]}" for kind, count in report.trained.items())
    rows = [
        ("trained", f"{trained}; nothing else"),
        ("steps", f"{report.steps} of {report.train.steps}, {report.train.batch} prompts each"),
        ("best after", f"{report.best_step} steps"),
        ("time", f"{report.seconds:.0f} s"),
        ("learned from", f"{report.samples} questions of {report.data}"),
        ("judged on", f"{report.judged} others of them"),
        ("answers of the original's own", f"{report.own_answers}"),
        ("KL before, nats", f"{report.kl_before:.4f}"),
        ("KL after, nats", f"{report.kl_after:.4f}"),
    ]
    out.table("Healing: towards the original's next tokens", ("", ""), rows)
    cut_off = report.steps < report.train.steps
    if cut_off:
        out.warn("the time was over before all steps were taken, while steps were large")
    if report.best_step == 0:
        remedy = "give it more --minutes" if cut_off else "take a lower --learning-rate"
        out.warn(f"no step gained anything, and the file changes nothing: {remedy}")
    out.line("what it is worth, held-out questions tell (export --validate-data)")
