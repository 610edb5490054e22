"""Counts of a server in Prometheus' text form."""

import threading
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "vtcompress_"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of the histograms' buckets."""

Labels = tuple[tuple[str, str], ...]


class Spread:
    """How many values lie below each bound.

    Args:
        bounds: ascending.
    """

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> Iterable[str]:
        """Yield the lines of a histogram."""
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum}"
        yield f"{name}_count {total}"


class ServerMetrics:
    """What a server counts; threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Tally[tuple[str, str]] = Tally()
        self._tokens: Tally[str] = Tally()
        self._left = 0
        self._first, self._whole = Spread(), Spread()

    def request(self, route: str, status: int) -> None:
        """Count a request."""
        with self._lock:
            self._requests[route, str(status)] += 1

    def answer(
        self, prompt: int, cached: int, completion: int, first: float | None, seconds: float
    ) -> None:
        """Count an answer, ended or interrupted.

        Args:
            prompt: tokens of its prompt.
            cached: of them, those that did not run.
            completion: tokens of the answer.
            first: seconds from the request to the first token; None: there was none.
            seconds: from the request to the end.
        """
        with self._lock:
            self._tokens.update(prompt=prompt, cached=cached, completion=completion)
            if first is not None:
                self._first.add(first)
            self._whole.add(seconds)

    def left(self) -> None:
        """Count an asker who left before the end of the answer."""
        with self._lock:
            self._left += 1

    def text(self, gauges: Mapping[str, tuple[str, float]], counts: Iterable[str]) -> str:
        """Return all of it.

        Args:
            gauges: what changes up and down: names with their help and value.
            counts: lines of what others count.
        """
        lines: list[str] = []
        with self._lock:
            requests = [
                ((("route", route), ("status", status)), count)
                for (route, status), count in sorted(self._requests.items())
            ]
            lines += counter("requests_total", "Requests by route and status.", requests)
            for kind, words in TOKENS.items():
                name = f"{kind}_tokens_total"
                lines += counter(name, words, [((), self._tokens[kind])])
            words = "Answers whose asker left before their end."
            lines += counter("disconnects_total", words, [((), self._left)])
            for name, words, spread in (
                ("first_token_seconds", "From the request to the first token.", self._first),
                ("answer_seconds", "From the request to the end of the answer.", self._whole),
            ):
                lines += [*_head(name, words, "histogram"), *spread.lines(PREFIX + name)]
        lines += counts
        for name, (words, value) in gauges.items():
            lines += [*_head(name, words, "gauge"), f"{PREFIX}{name} {value:g}"]
        return "\n".join(lines) + "\n"


TOKENS = {
    "prompt": "Tokens of prompts, pictures' included.",
    "cached": "Tokens of prompts that did not run, because rows of their pictures were kept.",
    "completion": "Tokens of answers.",
}


def counter(name: str, words: str, values: Iterable[tuple[Labels, float]]) -> list[str]:
    """Return the lines of a counter; labels and values are this project's own words."""
    found = _head(name, words, "counter")
    for labels, value in values:
        inner = ",".join(f'{key}="{text}"' for key, text in labels)
        found.append(
            f"{PREFIX}{name}{{{inner}}} {value:g}" if inner else f"{PREFIX}{name} {value:g}"
        )
    return found


def _head(name: str, words: str, kind: str) -> list[str]:
    return [f"# HELP {PREFIX}{name} {words}", f"# TYPE {PREFIX}{name} {kind}"]
