"""Pictures made by formulas on whole numbers: the same pixels on every machine, and nobody's picture.

They hold what image processors treat differently: slopes, edges of all directions, stripes of one pixel, and
three channels that no swap leaves alone. Their sizes are wider, higher and smaller than what models take.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image


class MadePicture(NamedTuple):
    """One of the pictures.

    Attributes:
        name: of it, in words of one syllable or two.
        width: in pixels.
        height: likewise.
    """

    name: str
    width: int
    height: int

    def image(self) -> Image.Image:
        """Return its pixels, 8-bit RGB."""
        y, x = np.mgrid[: self.height, : self.width].astype(np.int64)
        across, down = x * 255 // max(1, self.width - 1), y * 255 // max(1, self.height - 1)
        red = (across + 96 * ((x // 7 + y // 5) % 2)) % 256
        green = (down + 128 * ((x + 2 * y) // 9 % 2)) % 256
        round_ = (2 * x - self.width) ** 2 + (2 * y - self.height) ** 2
        blue = np.where(round_ * 4 < min(self.width, self.height) ** 2, 230, (across + down) // 3)
        stripes = (x * 3 > self.width) & (x * 2 < self.width) & (y % 2 == 0)
        levels = np.stack([red, green, np.where(stripes, 10, blue)], axis=-1)
        return Image.fromarray(levels.astype(np.uint8))


MADE_PICTURES = (
    MadePicture("wide", 150, 90),
    MadePicture("high", 70, 160),
    MadePicture("large", 420, 420),
    MadePicture("small", 20, 14),
)
"""The first is the one that a warm-up reads."""
