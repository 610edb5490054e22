"""What a training of parts was given, and what came of it."""

from pathlib import Path

from compressor.contract.learned import PartTraining
from compressor.disk.files import write_text
from compressor.facts import Facts
from vtcompress.console import Output


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
    rows = [
        ("trained", f"{len(report.tensors)} tensors of {report.method}; nothing else"),
        ("steps", f"{report.steps} of {report.train.steps}, {report.train.batch} prompts each"),
        ("best after", f"{report.best_step} steps"),
        ("time", f"{report.seconds:.0f} s"),
        ("training prompts", f"{report.samples}, of {report.data}"),
        ("KL before, nats", f"{report.kl_before:.4f}"),
        ("KL after, nats", f"{report.kl_after:.4f}"),
    ]
    out.table("Training towards the original's next tokens", ("", ""), rows)
    cut_off = report.steps < report.train.steps
    if cut_off:
        out.warn("the time was over before all steps were taken, while steps were large")
    if report.best_step == 0:
        remedy = "give it more --minutes" if cut_off else "take a lower --learning-rate"
        out.warn(f"no step gained anything, and the start is written: {remedy}")
    out.line(
        "of training prompts: what it is worth, held-out questions tell (export --validate-data)"
    )
