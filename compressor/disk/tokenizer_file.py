"""`tokenizer.json` of a model or artifact: looked into before the package tokenizers reads it.

The package is written in Rust: of a hostile file it panics (which in Python is no `Exception`), ends the
process or computes without end. What does that is refused here, in one line; what is left and panics is told
in one.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from compressor.disk.opening import read_bytes, why_unread
from compressor.errors import ENDINGS, ModelError, VtcompressError, first_line

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PARTS: Final = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
CHARACTER_MAP = "precompiled_charsmap"
MOST_STEPS = 100
"""Steps of one part; known ones have fewer than ten."""
LONGEST_TEXT = 2000
"""Characters of a pattern or of what it is replaced by; patterns of known tokenizers have a few hundred."""
MOST_GROWTH = 1000
"""How many times as long a text may get in one part."""
MOST_ADDED = 50_000
"""Added tokens; the time that they take grows faster than their number."""

MOST_TOKENS = 1 << 24
"""Ids of tokens are below it: a table of so many rows is made. Known vocabularies have 300,000."""

Json = Mapping[str, Any]


def read_tokenizer(path: Path) -> "Tokenizer":
    """Return the tokenizer of a file.

    Raises:
        ModelError: it cannot be read, is none, or would take work without end.
    """
    from tokenizers import Tokenizer

    content = _checked(path)
    with tokenizing(path, "is damaged or too new for this version of tokenizers"):
        return Tokenizer.from_buffer(content)


def check_tokenizer(path: Path) -> None:
    """Refuse a tokenizer's file that must not be read; as `read_tokenizer`, without reading it."""
    _checked(path)


@contextmanager
def tokenizing(path: Path, what: str = "fails on this text") -> Iterator[None]:
    """Turn what the package tokenizers raises inside, panics too, into a `ModelError` on its file.

    Args:
        path: the file, for the error.
        what: it does.
    """
    try:
        yield
    except (*ENDINGS, VtcompressError):
        raise
    except BaseException as failure:
        raise ModelError([f"{path}: {what} ({first_line(failure)})"]) from failure


def _checked(path: Path) -> bytes:
    try:
        content = read_bytes(path)
        document = json.loads(content)
    except OSError as failure:
        raise ModelError([f"{path}: {why_unread(failure)}"]) from None
    except (ValueError, RecursionError) as failure:
        raise ModelError([f"{path}: is not JSON ({first_line(failure)}); save it again"]) from None
    problems = [*_problems(document)] if isinstance(document, dict) else ["is no JSON object"]
    if problems:
        remedy = "save the tokenizer again, or give another model"
        raise ModelError(f"{path}: {problem}; {remedy}" for problem in problems)
    return content


def _problems(document: Json) -> Iterator[str]:
    added = document.get("added_tokens")
    if isinstance(added, list) and len(added) > MOST_ADDED:
        yield f"added_tokens: {len(added):,} are more than the {MOST_ADDED:,} that are read"
    for part in PARTS:
        steps = [*_objects(document.get(part))]
        if len(steps) > MOST_STEPS:
            yield f"{part}: has more than {MOST_STEPS} steps"
            continue
        texts = [text for step in steps for text in _texts(step)]
        if longest := max(map(len, texts), default=0) > LONGEST_TEXT:
            yield f"{part}: has a text of more than {LONGEST_TEXT} characters"
        if not longest and _growth(steps) > MOST_GROWTH:
            yield f"{part}: may make a text more than {MOST_GROWTH} times as long"
        if any(not _whole_map(step[CHARACTER_MAP]) for step in steps if CHARACTER_MAP in step):
            yield f"{part}: {CHARACTER_MAP}: is no map of characters"
    if isinstance(model := document.get("model"), dict):
        yield from _unknown_problems(model)
    if (largest := max(_token_ids(document), default=0)) >= MOST_TOKENS:
        yield f"the token id {largest} is not below {MOST_TOKENS:,}"


def _token_ids(document: Json) -> Iterator[int]:
    """Yield the ids of the vocabulary and of added tokens, where they are whole numbers."""
    model, added = document.get("model"), document.get("added_tokens")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    found = list(vocab.values()) if isinstance(vocab, dict) else []
    if isinstance(added, list):
        found += [token.get("id") for token in added if isinstance(token, dict)]
    yield from (token for token in found if isinstance(token, int))


def _unknown_problems(model: Json) -> Iterator[str]:
    """Yield a line where text that the tokenizer does not know has no token."""
    kind, vocab, token = model.get("type"), model.get("vocab"), model.get("unk_token")
    if kind == "Unigram" and model.get("unk_id") is None:
        yield "model.unk_id: is missing, so that it fails on text that it does not know"
    needed = token is not None or kind in ("WordLevel", "WordPiece")
    known = isinstance(token, str) and isinstance(vocab, dict) and token in vocab
    if isinstance(vocab, dict) and needed and not known:
        yield f"model.unk_token: {token!r:.60} is not in the vocabulary"


def _objects(value: Any) -> Iterator[Json]:
    """Yield the objects in a part that is JSON, at any depth; a few more than may be."""
    waiting, seen = [value], 0
    while waiting and seen <= MOST_STEPS:
        one = waiting.pop()
        if isinstance(one, dict):
            if "type" in one:
                seen += 1
                yield one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _texts(step: Json) -> Iterator[str]:
    """Yield what a step looks for and writes."""
    for key, value in step.items():
        if isinstance(value, str) and key != CHARACTER_MAP:
            yield value
        elif isinstance(value, dict) and "type" not in value:
            yield from (text for text in value.values() if isinstance(text, str))


def _growth(steps: list[Json]) -> int:
    """Return how many times as long a text gets at most: each character may be what is replaced."""
    growth = 1
    for step in steps:
        if isinstance(content := step.get("content"), str) and step.get("type") == "Replace":
            pattern = step.get("pattern")
            found = pattern.get("String") if isinstance(pattern, dict) else None
            growth *= max(1, -(-len(content) // max(1, len(found or ""))))
    return growth


def _whole_map(text: Any) -> bool:
    """Return whether a map says truly how long its table is: memory is taken by that number."""
    try:
        found = base64.b64decode(text or "", validate=True)
    except (ValueError, TypeError):
        return False
    length = int.from_bytes(found[:4], "little")
    return 4 <= length <= len(found) - 4 and length % 4 == 0
