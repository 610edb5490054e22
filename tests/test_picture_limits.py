"""What may be made of a picture is bounded: refused by its steps or by its size, before memory is taken."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from compressor.errors import DataError, ModelError
from compressor.families.pictures.steps import Normalise, Rescale, Resize, ResizeToCells
from compressor.samples.pictures import STRIP_PIXELS, load_image
from export.runtime.images import ImageProcessor
from export.runtime.picture_limits import MAX_STEPS

SIZE = Resize(size=(8, 8), resample="bicubic")
THIRDS = (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    "steps",
    [
        [SIZE, Normalise(mean=THIRDS, std=(1e-50, 1.0, 1.0))],
        [SIZE, Normalise(mean=THIRDS, std=(1e-30,) * 3)],
        [SIZE, Normalise(mean=(1e300,) * 3, std=THIRDS)],
        [SIZE, Rescale(factor=1e300)],
    ],
)
def test_steps_whose_pixels_are_no_numbers_are_refused(steps: list[Any]) -> None:
    with pytest.raises(ModelError, match="make of a picture what is no number"):
        ImageProcessor(tuple(steps))


def test_steps_without_end_are_refused() -> None:
    ImageProcessor((SIZE,) * MAX_STEPS)
    with pytest.raises(ModelError, match=f"more than the {MAX_STEPS}"):
        ImageProcessor((SIZE,) * (MAX_STEPS + 1))


def test_a_picture_of_which_too_much_would_be_made_is_refused() -> None:
    cells = ResizeToCells(cell=4096, least=10**15, most=10**16, resample="bicubic")
    with pytest.raises(DataError, match="pixels would be made of it, and 32,000,000 are allowed"):
        ImageProcessor((cells,))(Image.new("RGB", (40, 40)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16"])
def test_a_picture_that_is_changed_in_strips_is_the_one_changed_at_once(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    made = Image.effect_mandelbrot((70, 90), (-2, -1, 1, 1), 90)
    if mode in ("RGBA", "LA"):
        made = made.convert(mode)
        made.putalpha(Image.linear_gradient("L").resize(made.size))
    elif mode == "I;16":
        made = made.convert("I").point(lambda level: level * 250).convert("I;16")
    else:
        made = made.convert("P")
    made.save(path, **({"transparency": 7} if mode == "P" else {}))
    whole = load_image(path)
    monkeypatch.setattr("compressor.samples.pictures.STRIP_PIXELS", 70 * 11)
    assert STRIP_PIXELS > 70 * 90
    assert load_image(path).tobytes() == whole.tobytes()
    assert len(set(whole.tobytes())) > 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM")
def test_the_largest_picture_takes_less_than_a_gibibyte(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGBA", (10_000, 9_990), (1, 2, 3, 100)).save(path, compress_level=1)
    code = (
        "import re, sys; from compressor.samples.pictures import load_image\n"
        "load_image(sys.argv[1])\n"
        # Not ru_maxrss: a process begins with that of who started it.
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
    )
    ran = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True)
    assert int(ran.stdout) < 1 << 20  # in kB
