"""Where the pictures of a request come from: data URLs, and files of one folder where that is allowed.

Nothing is fetched: a server that follows addresses reads what its askers cannot reach themselves.
"""

import os
import re
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from compressor.errors import DataError, VtcompressError
from compressor.samples.data_url import FORM, data_url_content
from export.server.refusal import RefusedError, bad_request
from export.server.wire.request import PictureUrl

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_FOLDER_FLAGS = os.O_RDONLY | sum(
    getattr(os, name, 0) for name in ("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC")
)
_FILE_FLAGS = os.O_RDONLY | sum(
    getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY")
)
_INSTEAD = f"send the picture as a data URL ({FORM})"
NO_FILES = f"files are not read by this server; {_INSTEAD}"
NOTHING_FETCHED = f"this server fetches nothing; {_INSTEAD}"
NO_SUCH_FILE = "no such picture in the folder that this server reads; links are not followed"


class PictureSource:
    """Reads the pictures of requests.

    Args:
        folder: whose files are read; None: no files are.
        most_bytes: of a picture's file.

    Raises:
        VtcompressError: there is no such folder, or this system cannot keep to it.
    """

    def __init__(self, folder: Path | None, most_bytes: int) -> None:
        self._folder = None if folder is None else folder.resolve()
        self._given, self._most = folder, most_bytes
        if self._folder is not None and not self._folder.is_dir():
            raise VtcompressError(f"{folder}: no such folder; name the one that pictures lie in")
        if self._folder is not None and os.open not in os.supports_dir_fd:
            raise VtcompressError("files cannot be kept to one folder on this system; leave it out")

    def check(self, picture: PictureUrl) -> None:
        """Refuse at once what no picture comes from.

        Raises:
            RefusedError: says why.
        """
        self._decoded(picture) if self._scheme(picture) == "data" else self._parts(picture)

    def read(self, picture: PictureUrl) -> bytes:
        """Return the bytes of an image file.

        Raises:
            RefusedError: as `check`, or there is no such file, or it is larger than it may be.
        """
        if self._scheme(picture) == "data":
            return self._decoded(picture)
        try:
            return self._inside(self._parts(picture), picture)
        except (OSError, ValueError):
            raise bad_request(picture.where, NO_SUCH_FILE) from None

    def _scheme(self, picture: PictureUrl) -> str:
        found = _SCHEME.match(picture.url)
        scheme = found[1].lower() if found else "file"
        if scheme in ("http", "https"):
            raise bad_request(picture.where, f"is an address of {scheme}: {NOTHING_FETCHED}")
        if scheme not in ("data", "file"):
            raise bad_request(
                picture.where, f"addresses of this kind are not read: {NOTHING_FETCHED}"
            )
        return scheme

    def _decoded(self, picture: PictureUrl) -> bytes:
        try:
            return data_url_content(picture.url, picture.where, self._most)
        except DataError as error:
            problem = error.problems[0].removeprefix(f"{picture.where}: ")
            raise bad_request(picture.where, problem) from None

    def _parts(self, picture: PictureUrl) -> tuple[str, ...]:
        """Return the names from the folder to a file."""
        if self._folder is None:
            raise bad_request(picture.where, NO_FILES)
        name = picture.url
        if _SCHEME.match(name):
            try:
                address = urlsplit(name)
            except ValueError:
                raise bad_request(picture.where, NO_SUCH_FILE) from None
            if address.netloc not in ("", "localhost") or address.query or address.fragment:
                raise bad_request(picture.where, NO_SUCH_FILE)
            name = unquote(address.path)
        path = Path(name)
        for folder in (self._folder, self._given):
            if folder is not None and path.is_absolute() and path.is_relative_to(folder):
                path = path.relative_to(folder)
                break
        if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in name:
            raise bad_request(picture.where, NO_SUCH_FILE)
        return path.parts

    def _inside(self, parts: tuple[str, ...], picture: PictureUrl) -> bytes:
        """Read a file name by name, so that no link on the way leads out, whenever it was made."""
        held = os.open(self._folder or ".", _FOLDER_FLAGS)
        try:
            for name in parts[:-1]:
                inner = os.open(name, _FOLDER_FLAGS, dir_fd=held)
                os.close(held)
                held = inner
            file = os.open(parts[-1], _FILE_FLAGS, dir_fd=held)
        finally:
            os.close(held)
        with os.fdopen(file, "rb") as stream:
            found = os.fstat(stream.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise bad_request(picture.where, NO_SUCH_FILE)
            content = stream.read(self._most + 1)
        if len(content) > self._most:
            problem = f"the file has more than the {self._most:,} bytes that are read"
            raise RefusedError(413, f"{picture.where}: {problem}", param=picture.where)
        return content
