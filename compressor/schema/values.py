"""The kinds of values that recipes hold, and sections made of them."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from compressor.schema.problems import allowed, apply_rule, key_names, rule, show


def is_path(value: object) -> bool:
    """Whether a value can name a file here and in the UTF-8 text of a resolved recipe."""
    text = str(value) if isinstance(value, str | Path) else ""
    return bool(text.strip()) and "\0" not in text and _is_utf8(text)


def _is_utf8(text: str) -> bool:
    return text == text.encode(errors="ignore").decode()


def _path_of(kind: str) -> Callable[[Any], Path]:
    def check(value: Any) -> Path:
        if not is_path(value):
            raise PydanticCustomError("not_allowed", f"the path of a {kind} file, as text")
        return Path(value)

    return check


def each_once(values: object) -> str | None:
    """Return what is wrong with a list whose items must be distinct and at least one, None if nothing is."""
    if values == ():
        return "the list is empty; give at least one"
    plain = isinstance(values, tuple) and [v for v in values if type(v) in {int, str}]
    twice = tuple(value for value, count in Counter(plain or ()).items() if count > 1)
    return f"{show(twice)} listed more than once; list each once" if twice else None


def _each_at_most_once(values: object) -> str | None:
    return None if values == () else each_once(values)


def _ascending(values: object) -> str | None:
    plain = isinstance(values, tuple) and [v for v in values if type(v) is int]
    return None if not plain or plain == sorted(plain) else "not in ascending order; sort them"


Flag = Annotated[bool, allowed("true or false")]


Seed = Annotated[int, Field(ge=0, lt=2**32), allowed("a whole number from 0 to 4294967295")]


Count = Annotated[int, Field(ge=1), allowed("a whole number, 1 or more")]


LayerIndex = Annotated[int, Field(ge=0), allowed("a whole number, 0 or more")]


Layers = Annotated[tuple[LayerIndex, ...], rule(each_once)]


KeptLayers = Annotated[tuple[LayerIndex, ...], rule(_each_at_most_once)]


Candidates = Annotated[tuple[LayerIndex, ...], rule(each_once), rule(_ascending)]


Share = Annotated[float, Field(ge=0, le=1), allowed("a number from 0 to 1")]


Frozen = Annotated[
    float,
    Field(ge=0, le=1),
    allowed(
        "a number from 0 to 1, the share of layers; 'layers' names them, 'speedup' asks for a gain"
    ),
]


Cosine = Annotated[float, Field(ge=-1, le=1), allowed("a number from -1 to 1")]


Quantile = Annotated[float, Field(gt=0, le=1), allowed("a number above 0, up to 1")]


PartOf = Annotated[float, Field(gt=0, lt=1), allowed("a number above 0 and below 1")]


NotNegative = Annotated[float, Field(ge=0), allowed("a number, 0 or more")]


AboveOne = Annotated[float, Field(gt=1), allowed("a number above 1")]


Rate = Annotated[float, Field(gt=0), allowed("a number above 0")]


Divisor = Annotated[int, Field(ge=2), allowed("a whole number, 2 or more")]


LayerOrDepth = Annotated[
    Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)],
    allowed("a whole number, 1 or more, or a share of the depth, above 0 and below 1"),
]
"""A layer, or a share of the decoder's depth, see `layer_at`."""


DataPath = Annotated[Path, BeforeValidator(_path_of(".jsonl"))]


WeightsPath = Annotated[Path, BeforeValidator(_path_of(".safetensors"))]


MaskPath = Annotated[Path, BeforeValidator(_path_of(".npy or .safetensors"))]


_TEXT = r"^[^\x00-\x1f\x7f]+$"


ModelId = Annotated[str, Field(pattern=_TEXT), allowed("a hub id or a folder, as text")]


SearchTarget = Annotated[
    Literal["prefill", "first_token", "kv_bytes"], allowed("prefill, first_token or kv_bytes")
]
"""What is to get smaller: the work of the prefill, all work up to the first token of a prompt with a picture,
the vision side's included, or the bytes of the KV cache behind the prefill."""


RunDType = Annotated[
    Literal["float32", "bfloat16", "float16"], allowed("float32, bfloat16 or float16")
]
"""In which dtype the original runs in torch."""


OWN_SCORE = "python:"
"""What the name of a score begins with that is a function of the user's own."""


ScoreName = Annotated[
    str,
    Field(pattern=rf"^(exact|contains|normalized|vqa|anls|{OWN_SCORE}[^\W\d]\w*(\.[^\W\d]\w*)+)$"),
    allowed("exact, contains, normalized, vqa, anls, or python:module.function"),
]
"""How answers are scored, see `compressor.samples.scores`."""


Revision = Annotated[
    str,
    Field(pattern=_TEXT),
    allowed("a branch, tag or commit, in quotes if it looks like a number"),
]


def layer_at(value: float, layers: int) -> int:
    """Return a layer number: a whole number is one; of a share of the depth it is the nearest, 1 at least.

    Args:
        value: whole number, or share above 0 and below 1; a half counts up.
        layers: of the decoder.
    """
    if isinstance(value, int):
        return value
    return max(1, math.floor(value * layers + 0.5 + 1e-9))


class RecipeSection(BaseModel):
    """A mapping of a recipe: values of exactly the declared types, no other keys, never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ExactlyOne(RecipeSection):
    """A section in which one key, and only one, is given.

    Attributes:
        beside: keys that go with one of them, by which.
        with_any: keys that go with any of them.
    """

    beside: ClassVar[Mapping[str, str]] = {}
    with_any: ClassVar[tuple[str, ...]] = ()

    @field_validator("*", mode="before")
    @classmethod
    def _given(cls, value: object) -> object:
        if value is None:
            raise PydanticCustomError("not_allowed", "give it a value or leave the key out")
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _one(cls, value: Any, handler: Callable[[Any], Self]) -> Self:
        problem = None
        if isinstance(value, dict):
            names = cls.choices()
            given = [name for name in names if name in value]
            choice = f"give exactly one of: {', '.join(names)}"
            idle = [n for n, owner in cls.beside.items() if n in value and owner not in value]
            if len(given) > 1:
                problem = f"{' and '.join(given)} are given together; {choice}"
            elif not set(value) - set(cls.with_any):
                problem = f"nothing is given; {choice}"
            elif idle:
                problem = f"{idle[0]} goes with {cls.beside[idle[0]]}; give both or neither"
        result: Self = apply_rule(value, handler, problem)
        return result

    @classmethod
    def choices(cls) -> list[str]:
        """Return the keys of which one is given."""
        return [n for n in key_names(cls) if n not in cls.beside and n not in cls.with_any]

    @model_serializer(mode="wrap")
    def _without_the_others(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


def path_keys(section: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    """Yield the keys of a section, and of those in it, that hold paths."""
    for name, info in section.model_fields.items():
        kinds = list(_types_in(info.annotation))
        if Path in kinds:
            yield (info.alias or name,)
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from ((info.alias or name, *rest) for rest in path_keys(kind))


def _types_in(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _types_in(part)
