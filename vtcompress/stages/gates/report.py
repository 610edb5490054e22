"""How good trained gates are: against the paper's label, where they fire, what answers become of it."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from compressor.contract.gated import GateTraining
from compressor.disk.files import write_text
from compressor.facts import Facts
from export.report.sections.checks import kinds_tables
from export.results.loss_report import LossReport
from vtcompress.console import Output

Share = Annotated[float, Field(ge=0, le=1)]

GATE_COLUMNS = ("gate behind layer", "examples", "may leave", "fires", "accuracy", "exits here")


class GateFigures(Facts):
    """A gate, or all of them, against the paper's label.

    Attributes:
        examples: prompts that were asked about; over all gates, pairs of prompt and gate.
        may_leave: share of them whose visual rows may leave, by the label.
        fires: share of them in which the gate fires.
        accuracy: share of them in which both agree.
    """

    examples: int
    may_leave: Share
    fires: Share
    accuracy: Share


class GateAgreement(Facts):
    """All gates on one set of prompts.

    Attributes:
        overall: over all examples.
        layers: by candidate; None: no example of it.
    """

    overall: GateFigures
    layers: tuple[GateFigures | None, ...]


class HeldOut(Facts):
    """Gates on prompts that they were not trained on.

    Attributes:
        fired: prompts that exit after each candidate.
        unfired: prompts that never do.
        speedup: predicted prefill speed-up, mean over these exits, one image and the median text rows.
        gates: against the label.
        answers: greedy answers of the original (without exits) and with exits.
    """

    fired: tuple[int, ...]
    unfired: int
    speedup: float
    gates: GateAgreement
    answers: LossReport


class GatesReport(Facts):
    """What a training was given and what came of it.

    Attributes:
        model: hub id or folder name; for people.
        gates_digest: sha256 of the file of gates.
        candidates: layers with a gate, ascending.
        gate_width: hidden width of a gate.
        train: settings.
        data: name of the training data.
        samples: how many.
        training: gates on the examples that they learned from.
        held_out: on others; None: none were given.
    """

    gates_report_format: int = 1
    model: str
    model_digest: str
    gates_digest: str
    candidates: tuple[int, ...]
    gate_width: int
    train: GateTraining
    data: str
    data_digest: str
    samples: int
    training: GateAgreement
    held_out: HeldOut | None

    def save(self, path: Path) -> None:
        """Write the report as JSON, atomically."""
        write_text(path, self.model_dump_json(indent=1) + "\n")


def show_gates(out: Output, report: GatesReport) -> None:
    """Print a report."""
    held = report.held_out
    judged = report.training if held is None else held.gates
    exits = [""] * len(report.candidates) if held is None else [str(n) for n in held.fired]
    rows = [
        (str(layer), *_cells(figures), count)
        for layer, figures, count in zip(report.candidates, judged.layers, exits, strict=True)
    ]
    never = "" if held is None else f"{held.unfired} never"
    rows.append(("all", *_cells(judged.overall), never))
    which = "training prompts" if held is None else f"held-out prompts of {held.answers.data}"
    out.table(f"Gates on {which}", GATE_COLUMNS, rows)
    if held is None:
        out.line("training part only: exits and answers need held-out questions (--validate-data)")
        return
    title = "without exit (original) and with exit"
    for table in kinds_tables(held.answers):
        out.table(f"{table.title}, {title}", table.columns, table.rows)
    for line in held.answers.warnings:
        out.warn(line)
    out.line(f"predicted prefill speed-up, mean over these exits: {held.speedup:.2f} x")


def _cells(figures: GateFigures | None) -> tuple[str, ...]:
    if figures is None:
        return ("0", "", "", "")
    shares = (figures.may_leave, figures.fires, figures.accuracy)
    return (str(figures.examples), *(f"{share:.1%}" for share in shares))
