"""From every value that a recipe may not have to one readable line; rules on values; names that are near."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError, WrapValidator
from pydantic_core import InitErrorDetails, PydanticCustomError

MAX_SHOWN = 60
"""Longest rendering of a value inside an error line, in characters."""


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
            word, elsewhere = getattr(owner, "key_word", "key"), getattr(owner, "elsewhere", "")
            meant = hint(str(loc[-1]), owner)
            more = f"; {elsewhere}" if elsewhere and not meant else ""
            return f"{where}: unknown {word}{meant} (known: {', '.join(known)}){more}"
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
