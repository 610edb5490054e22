"""One calibration with what it takes: seconds, memory, and how much is read of the decoder's layers."""

import re
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from export.machine.process_status import status_bytes
from vtcompress import calibrate, load_recipe

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits-llava"
METHODS = {"shortv": {"frozen": 0.5}, "visual_exit": {"max_kl": 1e6, "first_layer": 1}}
"""Those whose measures are taken, with what a recipe must say of them."""
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


def calibrated(
    model: Path,
    samples: int,
    stream: bool,
    methods: Collection[str] = tuple(METHODS),
    progress: bool = False,
) -> Calibrated:
    """Take methods' measures once; for a process of its own, whose peak memory is this run's.

    Args:
        model: the folder.
        samples: how many questions.
        stream: read layers when they run.
        methods: of `METHODS`.
        progress: show how far it is.
    """
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
            "compress": [{name: METHODS[name]} for name in methods],
        }
    )
    with tempfile.TemporaryDirectory(prefix="vtcompress-bench-") as name:
        started, used = time.monotonic(), time.process_time()
        calibrate(recipe, Path(name) / "profile.json", stream=stream, progress=progress)
        seconds, processor = time.monotonic() - started, time.process_time() - used
    return Calibrated(samples, stream, seconds, processor, status_bytes("VmHWM") or 0, read)
