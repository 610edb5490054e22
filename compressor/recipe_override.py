"""Replaces single values of a recipe: dotted keys to a changed copy of its plain values."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from compressor.errors import RecipeError
from compressor.methods import METHOD_NAMES, CompressEntry
from compressor.schema.problems import hint, section_at, show
from compressor.schema.values import ExactlyOne

Values = dict[str, Any]
Anchor = Callable[[Mapping[str, Any]], Values]


def check_dotted(values: object, source: str) -> None:
    """Refuse what does not give values by dotted key, also from callers without types.

    Args:
        values: what was given.
        source: what error lines start with.

    Raises:
        RecipeError: it is no mapping, or keys are no text; all of them.
    """
    if not isinstance(values, Mapping):
        example = "{'export.dtype': 'float16'}"
        raise RecipeError([f"{source}: {show(values)} is no mapping of keys, such as {example}"])
    if wrong := [key for key in _keys(values) if not isinstance(key, str)]:
        remedy = "a key is text, such as 'export.dtype'"
        raise RecipeError(f"{source}: {show(key)}: {remedy}" for key in wrong)


def _keys(values: Mapping[object, object]) -> Iterator[object]:
    for key, value in values.items():
        yield key
        if isinstance(value, Mapping):
            yield from _keys(value)


def changed(
    model: type[BaseModel],
    data: Values,
    values: Mapping[str, Any],
    source: str,
    anchored: Anchor,
) -> tuple[Values, tuple[str, ...]]:
    """Return a recipe's plain values with some of them replaced, and keys of entries that are not there.

    Where exactly one of some keys may be given, giving one takes the others away, and null takes its own.

    Args:
        model: class of the recipe.
        data: its plain values, with the entries of `compress` as a list or tuple of mappings; is changed.
        values: new values by dotted key. An entry of `compress` goes by its method's name
            (`compress.shortv.frozen`), by its place (`compress[0]`), or by both as in error lines.
        source: what error lines start with.
        anchored: makes the paths among new values absolute.
    """
    change: Values = {}
    entries: list[Values] = [{} for _ in data["compress"]]
    problems = []
    for dotted, value in values.items():
        inner = _tupled(value)
        keys = dotted.split(".")
        if keys[0] in METHOD_NAMES or (keys[0] == "compress" and keys[1:2] and keys[1].isdigit()):
            named = keys[0] in METHOD_NAMES
            meant = ".".join(["compress", *(keys if named else keys[2:] or ["METHOD"])])
            said = f"unknown key; did you mean '{meant}'?" if named else f"write {meant}"
            problems.append(f"{source}: {dotted}: {said}")
            continue
        found = re.fullmatch(r"compress(?:\[(\d+)\])?", keys[0])
        if found is None or (len(keys) == 1 and not found[1] and not isinstance(inner, dict)):
            _join(change, keys, inner)
            continue
        at, rest = int(found[1]) if found[1] else None, keys[1:]
        if not rest and isinstance(inner, dict) and len(inner) == 1:
            ((name, inner),) = inner.items()
            rest = [name]
        place = _entry(data["compress"], at, rest[0] if rest else "")
        if isinstance(place, str):
            problems.append(f"{source}: {dotted}: {place}")
        else:
            _join(entries[place], rest, inner)
    if any(entries):
        change["compress"] = tuple(entries)
    change = anchored(change)
    if any(entries):
        for entry, new in zip(data["compress"], change.pop("compress"), strict=True):
            _apply(entry, new, CompressEntry)
    _apply(data, change, model)
    return data, tuple(problems)


def _entry(entries: Sequence[Values], at: int | None, name: str) -> int | str:
    """Return the place of the entry that a key is about, or what is wrong with the key."""
    there = [next(iter(entry)) for entry in entries]
    listed = ", ".join(there) or "none"
    if at is not None and at >= len(there):
        return f"the recipe has {len(there)} entries under compress ({listed})"
    if at is not None and name in (there[at], ""):
        return at if name else f"name the key too, such as compress[{at}].{there[at]}. ..."
    if at is None and name in there:
        return there.index(name)
    if name not in METHOD_NAMES:
        return f"unknown method{hint(name, CompressEntry)} (known: {', '.join(METHOD_NAMES)})"
    where = "the recipe" if at is None else f"compress[{at}]"
    return f"{where} has no {name} (under compress: {listed}); add it to a copy of the recipe"


def _join(change: Values, keys: Sequence[str], value: Any) -> None:
    """Add a change to the others, so that all changes of one section are seen together."""
    for key in keys[:-1]:
        inner = change.setdefault(key, {})
        if not isinstance(inner, dict):
            change[key] = inner = {}
        change = inner
    there = change.get(keys[-1])
    if isinstance(there, dict) and isinstance(value, dict):
        for key, inner in value.items():
            _join(there, [key], inner)
    else:
        change[keys[-1]] = value


def _apply(section: Values, change: Values, model: type[BaseModel] | None) -> None:
    for key, value in change.items():
        there = section.get(key)
        if isinstance(value, dict) and isinstance(there, dict):
            _apply(there, value, section_at(model, key))
        else:
            section[key] = value
    if model is not None and issubclass(model, ExactlyOne) and model is not CompressEntry:
        _keep_one(section, change, model)


def _keep_one(section: Values, change: Values, model: type[ExactlyOne]) -> None:
    """Take away what a new choice replaces, and what is null."""
    names = model.choices()
    if any(change.get(name) is not None for name in names):
        for name in names:
            if change.get(name) is None:
                section.pop(name, None)
    for key in [key for key, value in section.items() if value is None]:
        del section[key]
    for name, owner in model.beside.items():
        if owner not in section and name not in change:
            section.pop(name, None)


def _tupled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tupled(item) for key, item in value.items()}
    return tuple(map(_tupled, value)) if isinstance(value, list | tuple) else value
