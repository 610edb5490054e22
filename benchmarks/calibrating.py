"""One calibration with what it takes: seconds, memory, and how much is read of the decoder's layers."""

import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from export.machine.process_status import status_bytes
from vtcompress import calibrate, load_recipe

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits-llava"
LAYER_NAME = re.compile(r"^language_model\..*\.layers\.")


@dataclass(frozen=True)
class Calibrated:
    """A calibration.

    Attributes:
        samples: questions.
        stream: whether layers were read from disk.
        seconds: wall time.
        processor: seconds of the processor.
        peak: highest resident memory, bytes.
        read: bytes of the decoder's layers that were read when they ran.
    """

    samples: int
    stream: bool
    seconds: float
    processor: float
    peak: int
    read: int


def calibrated(model: Path, samples: int, stream: bool) -> Calibrated:
    """Take ShortV's and VTW's measures once; for a process of its own, whose peak memory is this run's."""
    from compressor.families.stand_ins import StoredTensor

    read, really = 0, StoredTensor.read

    def counted(self: StoredTensor) -> object:
        nonlocal read
        tensor = really(self)
        if LAYER_NAME.search(self.name):
            read += tensor.nbytes
        return tensor

    StoredTensor.read = counted  # type: ignore[assignment]
    recipe = load_recipe("shortv").override(
        {
            "model.id": str(model),
            "calibrate.data": EXAMPLE / "calibration.jsonl",
            "calibrate.samples": samples,
            "compress": [{"shortv": {"frozen": 0.5}}, {"visual_exit": {"max_kl": 1e6}}],
        }
    )
    with tempfile.TemporaryDirectory(prefix="vtcompress-bench-") as name:
        started, used = time.monotonic(), time.process_time()
        calibrate(recipe, Path(name) / "profile.json", stream=stream, progress=False)
        seconds, processor = time.monotonic() - started, time.process_time() - used
    return Calibrated(samples, stream, seconds, processor, status_bytes("VmHWM") or 0, read)
