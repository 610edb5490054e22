"""From a recipe's bytes to plain values, and back.

What a recipe says has to be what is written at its place. So the YAML accepted here is the plain
part of YAML 1.2: `1e-3` is a number, `yes` is text, `010` is ten, and anchors, aliases, merge keys,
tags and keys given twice are refused.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from compressor.errors import RecipeError
from compressor.schema.problems import show

MAX_BYTES = 1 << 20
"""Largest recipe file read, in bytes."""

MAX_DEPTH = 32
"""Deepest nesting of lists and mappings read; recipes need five."""

_TAG = "tag:yaml.org,2002:"
_SCALARS = (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), "~nN\0"),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("int", re.compile(r"^[-+]?[0-9]{1,4000}$"), "-+0123456789"),
    (
        "float",
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        "-+.0123456789",
    ),
)


class _Loader(yaml.SafeLoader):
    """Reads unquoted text by `_SCALARS` alone."""


class _Dumper(yaml.SafeDumper):
    """Quotes text that either YAML 1.1 or 1.2 would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the base class names it
        return True


_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _SCALARS:
    _letters = ["" if letter == "\0" else letter for letter in _first]
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, _letters)
    _Dumper.add_implicit_resolver(_TAG + _name, _pattern, _letters)


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Returns YAML that `read_yaml` reads back to the same values, keys in their order."""
    return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000))


def read_yaml(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Reads a YAML mapping; lists come back as tuples, every key as text.

    Args:
        path: the file; its name, as given, starts every error line.

    Returns:
        The mapping, and the problems that leave the rest readable (keys given twice).

    Raises:
        RecipeError: the file cannot be read, is larger than `MAX_BYTES`, is not UTF-8 or not
            YAML, has anchors, aliases or tags, is nested deeper than `MAX_DEPTH`, or is no mapping.
    """
    text = _read_text(path)
    try:
        if refused := tuple(f"{path}: {line}" for line in _refused(text)):
            raise RecipeError(refused)
        root = _Loader(text).get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise RecipeError([f"{path}: line {line}: not a character of YAML text"]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}: " if mark else ""
        said = ", ".join(" ".join(part.split()) for part in (error.context, error.problem) if part)
        tabs = mark is not None and "\t" in _indent(text.split("\n")[mark.line : mark.line + 1])
        remedy = "; indent with spaces, not with tabs" if tabs else ""
        raise RecipeError([f"{path}: {place}not valid YAML: {said}{remedy}"]) from None
    except (ValueError, OverflowError):
        # PyYAML lets these out of its scanner for escapes such as "\UFFFFFFFF".
        raise RecipeError(
            [f"{path}: not valid YAML: a number or character code too large"]
        ) from None
    if root is None or (isinstance(root, yaml.ScalarNode) and root.value == ""):
        raise RecipeError([f"{path}: the file is empty; start it with 'vtcompress: 2'"])
    if not isinstance(root, yaml.MappingNode):
        line = root.start_mark.line + 1
        raise RecipeError([f"{path}: line {line}: a recipe is a mapping, such as 'vtcompress: 2'"])
    problems: list[str] = []
    data = _value(root, problems)
    return data, tuple(f"{path}: {problem}" for problem in problems)


def _indent(lines: list[str]) -> str:
    line = lines[0] if lines else ""
    return line[: len(line) - len(line.lstrip())]


def parse_value(text: str) -> Any:
    """Returns one value written as in a recipe (`0.6`, `[1, 2]`, `null`); what is no YAML stays text."""
    try:
        if any(_refused(text)):
            return text
        root = _Loader(text).get_single_node()
    except (yaml.YAMLError, ValueError, OverflowError):
        return text
    problems: list[str] = []
    value = None if root is None else _value(root, problems)
    return text if problems else value


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError([f"{path}: no such file"]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        problem = f"{path}: cannot be read: {reason}; name a file that can be"
        raise RecipeError([problem]) from None
    if len(raw) > MAX_BYTES:
        raise RecipeError([f"{path}: larger than {MAX_BYTES} bytes; a recipe is a short text"])
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise RecipeError(
            [f"{path}: line {line}: not UTF-8 text; save the file as UTF-8"]
        ) from None


def _refused(text: str) -> Iterator[str]:
    """Yields what of YAML is not accepted, from the events, before anything is built from them."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = f"line {event.start_mark.line + 1}" if event.start_mark else "line 1"
        if isinstance(event, yaml.AliasEvent):
            yield f"{line}: an alias (*{event.anchor}) is not accepted; write the value out"
        elif isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            yield f"{line}: an anchor (&{event.anchor}) is not accepted; write the value out"
        if tag := getattr(event, "tag", None):
            yield f"{line}: a tag ({show(tag)}) is not accepted; write the value alone"
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            yield f"{line}: nested more than {MAX_DEPTH} deep"
            return


def _value(node: yaml.Node, problems: list[str]) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return tuple(_value(item, problems) for item in node.value)
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, problems)
    text = str(node.value)
    match node.tag.removeprefix(_TAG):
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            return int(text)
        case "float":
            return float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
        case _:
            return text


def _mapping(node: yaml.MappingNode, problems: list[str]) -> dict[str, Any]:
    first: dict[str, int] = {}
    values: dict[str, Any] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            problems.append(f"line {line}: a key must be a single word, not a list or a mapping")
        elif key.value in first:
            problems.append(
                f"line {line}: the key {show(key.value)} is given twice"
                f" (first on line {first[key.value]}); keep one"
            )
        else:
            first[key.value] = line
            values[key.value] = _value(value, problems)
    return values
