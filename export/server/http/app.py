"""The server as an ASGI application: routes, who is let in, what is counted and said of each request."""

import time
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from export.checks.memory import resident_bytes
from export.server.answerer import Answerer
from export.server.http.access import Access
from export.server.http.bodies import UnreadBody
from export.server.http.chat import NOTE, ChatRoute, unforeseen
from export.server.http.note import GONE, RequestNote
from export.server.limits import ServerLimits
from export.server.metrics import CONTENT_TYPE, ServerMetrics, counter
from export.server.refusal import RefusedError
from export.server.wire.response import model_document

CHAT, MODELS = "/v1/chat/completions", "/v1/models"
TOO_SLOW = 408
HEALTH, METRICS = "/health", "/metrics"
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")


class ChatServer:
    """Answers requests about one model.

    Args:
        answerer: makes answers.
        name: of the model.
        limits: of what is taken on.
        access: lets requests in.
        say: takes a line about each request.
        failed: takes errors that nobody foresaw.
    """

    def __init__(
        self,
        answerer: Answerer,
        name: str,
        limits: ServerLimits,
        access: Access,
        say: Callable[[str], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._name, self._access = name, access
        self._say, self._failed = say, failed
        self._cache = answerer.cache
        self._metrics = ServerMetrics()
        self.chat = ChatRoute(answerer, name, limits, self._metrics, failed)
        self._created = int(time.time())
        self._routes = Starlette(
            routes=[
                Route(CHAT, self.chat, methods=["POST"]),
                Route(MODELS, self._models, methods=["GET"]),
                Route(MODELS + "/{name:path}", self._model, methods=["GET"]),
                Route(HEALTH, self._health, methods=["GET"]),
                Route(METRICS, self._all_metrics, methods=["GET"]),
            ],
            exception_handlers={RefusedError: _refused, HTTPException: _no_route, 500: _refused},
        )
        self._routes.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; see ASGI."""
        note = scope[NOTE] = RequestNote()
        body = UnreadBody(scope, receive)

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                note.status = message["status"]
                if note.status != TOO_SLOW:
                    await body.discard()
            await send(message)

        try:
            if scope["path"] != HEALTH:
                self._access.check(scope["headers"])
            await self._routes(scope, body.receive, noted)
        except RefusedError as error:
            await refusal_response(error)(scope, body.receive, noted)
        except Exception as error:  # noqa: BLE001 - was answered; one request must not end the others
            self._failed(error)
        finally:
            route = _route(scope["path"])
            self._metrics.request(route, GONE if note.status is None else note.status)
            method = scope["method"] if scope["method"] in METHODS else "OTHER"
            self._say(note.line(method, route))

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _models(self, _: Request) -> Response:
        found = [model_document(self._name, self._created)]
        return JSONResponse({"object": "list", "data": found})

    async def _model(self, request: Request) -> Response:
        if request.path_params["name"] != self._name:
            raise RefusedError(404, "no such model", param="model", code="model_not_found")
        return JSONResponse(model_document(self._name, self._created))

    async def _all_metrics(self, _: Request) -> Response:
        found = sorted(self._cache.counts.items())
        lines = [
            line
            for outcome, words in (("hits", "found"), ("misses", "not found"))
            for line in counter(
                f"picture_cache_{outcome}_total",
                f"Pictures, and rows of prompts up to their last picture, {words} in the cache.",
                [((("kind", kind),), getattr(counts, outcome)) for kind, counts in found],
            )
        ]
        queue = self.chat.queue
        gauges: dict[str, tuple[str, float]] = {
            "queue_length": ("Requests that wait.", queue.waiting),
            "answers_running": ("Requests that are answered now.", queue.running),
            "picture_cache_bytes": ("Memory of what is kept of pictures.", self._cache.bytes),
            "picture_cache_entries": ("What is kept of pictures.", self._cache.entries),
            "resident_memory_bytes": ("Memory of the process.", resident_bytes() or 0),
        }
        return Response(self._metrics.text(gauges, lines), headers={"Content-Type": CONTENT_TYPE})


def refusal_response(error: RefusedError) -> Response:
    """Return the response that tells of a refusal."""
    return JSONResponse(error.document, error.status, error.headers)


def _route(path: str) -> str:
    """Return the route of a path, of which there are few whatever clients ask for."""
    if path.startswith(MODELS + "/"):
        return MODELS
    return path if path in (CHAT, MODELS, HEALTH, METRICS) else "other"


async def _refused(_: Request, error: Exception) -> Response:
    return refusal_response(error if isinstance(error, RefusedError) else unforeseen())


async def _no_route(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    words = {404: "no such route", 405: "not with this method"}.get(status, "refused")
    headers = error.headers if isinstance(error, HTTPException) else None
    return refusal_response(RefusedError(status, words, headers=headers))
