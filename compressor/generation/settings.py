"""What a model's files say about generating: where answers end, and which next tokens are barred or punished.

The rule is that of transformers' `from_pretrained` and `generate`: the keys of `generation_config.json` alone
if there is such a file, whatever else says otherwise; without it those of `config.json`, of its text section
where the top has none or null. The tokenizer's end token ends nothing by itself. Where that leaves no end, an
answer goes on to its longest length. No torch here: facts, runtime and both checks read the same.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from compressor.disk.files import read_text, write_text
from compressor.errors import DataError, ModelError

GENERATION_FILE = "generation_config.json"
CONFIG_FILE = "config.json"
# Of a model, the section that transformers takes where the top of config.json has no value.
TEXT_SECTION = "text_config"

LARGEST = (1 << 63) - 1
"""Of token ids: what is computed with them holds no larger ones."""

SAMPLES = "do_sample"
"""Key that asks for drawn tokens; who asks a question decides that here."""

# What changes the tokens that `generate` picks and is not applied here, with the value that changes nothing.
_LEFT_OUT: Mapping[str, Any] = {
    SAMPLES: False,
    "num_beams": 1,
    "num_beam_groups": 1,
    "constraints": None,
    "force_words_ids": None,
    "penalty_alpha": 0,
    "dola_layers": None,
    "encoder_repetition_penalty": 1,
    "encoder_no_repeat_ngram_size": 0,
    "sequence_bias": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1,
    "watermarking_config": None,
    "stop_strings": None,
    "max_time": None,
    "token_healing": False,
}


@dataclass(frozen=True)
class GenerationSettings:
    """How a model asks to be generated with.

    Attributes:
        ends: tokens that end an answer; none: it goes on to its longest length.
        repetition_penalty: divides the logits above 0, and multiplies those below, of every token that the
            sequence holds, the prompt included.
        no_repeat_ngram_size: as many tokens in a row never come twice, the prompt included; 0: they may.
        bad_words_ids: sequences whose last token is barred where the others stand before it.
        min_length: rows of prompt and answer before which no end is picked.
        min_new_tokens: tokens of the answer before which no end is picked.
        suppress_tokens: never picked.
        begin_suppress_tokens: never picked first.
        left_out: `key: value` of what the model asks for and is not applied.
    """

    ends: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    min_length: int = 0
    min_new_tokens: int = 0
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    left_out: tuple[str, ...] = ()


PLAIN = GenerationSettings()
"""Nothing is asked for: the likeliest token is the next."""


def model_settings(folder: Path) -> GenerationSettings:
    """Return what a model folder, compressed folder or artifact asks for.

    Raises:
        ModelError: a file cannot be read, or holds values that make no sense; all are named.
    """
    return settings_of(*_found(folder))


def model_keys(folder: Path) -> dict[str, Any]:
    """Return what a model folder says about generating, as an artifact keeps it in `generation_config.json`.

    Raises:
        ModelError: as `model_settings`.
    """
    keys, where = _found(folder)
    settings_of(keys, where)
    return keys


def write_keys(folder: Path, keys: Mapping[str, Any]) -> None:
    """Write `generation_config.json` into a folder."""
    write_text(folder / GENERATION_FILE, json.dumps(keys, indent=2, ensure_ascii=False) + "\n")


def settings_of(keys: Mapping[str, Any], where: str) -> GenerationSettings:
    """Return the settings that keys and values describe; null is as good as absent.

    Args:
        keys: of a generation configuration.
        where: names it in errors.

    Raises:
        ModelError: values that make no sense, all of them.
    """
    problems: list[str] = []

    def read(key: str, kind: "_Kind", default: Any) -> Any:
        value = keys.get(key)
        if value is None:
            return default
        if (found := kind.read(value)) is None:
            problems.append(
                f"{where}: {key}: {_short(value)} is not {kind.words}; mend or remove it"
            )
            return default
        return found

    least_new = read("min_new_tokens", COUNT, None)
    settings = GenerationSettings(
        ends=read("eos_token_id", TOKENS, ()),
        repetition_penalty=read("repetition_penalty", PENALTY, 1.0),
        no_repeat_ngram_size=read("no_repeat_ngram_size", COUNT, 0),
        bad_words_ids=read("bad_words_ids", SEQUENCES, ()),
        # The one in new tokens takes the other's place.
        min_length=read("min_length", COUNT, 0) if least_new is None else 0,
        min_new_tokens=least_new or 0,
        suppress_tokens=read("suppress_tokens", TOKENS, ()),
        begin_suppress_tokens=read("begin_suppress_tokens", TOKENS, ()),
        left_out=tuple(
            f"{key}: {_short(keys[key])}{' (give a temperature)' if key == SAMPLES else ''}"
            for key, neutral in _LEFT_OUT.items()
            if keys.get(key) not in (None, neutral, [], {})
        ),
    )
    if problems:
        raise ModelError(problems)
    return settings


def check_new_tokens(new_tokens: object) -> None:
    """Refuse a longest answer that is no number of tokens: an answer has one at least.

    Raises:
        DataError: says what is allowed.
    """
    if isinstance(new_tokens, bool) or not isinstance(new_tokens, Integral) or new_tokens < 1:
        raise DataError(
            [f"max_new_tokens: {new_tokens!r:.60} is not allowed; a whole number, 1 or more"]
        )


def check_positions(rows: int, new_tokens: int, positions: int) -> None:
    """Refuse a prompt of so many rows whose answer has no room.

    Args:
        rows: V + T of the prompt.
        new_tokens: longest answer.
        positions: that the model knows.

    Raises:
        DataError: names all three and the remedy.
    """
    if rows + new_tokens > positions:
        room = positions - rows
        remedy = (
            f"shorten it or ask for at most {room}"
            if room > 0
            else "shorten it, or give fewer pictures"
        )
        raise DataError(
            [
                f"the prompt takes {rows} of the model's {positions} positions; {new_tokens} new "
                f"tokens do not fit: {remedy}"
            ]
        )


def _found(folder: Path) -> tuple[dict[str, Any], str]:
    """Return the keys that count, and the file that they are from."""
    path = folder / GENERATION_FILE
    if path.is_file():
        return _object(path), str(path)
    path = folder / CONFIG_FILE
    top = _object(path) if path.is_file() else {}
    text = top.get(TEXT_SECTION)
    text = text if isinstance(text, dict) else {}
    found = {key: text.get(key) if top.get(key) is None else top[key] for key in _KEYS}
    return {key: value for key, value in found.items() if value is not None}, str(path)


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_text(path, ModelError))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ModelError([f"{path}: is not a JSON object; save or download the model again"])
    return value


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True)
class _Kind:
    """A kind of value: in words, and a function that gives None for all others."""

    words: str
    read: Callable[[Any], Any]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _tokens(value: Any) -> tuple[int, ...] | None:
    tokens = value if isinstance(value, list) else [value]
    return tuple(tokens) if all(_is_int(t) and abs(t) <= LARGEST for t in tokens) else None


def _sequences(value: Any) -> tuple[tuple[int, ...], ...] | None:
    rows = value if isinstance(value, list) else [value]
    found = [_tokens(row) if isinstance(row, list) and row else None for row in rows]
    return None if None in found else tuple(row for row in found if row is not None)


def _count(value: Any) -> int | None:
    return int(value) if _is_int(value) and value >= 0 else None


def _penalty(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and 0 < value <= sys.float_info.max else None


TOKENS = _Kind("a token id or a list of them", _tokens)
SEQUENCES = _Kind("a list of lists of token ids", _sequences)
COUNT = _Kind("a whole number of at least 0", _count)
PENALTY = _Kind("a number above 0", _penalty)

_KEYS = (
    "eos_token_id",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "min_length",
    "min_new_tokens",
    "suppress_tokens",
    "begin_suppress_tokens",
    *_LEFT_OUT,
)
