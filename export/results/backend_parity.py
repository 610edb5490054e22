"""What a comparison of one backend with ONNX Runtime on the CPU found."""

from pathlib import Path
from typing import Literal

from compressor.disk.files import read_json, write_text
from compressor.errors import ArtifactError
from export.results.fidelity import FidelityReport
from export.results.loss_report import LossReport
from export.results.verdict import Judged, Verdict, worst

# How the engines ran, where they ran; `export.checks.backend_parity` writes it.
PARITY_FILE = "parity.json"


REFERENCE = "ONNX Runtime on the CPU"


class BackendParity(Judged):
    """The outcome; beside an engine set it is stored as `parity.json`.

    Attributes:
        backend: that was compared.
        precision: it ran in.
        device: it ran on, as the backend names it; empty: the CPU.
        outputs: its numbers beside the reference's.
        loss: the original's stored answers beside its own; None: the artifact holds none, or its pictures
            were not at hand.
    """

    parity_format: Literal[1, 2] = 2
    backend: str
    precision: str
    device: str = ""
    outputs: FidelityReport
    loss: LossReport | None = None

    @property
    def failures(self) -> tuple[str, ...]:
        """Every missed threshold."""
        return (*self.outputs.failures, *(self.loss.failures if self.loss else ()))

    def _judge(self) -> Verdict:
        # Without stored answers of the original there is nothing to compare answers with.
        return worst(check.verdict for check in (self.outputs, self.loss) if check is not None)

    def save(self, folder: Path) -> Path:
        """Write it into an engine set, at once or not at all; return the file."""
        path = folder / PARITY_FILE
        write_text(path, self.model_dump_json(indent=1) + "\n")
        return path

    @classmethod
    def load(cls, folder: Path) -> "BackendParity | None":
        """Read an engine set's; None: its engines were not compared.

        Raises:
            ArtifactError: the file is broken.
        """
        path = folder / PARITY_FILE
        if not path.is_file():
            return None
        remedy = "run `vtcompress validate ARTIFACT --backend BACKEND` anew"
        return read_json(path, cls, ArtifactError, "parity", remedy)
