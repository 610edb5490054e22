"""Damages bytes and JSON documents, seeded; runs readers on them and watches what they do."""

import copy
import json
import math
import os
import random
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hypothesis import strategies as st

from compressor.errors import VtcompressError

SECONDS = 10
"""What one case may take."""

NASTY = (b"\0", b"\xff\xff\xff\xff", b"-1", b"9" * 30, b"1e999", b"NaN", b"../", b"/etc/passwd",
         b"\xed\xa0\x80", b"{" * 5000, b"[" * 5000, b'"', b"null", b"&a [*a]", b"\r", b"\xe2\x80\xa8",
         b"!!python/object:os.system")  # fmt: skip

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([-1, 0, 2**63, 10**40, "../x", "/etc/passwd", "\0", "\ud800", ""]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
edits = st.lists(st.tuples(st.integers(0, 10**6), json_values), min_size=1, max_size=3)
"""Places, counted over all nodes of a document, and what to put there."""


def mutants(seeds: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Yield `count` damaged copies: bits flipped, bytes replaced, parts cut out, doubled, spliced."""
    randomly = random.Random(seed)
    for _ in range(count):
        content = bytearray(randomly.choice(seeds))
        for _ in range(randomly.choice((1, 1, 2, 5))):
            _damage(content, randomly, seeds)
        yield bytes(content)


def _damage(content: bytearray, randomly: random.Random, seeds: Sequence[bytes]) -> None:
    at = randomly.randrange(len(content) + 1)
    size = randomly.choice((1, 2, 4, 16, 64))
    match randomly.randrange(7):
        case 0 if at < len(content):
            content[at] ^= 1 << randomly.randrange(8)
        case 1 if at < len(content):
            content[at] = randomly.randrange(256)
        case 2:
            del content[at : at + size]
        case 3:
            content[at:at] = content[at : at + size]
        case 4:
            other = randomly.choice(seeds)
            start = randomly.randrange(len(other))
            content[at : at + size] = other[start : start + size]
        case 5:
            content[at:at] = randomly.choice(NASTY)
        case _:
            del content[at:]


def edited(document: Any, changes: Iterable[tuple[int, Any]]) -> Any:
    """Return a copy of a JSON document with nodes replaced, and now and then removed or renamed."""
    document = copy.deepcopy(document)
    for place, value in changes:
        owners = list(_nodes(document))
        if not owners:
            return value
        owner, key = owners[place % len(owners)]
        if place % 7 == 0:
            del owner[key]
        elif place % 7 == 1 and isinstance(owner, dict):
            owner[str(value)[:20]] = owner.pop(key)
        else:
            owner[key] = copy.deepcopy(value)  # else a value could come to hold itself
    return document


def _nodes(document: Any) -> Iterator[tuple[Any, Any]]:
    for key in _keys(document):
        yield document, key
        yield from _nodes(document[key])


def _keys(document: Any) -> list[Any]:
    """Return by what a list or mapping is asked for its parts; nothing for all else."""
    return list(
        range(len(document))
        if isinstance(document, list)
        else document
        if isinstance(document, dict)
        else ()
    )


class Watch:
    """Notes files that are written and processes and connections that are started, while it is on."""

    EVENTS = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate",
              "os.chmod", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork",
              "socket.connect", "socket.bind", "pickle.find_class")  # fmt: skip
    WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._on = False
        sys.addaudithook(self._hook)  # stays for the life of the process, silent while it is off

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._on:
            return
        if event in self.EVENTS:
            self.seen.append(f"{event}{arguments!r:.200}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & self.WRITES:
            name = str(arguments[0])
            if "__pycache__" not in name and name != os.devnull:
                self.seen.append(f"written: {name!r:.200}")

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Watch one case: what it does to the system, and that it ends in time."""
        self._on = True
        signal.signal(signal.SIGALRM, _too_long)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._on = False


class TooLongError(BaseException):
    """Not an Exception, so that no reader takes it for a fault of its file."""


def _too_long(*_: object) -> None:
    raise TooLongError


def outcome(watch: Watch, read: Callable[[], object], case: object) -> bool:
    """Return whether a reader accepted the case.

    Raises:
        AssertionError: it ended with another error than ours, in no time, or touched the system.
    """
    try:
        with watch():
            read()
    except VtcompressError as error:
        accepted, words = False, str(error)
    except BaseException as error:
        raise AssertionError(f"{type(error).__name__} for {case!r:.1500}") from error
    else:
        accepted, words = True, "none"
    assert words.strip(), f"an error without words for {case!r:.300}"
    assert watch.seen == [], f"{watch.seen} for {case!r:.300}"
    return accepted


# One case each, told by a seed: what `tests.fuzz` asks for

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 0.5, -0.0, 1e-50, 1e308, math.nan, math.inf, 255, 256, 2**31, 2**32,
    2**63, -(2**63), 10**40, "", "x", "0", "../x", "/etc/passwd", "\0", "\ud800", "a" * 100_000, "\x1b[2J",
    [], {}, [[]], [0], [1, 2, 3], [None], {"": 0}, {"a": {"b": 1}}, [0] * 10_000,
)  # fmt: skip


def document(whole: Any, seed: str) -> bytes:
    """Return a JSON document with one to three edits, or damaged in its bytes; whole without seed."""
    if not seed:
        return json.dumps(whole).encode()
    randomly = random.Random(seed)
    if randomly.random() < 0.2:
        return damaged([json.dumps(whole).encode()], seed)
    made = copy.deepcopy(whole)
    for _ in range(randomly.choice((1, 1, 1, 2, 3))):
        places = list(_nodes(made))
        if not places:
            break
        owner, key = randomly.choice(places)
        _edit(owner, key, randomly, places)
    return json.dumps(made).encode()


def _edit(owner: Any, key: Any, randomly: random.Random, places: Sequence[tuple[Any, Any]]) -> None:
    """Change one node of a document."""
    match randomly.randrange(8):
        case 0:
            del owner[key]
        case 1 if isinstance(owner, dict):
            owner[randomly.choice(("", "x", "type", str(key).upper()))] = owner.pop(key)
        case 2:
            other, at = randomly.choice(places)
            owner[key] = copy.deepcopy(other[at])
        case 3 if isinstance(owner[key], (int, float)):
            owner[key] = randomly.choice((-1, 2, 1000, 0.5)) * owner[key]
        case 4 if isinstance(owner[key], list):
            owner[key] = owner[key] * randomly.choice((2, 50))
        case 5:
            owner[key] = randomly.choice(([owner[key]], str(owner[key]), {"x": owner[key]}))
        case _:
            owner[key] = copy.deepcopy(randomly.choice(ODD))


def damaged(seeds: Sequence[bytes], seed: str) -> bytes:
    """Return one damaged copy, as `mutants` makes them; the first as it is without seed."""
    if not seed:
        return seeds[0]
    return next(mutants(seeds, 1, random.Random(seed).randrange(2**32)))
