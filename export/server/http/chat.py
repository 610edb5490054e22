"""The route of chat completions: a body is read, the request waits, and its answer is sent as it comes."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from export.server.answer_queue import AnswerJob, AnswerQueue, Failure, stopping
from export.server.answerer import AnswerBegun, Answerer, AnswerEvent, Finished
from export.server.http.bodies import BodyRoom, BodyShare, GoneError, read_body
from export.server.http.note import RequestNote
from export.server.limits import ServerLimits
from export.server.metrics import ServerMetrics
from export.server.refusal import RefusedError
from export.server.wire.request import ChatRequest, check_model, read_request
from export.server.wire.response import Completion, event

NOTE = "vtcompress.note"
"""Key of the scope that has the request's note."""
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ChatRoute:
    """Answers requests for chat completions.

    Args:
        answerer: makes answers.
        name: of the model.
        limits: of what is taken on.
        metrics: counts.
        failed: takes errors that nobody foresaw.
    """

    def __init__(
        self,
        answerer: Answerer,
        name: str,
        limits: ServerLimits,
        metrics: ServerMetrics,
        failed: Callable[[BaseException], None],
    ) -> None:
        self._answerer, self._name, self._limits = answerer, name, limits
        self._metrics, self._failed = metrics, failed
        self.queue: AnswerQueue[ChatRequest, AnswerEvent] = AnswerQueue(
            answerer.answer, limits.parallel, limits.queue
        )
        self._room = BodyRoom(limits.max_request_bytes)
        # One at a time: a body takes several times its length while it is read.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="vtcompress-request")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; see ASGI.

        Raises:
            RefusedError: it is not answered.
        """
        note: RequestNote = scope[NOTE]
        with self._room.share() as share:
            try:
                asked = await self._read(scope, receive, share)
                job = self.queue.submit(asked)
                watch = asyncio.create_task(self._watch(receive, job))
                try:
                    await self._answer(job, note, scope, receive, send)
                finally:
                    watch.cancel()
                    self.queue.cancel(job)
            except GoneError:
                self._metrics.left()
                note.ended = "the client left"

    def close(self) -> None:
        """End what still runs."""
        self.queue.stop()
        self._reader.shutdown(wait=False, cancel_futures=True)

    async def _read(self, scope: Scope, receive: Receive, share: BodyShare) -> ChatRequest:
        most, seconds = self._limits.max_request_bytes, self._limits.client_seconds
        body = await read_body(scope, receive, most, seconds, share)

        def read() -> ChatRequest:
            found = read_request(body, self._limits.max_tokens)
            check_model(found, self._name)
            self._answerer.check(found)
            return found

        return await asyncio.get_running_loop().run_in_executor(self._reader, read)

    async def _watch(self, receive: Receive, job: AnswerJob[ChatRequest, AnswerEvent]) -> None:
        """End the generation when the client has gone."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.queue.cancel(job)

    async def _answer(
        self,
        job: AnswerJob[ChatRequest, AnswerEvent],
        note: RequestNote,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        begun = await job.next()
        if not isinstance(begun, AnswerBegun):
            raise self._error(begun, note)
        completion = Completion(self._name, job.asked.include_usage)
        with self._counted(note, begun):
            if job.asked.stream:
                await self._stream(job, completion, note, send)
                return
            pieces = []
            while isinstance(found := await job.next(), str):
                pieces.append(found)
            if not isinstance(found, Finished):
                raise self._error(found, note)
            note.ended = found.reason
            document = completion.whole("".join(pieces), found.reason, found.usage)
            await JSONResponse(document)(scope, receive, send)

    async def _stream(
        self,
        job: AnswerJob[ChatRequest, AnswerEvent],
        completion: Completion,
        note: RequestNote,
        send: Send,
    ) -> None:
        async def body(content: bytes, *, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": content, "more_body": more})

        await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        await body(completion.begin())
        while isinstance(found := await job.next(), str):
            await body(completion.piece(found))
        if isinstance(found, Finished):
            note.ended = found.reason
            await body(completion.end(found.reason, found.usage), more=False)
            return
        error = self._error(found, note)
        if isinstance(error, GoneError):
            raise error
        await body(event(error.document), more=False)

    @contextmanager
    def _counted(self, note: RequestNote, begun: AnswerBegun) -> Iterator[None]:
        """Count the answer of the block, however it ends."""
        waited, prepared = note.seconds, begun.answering.figures.first_token_s
        try:
            yield
        finally:
            usage = note.usage = begun.usage
            if usage.completion:
                # From the request: until it began, and what the runtime took behind that.
                note.first_s = waited + begun.answering.figures.first_token_s - prepared
            self._metrics.answer(
                usage.prompt, usage.cached, usage.completion, note.first_s, note.seconds
            )

    def _error(
        self, found: AnswerEvent | Failure | None, note: RequestNote
    ) -> RefusedError | GoneError:
        """Return what to raise where an answer did not come, or not to its end."""
        if isinstance(found, Failure) and isinstance(found.error, RefusedError):
            return found.error
        if isinstance(found, Failure):
            self._failed(found.error)
            note.ended = f"failed: {type(found.error).__name__}"
            return unforeseen()
        if self.queue.stopped:
            note.ended = "cut off: the server stops"
            return stopping()
        return GoneError()


def unforeseen() -> RefusedError:
    """Return what is said of an error that nobody foresaw: nothing of the inside."""
    return RefusedError(500, "the server failed; its operator finds more in its log")
