"""From a recipe's bytes to plain values, and from every failure to one readable line.

What a recipe says has to be what is written at its place. So the YAML accepted here is the plain
part of YAML 1.2: `1e-3` is a number, `yes` is text, `010` is ten, and anchors, aliases, merge keys,
tags and keys given twice are refused.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError, WrapValidator
from pydantic_core import InitErrorDetails, PydanticCustomError

from compressor.errors import RecipeError

MAX_BYTES = 1 << 20
"""Largest recipe file read, in bytes."""

MAX_DEPTH = 32
"""Deepest nesting of lists and mappings read; recipes need five."""

MAX_SHOWN = 60
"""Longest rendering of a value inside an error line, in characters."""

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
        raise RecipeError([f"{path}: cannot be read: {reason}"]) from None
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


def show(value: object) -> str:
    """Returns a value as a recipe would write it: one line, at most `MAX_SHOWN` characters."""
    text = _written(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def _written(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case Path():
            return repr(str(value))
        case tuple() | list():
            return f"[{', '.join(map(_written, value))}]"
        case dict():
            return f"{{{', '.join(f'{key}: {_written(item)}' for key, item in value.items())}}}"
        case _:
            return " ".join(repr(value).split())


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns `; did you mean 'x'?` for the closest known name, or nothing where none is close."""
    close = difflib.get_close_matches(name[:MAX_SHOWN], list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def allowed(what: str) -> WrapValidator:
    """Returns a validator that answers every refusal with `what` is allowed instead."""

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("not_allowed", what) from None

    return WrapValidator(check)


def rule(broken: Callable[[Any], str | None]) -> WrapValidator:
    """Returns a validator for a rule on a whole value, reported beside the errors of its parts.

    Args:
        broken: gets the value as it was written and returns what is wrong with it, or None.
    """

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        return apply_rule(value, handler, broken(value))

    return WrapValidator(check)


def apply_rule(value: Any, handler: Callable[[Any], Any], problem: str | None) -> Any:
    """Returns `handler(value)`; raises its errors and `problem` together.

    Raises:
        ValidationError: the handler refused the value, or `problem` is not None.
    """
    details = []
    if problem is not None:
        kind = PydanticCustomError("rule", problem)
        details.append(InitErrorDetails(type=kind, loc=(), input=value))
    try:
        result = handler(value)
    except ValidationError as error:
        raise error_with(error, details) from None
    if details:
        raise ValidationError.from_exception_data("recipe", details)
    return result


def error_with(error: ValidationError, details: Sequence[InitErrorDetails]) -> ValidationError:
    """Returns an error with further problems behind its own."""
    own = [
        InitErrorDetails(
            type=PydanticCustomError(item["type"], item["msg"], item.get("ctx")),
            loc=item["loc"],
            input=item["input"],
        )
        for item in error.errors()
    ]
    return ValidationError.from_exception_data(error.title, [*own, *details]) if details else error


def error_lines(error: ValidationError, model: type[BaseModel], source: str) -> tuple[str, ...]:
    """Turns an error of `model` into lines: source, path of keys, value, what is allowed."""
    return tuple(f"{source}: {_line(dict(item), model)}" for item in error.errors())


def _line(item: dict[str, Any], model: type[BaseModel]) -> str:
    loc: tuple[str | int, ...] = item["loc"]
    where, value, context = _where(loc), show(item["input"]), item.get("ctx", {})
    match item["type"]:
        case "rule":
            return f"{where}: {item['msg']}"
        case "not_allowed":
            return f"{where}: {value} is not allowed; {item['msg']}"
        case "extra_forbidden":
            owner = _model_at(model, loc[:-1])
            known = key_names(owner)
            word = getattr(owner, "key_word", "key")
            return f"{where}: unknown {word}{hint(str(loc[-1]), owner)} (known: {', '.join(known)})"
        case "model_type":
            keys = ", ".join(key_names(_model_at(model, loc)))
            return f"{where}: {value} is not allowed; a mapping with keys of: {keys}"
        case "literal_error":
            return f"{where}: {value} is not allowed; {context['expected']}"
        case "tuple_type":
            return f"{where}: {value} is not allowed; a list{_as_list(item['input'])}"
        case "missing":
            return f"{where}: missing; it has to be given"
        case _:
            return f"{where}: {value} is not allowed"


def _as_list(value: object) -> str:
    """Returns how what is nearly a list is written as one, nothing for all else."""
    if isinstance(value, Mapping) and value:
        return f": write '- {next(iter(value))}:' with a dash in front"
    if isinstance(value, str) and re.fullmatch(r"\d{1,4}(\s*,\s*\d{1,4})*,?", value.strip()):
        return f": write [{value.strip().rstrip(',')}]"
    return ""


def _where(loc: tuple[str | int, ...]) -> str:
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += "." * bool(text) + (part if re.fullmatch(r"[\w-]{1,60}", part) else show(part))
    return text


def key_names(model: type[BaseModel]) -> tuple[str, ...]:
    """Returns the keys a section accepts, as written in the file, in the order of declaration."""
    return tuple(field.alias or name for name, field in model.model_fields.items())


def hint(name: str, section: type[BaseModel]) -> str:
    """Returns `; did you mean 'x'?` for the key of a section that a name stands for elsewhere, or is near."""
    others: Mapping[str, str] = getattr(section, "other_names", {})
    if key := others.get(name.lower()):
        return f"; did you mean '{key}'?"
    return nearest(name, key_names(section))


def section_at(model: type[BaseModel] | None, key: str) -> type[BaseModel] | None:
    """Returns the class of the section under a key, None where there is none."""
    if model is None or key not in key_names(model):
        return None
    fields = dict(zip(key_names(model), model.model_fields.values(), strict=True))
    return next(_models_in(fields[key].annotation), None)


def _model_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> type[BaseModel]:
    for part in loc:
        if isinstance(part, str):
            fields = dict(zip(key_names(model), model.model_fields.values(), strict=True))
            model = next(_models_in(fields[part].annotation))
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
