"""A server in a thread of the test, what asks it, and sessions that are slow or wait on purpose."""

import asyncio
import base64
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from export.runtime.core import RuntimeCore
from export.runtime.runtime import Runtime
from export.server.answerer import Answerer
from export.server.http.access import Access, bound_sockets
from export.server.http.app import ChatServer
from export.server.http.serving import StoppableServer
from export.server.limits import ServerLimits
from export.server.picture_cache import PictureCache
from export.server.picture_source import PictureSource
from export.session.arrays import Array
from export.session.feeds import CallRows
from export.session.session import Past
from tests.runtimes import Spy

NAME = "tiny"
USUAL = ServerLimits()


@dataclass
class Served:
    """A server that runs.

    Attributes:
        port: of 127.0.0.1.
        chat: the application.
        server: that runs it.
        said: lines about requests.
        failures: errors that nobody foresaw.
    """

    port: int
    chat: ChatServer
    server: StoppableServer
    said: list[str] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "none", **options: Any) -> Any:
        """Return OpenAI's own client, which does not try again."""
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)

    def metrics(self) -> dict[str, float]:
        with urllib.request.urlopen(f"{self.url}/metrics") as response:
            text = response.read().decode()
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


@contextmanager
def served(
    runtime: RuntimeCore,
    limits: ServerLimits = USUAL,
    *,
    key: str | None = None,
    files: Path | None = None,
    folder: Path = Path("/nowhere"),
    name: str = NAME,
) -> Iterator[Served]:
    """Serve a runtime in a thread until the block ends."""
    said: list[str] = []
    failures: list[BaseException] = []
    source = PictureSource(files, limits.max_request_bytes)
    answerer = Answerer(runtime, limits, source, PictureCache(limits.cache_bytes), folder)
    chat = ChatServer(answerer, name, limits, Access(key), said.append, failures.append)
    sockets = bound_sockets("127.0.0.1", 0, keyed=key is not None)
    server = StoppableServer(chat, limits, said.append)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets)))
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield Served(sockets[0].getsockname()[1], chat, server, said, failures)
    finally:
        server.stop()
        server.stop()
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"
        assert chat.chat.queue.join(10), "a generation did not end"


def wait_for(condition: Any, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)


def data_url(picture: Path | bytes) -> str:
    content = picture if isinstance(picture, bytes) else picture.read_bytes()
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def asking(question: str, *urls: str, **more: Any) -> dict[str, Any]:
    """Return a request about pictures, which stand in front of the question as the runtime has them."""
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    parts.append({"type": "text", "text": question})
    return {"model": NAME, "messages": [{"role": "user", "content": parts}], **more}


def post(
    url: str, body: bytes | dict[str, Any], path: str = "/v1/chat/completions", **headers: str
) -> tuple[int, Any, Any]:
    """Send a body; return status, headers and document of what answers."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"Content-Type": "application/json"} | {
        k.replace("_", "-"): v for k, v in headers.items()
    }
    request = urllib.request.Request(url + path, content, sent)
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.headers, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, json.loads(error.read())


def raw(port: int, content: bytes, *, seconds: float = 20.0, shut: bool = False) -> bytes:
    """Send bytes; return all that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        try:
            connection.sendall(content)
            if shut:
                connection.shutdown(socket.SHUT_WR)
            found = bytearray()
            while part := connection.recv(65536):
                found += part
        except (ConnectionResetError, BrokenPipeError):
            return b""
    return bytes(found)


@dataclass
class Slow(Spy):
    """A session whose decoder waits in front of each call.

    Attributes:
        seconds: that it waits.
        gate: that it waits for, too.
    """

    seconds: float = 0.0
    gate: threading.Event = field(default_factory=threading.Event)

    def decode(self, rows: CallRows, past: Past) -> tuple[Array, Past]:
        assert self.gate.wait(60)
        time.sleep(self.seconds)
        return super().decode(rows, past)


def slowed(runtime: Runtime, seconds: float = 0.0) -> tuple[Runtime, Slow]:
    """Return a runtime on a session that waits for its gate."""
    slow = Slow(runtime.session, seconds=seconds)
    return Runtime(slow, runtime.facts, runtime.prompter, runtime.images, runtime.settings), slow
