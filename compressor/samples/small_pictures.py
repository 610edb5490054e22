"""Pictures for people: made small, and without what cameras and programs write into the file beside them."""

from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from compressor.errors import DataError
from compressor.samples.pictures import load_image

# Longest side in pixels; smaller pictures keep their size.
LARGEST_PICTURE = 320


@dataclass(frozen=True)
class SmallPicture:
    """A picture that is shown, not measured on.

    Attributes:
        content: of its file.
        kind: `jpeg` or `png`.
        width: in pixels.
        height: likewise.
    """

    content: bytes
    kind: str
    width: int
    height: int

    @property
    def uri(self) -> str:
        """A `data:` address that holds it."""
        return f"data:image/{self.kind};base64,{b64encode(self.content).decode('ascii')}"


def small_picture(path: Path) -> SmallPicture | None:
    """Return a picture made small, its pixels alone: no place, camera or comment; None: it cannot be read."""
    try:
        image = load_image(path)
    except DataError:
        return None
    large = max(image.size) > LARGEST_PICTURE
    if large:
        image.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE))
    pixels = Image.frombytes(image.mode, image.size, image.tobytes())
    content, kind = BytesIO(), "jpeg" if large or path.suffix in (".jpg", ".jpeg") else "png"
    pixels.save(content, kind.upper(), quality=85, optimize=True)
    return SmallPicture(content.getvalue(), kind, *image.size)
