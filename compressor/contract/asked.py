"""What a recipe asks of its methods, in words that plans keep and reports repeat."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from compressor.contract.method import Method


def method_words(method: Method) -> str:
    """Return a method with what was asked of it, and the package that brought it if it is not this one.

    For instance `method (key: 0.5)`. Files go by their names: folders are those of another machine.
    """
    given = ", ".join(f"{key}: {_value(value)}" for key, value in asked_of(method).items())
    package = f", of the package {method.package}" if method.package else ""
    return f"{method.name} ({given}){package}"


def alike_words(one: Iterable[str], other: Iterable[str]) -> bool:
    """Whether two recipes ask the same of the same methods; their order decides nothing."""
    return sorted(one) == sorted(other)


def asked_of(method: Method) -> dict[str, Any]:
    """Return what was asked of a method as plain values; files go by their names."""
    found: dict[str, Any] = _plain(method.asked())
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return value.name if isinstance(value, Path) else value


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_value(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
