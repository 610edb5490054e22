"""Runs the server until it is told to stop: then nothing new is taken, and answers have a while to end."""

import asyncio
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn

from export.server.http.app import ChatServer
from export.server.http.connection import MOST_HEADER_BYTES, PatientProtocol
from export.server.limits import ServerLimits

# What uvicorn may take longer than answers, and threads behind them.
SPARE_SECONDS = 5
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


class StoppableServer(uvicorn.Server):
    """uvicorn's server with an end: a signal stops it, a second one at once.

    Args:
        chat: the application.
        limits: of it.
        told: takes a line when a signal comes.
    """

    def __init__(self, chat: ChatServer, limits: ServerLimits, told: Callable[[str], None]) -> None:
        patience = max(1, round(limits.client_seconds))
        stop = round(limits.stop_seconds) + SPARE_SECONDS
        super().__init__(
            uvicorn.Config(
                chat,
                loop="asyncio",
                http=PatientProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                h11_max_incomplete_event_size=MOST_HEADER_BYTES,
                timeout_keep_alive=patience,
                timeout_graceful_shutdown=stop,
            )
        )
        self._chat, self._limits, self._told = chat, limits, told
        self._loop: asyncio.AbstractEventLoop | None = None

    def stop(self) -> None:
        """Take nothing new, and end answers when their time is over; again: now. Any thread may call it."""
        if self._loop is not None:
            again, self.should_exit = self.should_exit, True
            self._loop.call_soon_threadsafe(self._end_answers, 0 if again else None)

    def _end_answers(self, seconds: float | None) -> None:
        loop = asyncio.get_running_loop()
        wait = self._limits.stop_seconds if seconds is None else seconds
        loop.call_later(wait, self._chat.chat.close)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until `stop`."""
        self._loop = asyncio.get_running_loop()
        try:
            await super().serve(sockets)
        finally:
            self._loop = None
            self._chat.chat.close()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let signals stop the server in this block; uvicorn itself would raise them again behind it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        heard = [one for one in SIGNALS if signal.getsignal(one) != signal.SIG_IGN]
        before = {number: signal.signal(number, self._on_signal) for number in heard}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._loop is not None and not self.should_exit:
            # Not here: the signal may have come while a line was being written.
            self._loop.call_soon_threadsafe(self._tell_stop, signal.Signals(number).name)
        self.stop()

    def _tell_stop(self, name: str) -> None:
        running = self._chat.chat.queue.running + self._chat.chat.queue.waiting
        seconds = f"{self._limits.stop_seconds:g} s"
        more = f"; {running} answers have {seconds} to end, a second signal ends them"
        self._told(f"stopping ({name}){more if running else ''}")


def run_server(
    chat: ChatServer,
    limits: ServerLimits,
    sockets: Sequence[socket.socket],
    told: Callable[[str], None],
) -> bool:
    """Serve until a signal comes; return whether all threads have ended.

    Args:
        chat: the application.
        limits: of it.
        sockets: bound ones.
        told: takes a line when a signal comes.
    """
    server = StoppableServer(chat, limits, told)
    asyncio.run(server.serve(list(sockets)))
    return chat.chat.queue.join(SPARE_SECONDS)
