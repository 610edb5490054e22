"""What a training of parts was given, and what came of it."""

from pathlib import Path

from compressor.contract.learned import PartTraining
from compressor.disk.files import write_text
from compressor.facts import Facts
from vtcompress.console import Output
from vtcompress.stages.training.report import show_course


class PartsReport(Facts):
    """What a training was given and what came of it.

    Attributes:
        model: hub id or folder name; for people.
        method: whose parts they are.
        asked: of the recipe's methods, in words.
        parts_digest: sha256 of the file.
        tensors: shapes by name in the file.
        train: settings.
        steps: that were taken; fewer than asked for where the time was over.
        best_step: behind which the best tensors were, which the file has; 0: the start was the best.
        seconds: that training took, all runs together.
        data: name of the training data.
        samples: how many.
        kl_before: mean KL(original || compressed) at answer tokens of training prompts, in nats, where the
            training started.
        kl_after: the same of what the file has.
    """

    parts_report_format: int = 1
    model: str
    model_digest: str
    method: str
    asked: tuple[str, ...]
    parts_digest: str
    tensors: dict[str, tuple[int, ...]]
    train: PartTraining
    steps: int
    best_step: int
    seconds: float
    data: str
    data_digest: str
    samples: int
    kl_before: float
    kl_after: float

    def save(self, path: Path) -> None:
        """Write the report as JSON, atomically."""
        write_text(path, self.model_dump_json(indent=1) + "\n")


def show_parts(out: Output, report: PartsReport) -> None:
    """Print a report."""
    prompts = [("training prompts", f"{report.samples}, of {report.data}")]
    title = "Training towards the original's next tokens"
    trained = f"{len(report.tensors)} tensors of {report.method}"
    show_course(
        out, title, report, trained, prompts, "KL was lowest at the start, which is written"
    )
    out.line(
        "of training prompts: what it is worth, held-out questions tell (export --validate-data)"
    )
