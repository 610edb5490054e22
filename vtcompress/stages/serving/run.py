"""Serves an artifact: what can be refused is refused, and the port is taken, before the model is loaded."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.errors import MissingExtraError, VtcompressError
from compressor.progress import SILENT, Progress
from export.server.limits import ServerLimits

if TYPE_CHECKING:
    from export.runtime.core import RuntimeCore

MOST_TRACES = 5
"""Errors that nobody foresaw and that are told in full: traces must not fill the disk."""


@dataclass(frozen=True)
class Serving:
    """How an artifact is served.

    Attributes:
        name: of the model, for clients.
        host: name or address.
        port: 0: any that is free.
        key: that requests must have; None: none, and only this machine may ask.
        folder: whose pictures may be named; None: pictures come with requests alone.
        limits: of what is taken on.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    key: str | None = None
    folder: Path | None = None
    limits: ServerLimits = field(default_factory=ServerLimits)


def serve(
    artifact: Path,
    load: "Callable[[], RuntimeCore]",
    serving: Serving,
    *,
    progress: Progress = SILENT,
    said: Callable[[str], None] = lambda _: None,
    failed: Callable[[BaseException], None] = lambda _: None,
) -> None:
    """Serve until a signal comes.

    Args:
        artifact: its folder.
        load: loads it, when all else is found to be right.
        serving: how.
        progress: announces where it is served, and the stop.
        said: takes a line about each request.
        failed: takes errors that nobody foresaw, the first few of them.

    Raises:
        MissingExtraError: starlette or uvicorn is not installed.
        VtcompressError: the host, the port, the key or the folder cannot be used; or a generation did not end
            with the server.
    """
    try:
        from export.server.http.access import Access, bound_sockets, check_key
        from export.server.http.app import ChatServer
        from export.server.http.serving import run_server
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "h11"):
            raise
        raise MissingExtraError("serving an artifact", "serve") from None
    from export.server.answerer import Answerer
    from export.server.picture_cache import PictureCache
    from export.server.picture_source import PictureSource

    limits = serving.limits
    if serving.key is not None:
        check_key(serving.key)
    source = PictureSource(serving.folder, limits.max_request_bytes)
    sockets = bound_sockets(serving.host, serving.port, keyed=serving.key is not None)
    try:
        cache = PictureCache(limits.cache_bytes)
        answerer = Answerer(load(), limits, source, cache, artifact)
        access = Access(serving.key)
        chat = ChatServer(answerer, serving.name, limits, access, said, _first(failed, said))
        for one in sockets:
            one.listen()  # who reads that it is served may ask at once
            host, port = one.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            progress.say(f"serving {serving.name} at http://{shown}:{port}/v1; a signal stops it")
        ended = run_server(chat, limits, sockets, progress.say)
    finally:
        for one in sockets:
            one.close()
    if not ended:
        raise VtcompressError("a generation did not end with the server and was left behind")
    progress.say("stopped")


def _first(
    failed: Callable[[BaseException], None], said: Callable[[str], None]
) -> Callable[[BaseException], None]:
    """Return what tells the first errors in full, and of the others what they were."""
    told = 0

    def tell(error: BaseException) -> None:
        nonlocal told
        told += 1
        if told <= MOST_TRACES:
            failed(error)
        else:
            said(
                f"unexpected: {type(error).__name__}; traces of the first {MOST_TRACES} were written"
            )

    return tell
