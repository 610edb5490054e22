"""One connection: clients that are slow, send what is no HTTP or come in crowds are let go."""

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from export.server.refusal import RefusedError

MOST_CONNECTIONS = 256
MOST_HEADER_BYTES = 32 * 1024


class PatientProtocol(H11Protocol):
    """uvicorn's connection with an end to its patience, `config.timeout_keep_alive` seconds.

    uvicorn itself waits for ever for the rest of headers, and for who does not read on.
    """

    _headers_due: asyncio.TimerHandle | None = None
    _reading_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; one connection too many ends at once."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()
            return
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        for due in (self._headers_due, self._reading_due):
            if due is not None:
                due.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Take bytes; what is no HTTP ends the connection."""
        try:
            super().data_received(data)
        except h11.ProtocolError:
            self.transport.abort()
        if self._busy and self._headers_due is not None:
            self._headers_due.cancel()
            self._headers_due = None

    def on_response_complete(self) -> None:
        """Wait for the next request, no longer than for the first."""
        self._await_headers()
        super().on_response_complete()

    def shutdown(self) -> None:
        """Close when the answer that is being sent has ended, or now."""
        try:
            super().shutdown()
        except h11.ProtocolError:
            self.transport.abort()

    def pause_writing(self) -> None:
        """Wait for a client that does not read, for a while."""
        super().pause_writing()
        self._reading_due = self.loop.call_later(self._patience, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on."""
        if self._reading_due is not None:
            self._reading_due.cancel()
            self._reading_due = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP in the form of other errors."""
        body = json.dumps(RefusedError(400, msg).document).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        parts: tuple[Any, ...] = (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        for part in parts:
            self.transport.write(self.conn.send(part) or b"")
        self.transport.close()
        self._await_close()

    @property
    def _patience(self) -> float:
        return float(self.config.timeout_keep_alive)

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _await_headers(self) -> None:
        if self._headers_due is not None:
            self._headers_due.cancel()
        self._headers_due = self.loop.call_later(self._patience, self._end_idle)

    def _await_close(self) -> None:
        self.loop.call_later(self._patience, self.transport.abort)

    def _end_idle(self) -> None:
        if not self._busy:
            self.transport.abort()
