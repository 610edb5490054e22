"""Opens image files: 8-bit RGB, upright, first frame; the same for the original and for the runtime."""

import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from compressor.errors import DataError
from compressor.samples.data_url import data_url_content, is_data_url
from compressor.samples.picture_names import picture_file

MAX_PIXELS = 100_000_000
"""Largest image that is decoded, and largest intermediate image, in pixels."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""File formats that are read; others of Pillow's (some start other programs) are not even tried."""


STRIP_PIXELS = 1 << 22
"""Pixels that are changed at a time."""

MAX_PROBLEMS = 20
"""Most problems of one call that are named."""

Picture: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | Image.Image
    | NDArray[np.uint8]
)
"""A path, a data URL, an image file's bytes or its open file, a PIL image, or an array [H, W, 3] of RGB."""

Pictures: TypeAlias = Picture | Iterable[Picture] | None
"""One picture, or several in their order; None is no picture."""

_BYTES = (bytes, bytearray, memoryview)
_KINDS = (str, os.PathLike, *_BYTES, Image.Image, np.ndarray)
_FORMS = (
    "a path, a data URL, a PIL image, an array [H, W, 3] of uint8, or an image file's bytes or open binary "
    "file"
)


def pictures_of(given: Pictures) -> tuple[Picture, ...]:
    """Return what a caller gave as pictures, one or several of them.

    Files are read here, so that what is returned can be looked at more than once.

    Raises:
        DataError: something is no picture; up to `MAX_PROBLEMS` are named.
    """
    if given is None:
        return ()
    if isinstance(given, _KINDS) or _is_file_object(given):
        several: tuple[Any, ...] = (given,)
    elif isinstance(given, Iterable) and not isinstance(given, Mapping | Set):
        several = tuple(given)
    else:
        several = ()
    listed = isinstance(given, (*_KINDS, list, tuple, Iterator)) or _is_file_object(given)
    if not (listed or any(_problem(one, "") is None for one in several)):
        # What merely can be walked through, such as a tensor, is one wrong thing and not many.
        raise DataError([f"images: {_what(given)} is no picture; give {_FORMS}, or a list of them"])
    problems, pictures = [], []
    for i, one in enumerate(several):
        problem = _problem(one, f"images[{i}]")
        if problem is None and isinstance(one, str | os.PathLike) and not _holds_picture(one):
            problem = picture_file(os.fspath(one), Path())[1]
        if problem is None:
            try:
                pictures.append(_held(one, f"images[{i}]"))
            except DataError as error:
                problem = error.problems[0]
        problems += [problem] if problem else []
    if problems:
        more = len(problems) - MAX_PROBLEMS
        raise DataError(
            problems[:MAX_PROBLEMS] + ([f"images: and {more} more"] if more > 0 else [])
        )
    return tuple(pictures)


def read_picture(picture: Picture, where: str) -> Image.Image:
    """Return a picture as an image: a file upright and its first frame, all else as it is.

    Args:
        picture: one of what `pictures_of` returns.
        where: names it in errors, unless it is a path.

    Raises:
        DataError: it cannot be read.
    """
    if isinstance(picture, Image.Image):
        return to_rgb(picture, where)
    if isinstance(picture, np.ndarray):
        return Image.fromarray(np.ascontiguousarray(picture))
    if isinstance(picture, str | os.PathLike):
        return load_image(picture)
    return _load(io.BytesIO(_content(picture, where)), where)


def _is_file_object(given: object) -> bool:
    return callable(getattr(given, "read", None)) and not isinstance(given, _KINDS)


def _holds_picture(picture: object) -> bool:
    return isinstance(picture, str) and is_data_url(picture)


def _held(picture: Picture, where: str) -> Picture:
    """Return a picture that stays: of an open file or a data URL its bytes, else the picture itself."""
    if _holds_picture(picture):
        return data_url_content(str(picture), where)
    return picture if isinstance(picture, _KINDS) else _content(picture, where)


def _content(source: bytes | bytearray | memoryview | BinaryIO, where: str) -> bytes:
    """Return the bytes of an image file, of an open file from its beginning.

    Raises:
        DataError: the file cannot be read, or is open as text.
    """
    if isinstance(source, _BYTES):
        return bytes(source)
    try:
        if getattr(source, "seekable", bool)():
            source.seek(0)
        read: object = source.read()
    except (OSError, ValueError) as error:
        raise DataError([f"{where}: {_what(source)} cannot be read ({error})"]) from error
    if not isinstance(read, _BYTES):
        remedy = "open the file with mode 'rb'" if isinstance(read, str) else "bytes are needed"
        what = "text" if isinstance(read, str) else _what(read)
        raise DataError([f"{where}: {_what(source)} gives {what}; {remedy}"])
    return bytes(read)


def _problem(picture: Any, where: str) -> str | None:
    if not isinstance(picture, _KINDS) and not _is_file_object(picture):
        return f"{where}: {_what(picture)} is no picture; give {_FORMS}"
    if isinstance(picture, np.ndarray):
        shape = picture.shape
        if picture.dtype != np.uint8 or picture.ndim != 3 or shape[2] != 3 or not all(shape):
            return f"{where}: {_what(picture)}; a picture is [H, W, 3] of uint8, red, green, blue"
    return None


def _what(given: Any) -> str:
    """Name a value's kind; its content may be long."""
    kind = type(given).__name__
    if isinstance(given, np.ndarray):
        return f"an array {list(given.shape)} of {given.dtype}"
    return "None" if given is None else f"a {kind}"


def load_image(path: str | os.PathLike[str]) -> Image.Image:
    """Return the first frame of an image file as 8-bit RGB, upright by its EXIF orientation.

    Transparent pixels lie on white, as in transformers' image processors. 16-bit grey is scaled to
    8 bits (Pillow and transformers cut it off at 255).

    Raises:
        DataError: no such file, no image, damaged, of a format or mode that is not read, or larger
            than `MAX_PIXELS`; names the file and the remedy.
    """
    file, problem = picture_file(os.fspath(path), Path())
    if problem:
        raise DataError([problem])
    return _load(file, str(file))


def _load(source: Path | io.BytesIO, where: str) -> Image.Image:
    with _decoding(where), _open(source) as image:
        _check_pixels(image, where)
        ImageOps.exif_transpose(
            image, in_place=True
        )  # else of an upright one there would be a copy
        return to_rgb(image, where)


@contextmanager
def _decoding(where: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into a DataError: Pillow's decoders have no closed set."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError([_unreadable(where, error)]) from error


def _open(source: Path | io.BytesIO) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow's limit is a global and only warns; `_check_pixels` is ours and refuses.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(source, formats=FORMATS)


def _unreadable(where: str, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"{where}: cannot be read (permission denied); make it readable"
    if isinstance(error, Image.DecompressionBombError):
        return f"{where}: more pixels than the {MAX_PIXELS} allowed; make the image smaller"
    if isinstance(error, UnidentifiedImageError):
        kinds = ", ".join(FORMATS)
        return f"{where}: is no image of a format that is read ({kinds}); convert it to PNG"
    return f"{where}: the image is damaged or incomplete ({error}); save it again as PNG"


def _check_pixels(image: Image.Image, where: str) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise DataError([f"{where}: the image is {width} x {height} pixels, so it shows nothing"])
    if width * height > MAX_PIXELS:
        size = f"{width} x {height} pixels are more than the {MAX_PIXELS} allowed"
        raise DataError([f"{where}: {size}; make the image smaller"])


def to_rgb(image: Image.Image, where: str) -> Image.Image:
    """Return an image as RGB, transparency on white; unchanged if it is opaque RGB already."""
    _check_pixels(image, where)
    if image.mode == "F":
        problem = "floating-point pixels have no agreed range; save the image with 8 bits"
        raise DataError([f"{where}: {problem}"])
    with _decoding(where):
        _read_pixels(image, where)
        if image.mode == "I" or image.mode.startswith("I;16"):
            image = _by_strips(image, _eight_bit)
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            image = _by_strips(image, _on_white)
        return image if image.mode == "RGB" else image.convert("RGB")


def _by_strips(image: Image.Image, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Return what a change of single pixels makes, in RGB; in strips, so that copies take little memory."""
    changed = Image.new("RGB", image.size)
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(top + rows, image.height)))
        changed.paste(change(part), (0, top))
    return changed


def _on_white(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def _read_pixels(image: Image.Image, where: str) -> None:
    """Read a lazily opened image now; of one that was closed before Pillow says so in many ways."""
    try:
        image.load()
    except Exception as error:
        if not getattr(getattr(image, "fp", None), "closed", True):
            raise
        remedy = "call its load() before closing it, or give the path"
        raise DataError([f"{where}: the image, or its file, was closed; {remedy}"]) from error


def _eight_bit(image: Image.Image) -> Image.Image:
    """Return 16-bit grey as 8-bit grey in RGB, 0..65535 to 0..255, rounded; a transparent level is white.

    Pillow's 32-bit mode `I` is read as 16-bit grey too: its 16-bit PGM reader hands it out.
    """
    levels = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    grey = ((levels + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[levels == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
