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
    prompts = [
        ("learned from", f"{report.samples} questions of {report.data}"),
        ("judged on", f"{report.judged} others of them"),
        ("answers of the original's own", f"{report.own_answers}"),
    ]
    title = "Healing: towards the original's next tokens"
    trained = ", ".join(f"{count} {WORDS[kind]}" for kind, count in report.trained.items())
    show_course(out, title, report, trained, prompts, "the file changes nothing")
    out.line("what it is worth, held-out questions tell (export --validate-data)")
