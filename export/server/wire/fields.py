"""Members of a JSON object, taken one by one: what is of another kind is refused by its place."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from export.server.refusal import RefusedError, bad_request

MOST_VALUES = 250_000
"""Values of a document at most; base64 has none of the marks between them."""
_MARKS = (b",", b"[", b"{", b":")
_SHOWN = 40


def read_document(body: bytes | bytearray) -> "JsonFields":
    """Return the JSON object of a body.

    Raises:
        RefusedError: it is none, nests too deeply, or holds more values than any request.
    """
    if sum(body.count(mark) for mark in _MARKS) > MOST_VALUES:
        raise RefusedError(400, f"the body holds more than {MOST_VALUES:,} values")
    try:
        found = from_json(bytes(body), allow_inf_nan=False)
    except ValueError as error:
        raise RefusedError(400, f"the body is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise RefusedError(400, "the body is no JSON object, such as {...}")
    return JsonFields(found, "")


class JsonFields:
    """An object of a document.

    Args:
        members: by name.
        where: its place in the document; empty: it is the document.
    """

    def __init__(self, members: Mapping[str, Any], where: str) -> None:
        self._members, self._where = members, where
        self._taken: set[str] = set()

    def place(self, name: str) -> str:
        """Return where a member stands."""
        return f"{self._where}.{name}" if self._where else name

    def take(self, name: str) -> Any:
        """Return a member, None where it is not there."""
        self._taken.add(name)
        return self._members.get(name)

    def left(self) -> list[tuple[str, Any]]:
        """Return the members that were not taken and are not null."""
        rest = self._members.items()
        return [(n, v) for n, v in rest if n not in self._taken and v is not None]

    def text(self, name: str) -> str | None:
        """Return a text, None where it is not there."""
        found = self.take(name)
        if found is not None and not isinstance(found, str):
            raise bad_request(self.place(name), f"must be text, found {in_few_words(found)}")
        return found

    def flag(self, name: str) -> bool:
        """Return whether it is true; what is not there is not."""
        found = self.take(name)
        if found is not None and not isinstance(found, bool):
            raise bad_request(
                self.place(name), f"must be true or false, found {in_few_words(found)}"
            )
        return bool(found)

    def whole(self, name: str, least: int, most: int) -> int | None:
        """Return a whole number, None where it is not there."""
        found = self.take(name)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int) or not least <= found <= most:
            problem = f"must be a whole number from {least} to {most}, found {in_few_words(found)}"
            raise bad_request(self.place(name), problem)
        return found

    def number(self, name: str, least: float, most: float) -> float | None:
        """Return a number, None where it is not there."""
        found = self.take(name)
        if found is None:
            return None
        known = isinstance(found, int | float) and not isinstance(found, bool)
        if not known or not math.isfinite(found) or not least <= found <= most:
            problem = f"must be a number from {least:g} to {most:g}, found {in_few_words(found)}"
            raise bad_request(self.place(name), problem)
        return float(found)

    def inner(self, name: str) -> "JsonFields | None":
        """Return an object, None where it is not there."""
        found = self.take(name)
        return None if found is None else fields_of(found, self.place(name))

    def entries(self, name: str) -> list[Any] | None:
        """Return a list, None where it is not there."""
        found = self.take(name)
        if found is not None and not isinstance(found, list):
            raise bad_request(self.place(name), f"must be a list, found {in_few_words(found)}")
        return found

    def end(self) -> None:
        """Refuse what was not taken.

        Raises:
            RefusedError: names the first of these members.
        """
        for name, _ in self.left():
            where = self.place(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}...")
            raise bad_request(where, "is not known here", "unknown_parameter")


def fields_of(value: Any, where: str) -> JsonFields:
    """Return a value as an object.

    Raises:
        RefusedError: it is none.
    """
    if not isinstance(value, dict):
        raise bad_request(where, f"must be an object, found {in_few_words(value)}")
    return JsonFields(value, where)


def in_few_words(value: Any) -> str:
    """Return a value in a few words; a long one may be a picture."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and abs(value) > 1 << 64:
        return "a number"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
