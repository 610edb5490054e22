"""An answer ends before a text that its asker named, wherever pieces of it begin and end."""

from collections.abc import Sequence


class StopText:
    """Text in, text out as soon as it is certain that no stop begins in it.

    Args:
        stops: the texts; none is empty.

    Attributes:
        found: whether one of them came.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Take a piece; return the text that may be sent. Behind a stop nothing is."""
        if self.found:
            return ""
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        sent = text[: len(text) - kept]
        self._held = text[len(sent) :]
        return sent

    def finish(self) -> str:
        """Return what was held back and turned out to be no stop."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text a stop may begin with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
