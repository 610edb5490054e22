"""Bodies of requests: no longer than allowed, not slower, and not too much of them in memory at once."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope

from export.server.refusal import RefusedError

FULL_BODIES = 8
"""How many bodies of the greatest length are held at once, read or waiting."""
RETRY_SECONDS = 5
DISCARD_SECONDS = 3.0
"""That a refused body is taken off the connection; a slow one is cut off."""


class GoneError(Exception):
    """The client has left; there is nobody to answer."""


class BodyShare:
    """What one request takes of the room."""

    def __init__(self, room: "BodyRoom") -> None:
        self._room, self.bytes = room, 0

    def take(self, count: int) -> None:
        """Take room for bytes.

        Raises:
            RefusedError: other requests have it.
        """
        if self._room.taken + count > self._room.most:
            raise RefusedError(
                429,
                "other requests hold all the memory that there is for pictures; try again",
                code="memory_full",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
        self._room.taken += count
        self.bytes += count


class BodyRoom:
    """Memory for the bodies of all requests; of one event loop.

    Args:
        longest: bytes of a body at most.
    """

    def __init__(self, longest: int) -> None:
        self.most, self.taken = FULL_BODIES * longest, 0

    @contextmanager
    def share(self) -> Iterator[BodyShare]:
        """Let a request take room until the block ends."""
        share = BodyShare(self)
        try:
            yield share
        finally:
            self.taken -= share.bytes


class UnreadBody:
    """The rest of a body that is not read, because the request is refused.

    It is taken off the connection in front of the answer, for a while: a client that still sends when the
    connection is closed loses the answer.

    Args:
        scope: of the request.
        receive: gives its parts.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._more = True
        # Such a client sends nothing until it is asked.
        self._waits = any(name == b"expect" for name, _ in scope["headers"])

    async def receive(self) -> Message:
        """Return what comes next; see ASGI."""
        message = await self._receive()
        self._waits = False
        self._more = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def discard(self) -> None:
        """Take the rest, for a few seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_SECONDS):
                while self._more and not self._waits:
                    await self.receive()


async def read_body(
    scope: Scope, receive: Receive, most: int, seconds: float, share: BodyShare
) -> bytearray:
    """Return the body of a request that holds JSON.

    Args:
        scope: of the request.
        receive: gives its parts.
        most: bytes.
        seconds: that it may take to come.
        share: of the memory for bodies.

    Raises:
        RefusedError: it is no JSON, too long, too slow, or there is no memory for it.
        GoneError: the client left.
    """
    headers = Headers(scope=scope)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which no page of a stranger sends unasked
        raise RefusedError(415, "send application/json (header Content-Type)")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise RefusedError(415, "send the body as it is, without Content-Encoding")
    if int(headers.get("content-length", "0")) > most:  # h11 lets numbers alone through
        raise _too_long(most)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise GoneError
                part = message.get("body", b"")
                if len(body) + len(part) > most:
                    raise _too_long(most)
                share.take(len(part))
                body += part
                more = message.get("more_body", False)
    except TimeoutError:
        raise RefusedError(
            408, f"the body did not come within {seconds:g} s", headers={"Connection": "close"}
        ) from None
    return body


def _too_long(most: int) -> RefusedError:
    return RefusedError(413, f"the body has more than the {most:,} bytes that are read")
