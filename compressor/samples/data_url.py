"""Reads pictures that stand in an address itself: data URLs (RFC 2397), base64 alone."""

import base64
import binascii

from compressor.disk.opening import MAX_PICTURE_BYTES
from compressor.errors import DataError

FORM = "data:image/png;base64,..."


def is_data_url(name: str) -> bool:
    """Return whether a picture's name is an address that holds the picture."""
    return name[:5].lower() == "data:"


def data_url_content(url: str, where: str, most: int = MAX_PICTURE_BYTES) -> bytes:
    """Return the bytes of the image file in a data URL.

    Args:
        url: the address.
        where: names it in errors, which never repeat it.
        most: bytes that the file may have.

    Raises:
        DataError: it is no data URL of a picture, is damaged, holds nothing, or more than it may.
    """
    head, comma, content = url.partition(",")
    kind, *options = head[len("data:") :].lower().split(";")
    if not comma or not kind.startswith("image/") or "base64" not in options:
        raise DataError([f"{where}: is no data URL of a picture, such as {FORM}"])
    if len(content) > 4 * (most // 3 + 1):
        raise DataError([f"{where}: is too long; {most >> 20} MiB are read at most"])
    try:
        found = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError([f"{where}: its base64 is damaged ({error})"]) from error
    if not found:
        raise DataError([f"{where}: holds no bytes"])
    return found
