"""One line of a jsonl file of questions: which keys are read, what they may hold, what is near a key."""

import difflib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

from compressor.samples.picture_names import MOST_SHOWN, picture_file, shown_name

KNOWN_KEYS: Final = ("image", "question", "answer", "kind")

OTHER_NAMES: Final[Mapping[str, str]] = {
    name: key
    for key, names in {
        "image": "images image_path image_paths image_file image_name image_url img imgs picture pictures "
        "photo photos file file_name filename path",
        "question": "questions prompt prompts query text instruction input q user conversations messages",
        "answer": "answers label labels target targets ground_truth gt gold response output completion "
        "reference references solution a multiple_choice_answer",
        "kind": "category type task question_type group",
    }.items()
    for name in names.split()
}
"""What other data sets call our keys."""

YES: Final = ("yes", "Yes", "true", "True")
NO: Final = ("no", "No", "false", "False")
"""What answers `true` and `false` in the data: any of them is right."""

ANSWER_WORDS = "must be a text, a number, true or false, or a list of these"


class _Number(str):
    """A number as it was written: `0.50` stays `0.50`."""

    __slots__ = ()


class _TwiceError(ValueError):
    """A key that one object has twice."""


@dataclass(frozen=True)
class Row:
    """What a line says.

    Attributes:
        images: files of pictures, in order.
        question: the user's words.
        answers: the right answers, each of them right alone, repeated ones as often as they are given; none:
            unknown.
        kind: group of the question; may be empty.
        unread: keys that say nothing here.
        blank: an answer, or one of a list, is blank or null and counts as none.
    """

    images: tuple[Path, ...]
    question: str
    answers: tuple[str, ...]
    kind: str
    unread: tuple[str, ...]
    blank: bool


def read_row(line: str, folder: Path) -> tuple[Row | None, list[str]]:
    """Return what a line says, or what is wrong with it: all of it.

    Args:
        line: one JSON object.
        folder: where relative picture paths start.
    """
    try:
        row: Any = json.loads(line, parse_int=_Number, parse_float=_Number, object_pairs_hook=_once)
    except _TwiceError as twice:
        return None, [str(twice)]
    except (ValueError, RecursionError):
        return None, ["not JSON"]
    if not isinstance(row, dict):
        return None, ["not a JSON object"]
    problems = [
        f"{key}: missing; this line has {shown_name(other)}{_remedy(key, row[other])}"
        for key in ("image", "question")
        if key not in row
        for other in list(row)
        if other not in KNOWN_KEYS and meant(other, row[other]) == key
    ]
    misnamed = any(problem.startswith("question") for problem in problems)
    images = _images(row.get("image"), folder, problems)
    question, kind = row.get("question"), row.get("kind")
    if not misnamed and not (_is_text(question) and question.strip()):
        problems.append(f"question: {'is empty' if _is_text(question) else 'must be a text'}")
    given = row.get("answer")
    answers = _answers(given)
    if answers is None:
        problems.append(f"answer: {ANSWER_WORDS}")
    if kind is not None and not isinstance(kind, str):
        problems.append("kind: must be a text")
    texts = {"question": [question], "answer": answers or (), "kind": [kind]}
    problems += [
        f"{key}: not valid Unicode"
        for key, values in texts.items()
        if any(isinstance(value, str) and not _is_unicode(value) for value in values)
    ]
    if problems or answers is None:
        return None, problems
    unread = tuple(key for key in row if key not in KNOWN_KEYS)
    parts = given if isinstance(given, list) else [given] if isinstance(given, str) else []
    blank = any(part is None or (isinstance(part, str) and not part.strip()) for part in parts)
    return Row(images, str(question), answers, str(kind or ""), unread, blank), []


def meant(key: str, value: object = "") -> str | None:
    """Return which of our keys another name probably stands for, None if it looks like none.

    Args:
        key: the other name.
        value: what it has; a text if that is not known.
    """
    name = key.strip().lower()
    if name in OTHER_NAMES:
        found = OTHER_NAMES[name]
        return found if found != "question" or _is_text(value) or _is_turns(value) else None
    if re.search(r"(_|^)(id|ids|idx|index)$", name) or not _is_text(value):
        return None
    close = difflib.get_close_matches(name[:MOST_SHOWN], KNOWN_KEYS, n=1, cutoff=0.75)
    return close[0] if close else None


def unread_words(unread: Sequence[tuple[str, ...]], *, known: bool) -> str | None:
    """Return which keys were not read and in how many questions, None if all were.

    Args:
        unread: of each question.
        known: whether any has a right answer.
    """
    counts = Counter(key for keys in unread for key in keys)
    if not counts:
        return None
    words = []
    for key, count in counts.items():
        hint = meant(key)
        # Only a key that is missed: beside an answer, a label is something else.
        asked = hint == "kind" or (hint == "answer" and not known)
        words.append(f"{shown_name(key)} ({count}{f'; did you mean {hint!r}?' if asked else ''})")
    return f"keys that are not read: {', '.join(words)} (read: {', '.join(KNOWN_KEYS)})"


def _remedy(key: str, value: object) -> str:
    if key == "question" and _is_turns(value):
        return ", a list of turns: give the user's words as 'question' and the reply as 'answer'"
    return f": call it '{key}'"


def _is_turns(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(turn, dict) for turn in value)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = Counter(key for key, _ in pairs)
    for key, count in counts.items():
        if count > 1:
            raise _TwiceError(f"{key[:MOST_SHOWN]}: given {count} times; keep one")
    return dict(pairs)


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and not isinstance(value, _Number)


def _answers(value: object) -> tuple[str, ...] | None:
    """Return the right answers, None if the value is none; a blank one is left out."""
    if value is None:
        return ()
    if isinstance(value, bool):
        return YES if value else NO
    if isinstance(value, str):
        return (str(value),) if value.strip() else ()
    if not isinstance(value, list) or any(isinstance(item, list) for item in value):
        return None
    found = [_answers(item) for item in value]
    if any(item is None for item in found):
        return None
    each = (answer for item in found if item is not None for answer in item)
    return tuple(each)


def _images(value: object, folder: Path, problems: list[str]) -> tuple[Path, ...]:
    """Return the files of pictures; add what is wrong with them to the problems."""
    names = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(_is_text(name) for name in names):
        problems.append("image: must be a file name or a list of file names")
        return ()
    files = []
    for name in names:
        path, problem = picture_file(name, folder)
        files.append(path)
        problems += [f"image: {problem}"] if problem else []
    return tuple(files)


def _is_unicode(text: str) -> bool:
    """JSON can spell halves of characters, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
