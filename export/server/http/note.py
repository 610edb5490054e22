"""What is noted of one request, for the counts and for the line that is said of it."""

import time
from dataclasses import dataclass, field

from export.server.wire.response import Usage

GONE = 499
"""Of who left before an answer began, as nginx has it."""


@dataclass
class RequestNote:
    """One request; filled while it is answered.

    Attributes:
        started: when it came, in seconds of the monotonic clock.
        status: of the answer; None: none was sent.
        usage: counts of the answer; None: none was made.
        first_s: seconds from the request to the first token.
        ended: how the answer ended.
    """

    started: float = field(default_factory=time.monotonic)
    status: int | None = None
    usage: Usage | None = None
    first_s: float | None = None
    ended: str = ""

    @property
    def seconds(self) -> float:
        """Since it came."""
        return time.monotonic() - self.started

    def line(self, method: str, route: str) -> str:
        """Return what is said of it; nothing of what was asked or answered."""
        status = GONE if self.status is None else self.status
        words = [f"{method} {route} {status} {self.seconds:.3f} s"]
        if self.usage is not None:
            first = "-" if self.first_s is None else f"{self.first_s:.3f} s"
            words.append(f"prompt {self.usage.prompt} tokens, {self.usage.cached} of them kept")
            words.append(f"first token {first}, {self.usage.completion} tokens")
        if self.ended:
            words.append(self.ended)
        return "; ".join(words)
