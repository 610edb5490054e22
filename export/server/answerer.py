"""From a request to an answer: pictures are read, looked at or found again, and the conversation goes on."""

import hashlib
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from compressor.errors import DataError
from compressor.samples.pictures import read_picture
from export.runtime.answering import Answering
from export.runtime.core import RuntimeCore
from export.runtime.image_prefix import nothing_kept, pictures_end, prefilled
from export.runtime.images import SeenPicture, of_one_prompt
from export.runtime.messages import check_text
from export.runtime.sampling import AnswerOptions
from export.runtime.sequence import NOTHING, Cached
from export.runtime.stops import StopText
from export.server.limits import ServerLimits
from export.server.picture_cache import PictureCache
from export.server.picture_source import PictureSource
from export.server.refusal import RefusedError, bad_request
from export.server.template_roles import TemplateRoles
from export.server.wire.request import ChatRequest, MessageTurn, PictureUrl
from export.server.wire.response import FinishReason, Usage

PIXELS, ROWS = "pixels", "rows"
"""What is kept of pictures: what the model takes of one; keys and values up to the last one of a prompt."""
# What begins a message on a part of the request.
_PLACE = re.compile(r"(messages(?:\[\d+\]|\.\w+)*): ")
# Of a whole number in a tuple, and of the tuple's place for it.
_ID_BYTES = 40


@dataclass(frozen=True)
class AnswerBegun:
    """The request is one that can be answered.

    Attributes:
        answering: its answer, of which only the pictures' rows have run yet.
        kept: rows of the prompt that were kept from an earlier request.
    """

    answering: Answering
    kept: int

    @property
    def usage(self) -> Usage:
        """Counts of the answer so far."""
        figures = self.answering.figures
        return Usage(figures.prompt_rows, figures.tokens, self.kept)


@dataclass(frozen=True)
class Finished:
    """The answer has ended.

    Attributes:
        reason: why.
        usage: its counts.
    """

    reason: FinishReason
    usage: Usage


AnswerEvent = AnswerBegun | str | Finished


class Answerer:
    """Answers requests by one runtime; threads may share it.

    Args:
        runtime: of the model.
        limits: of the server.
        source: reads pictures.
        cache: keeps what was made of them.
        folder: of the artifact, which no message names.
    """

    def __init__(
        self,
        runtime: RuntimeCore,
        limits: ServerLimits,
        source: PictureSource,
        cache: PictureCache,
        folder: Path,
    ) -> None:
        self._runtime, self._limits = runtime, limits
        self._source, self.cache = source, cache
        self._roles = TemplateRoles(runtime.prompter)
        self._keeps = limits.cache_bytes > 0 and nothing_kept(runtime) is None
        self._hidden = sorted({str(folder), str(folder.resolve())}, key=len, reverse=True)

    def check(self, request: ChatRequest) -> None:
        """Refuse at once what needs no look at a picture to be refused.

        Raises:
            RefusedError: names the field.
        """
        if len(request.pictures) > self._limits.max_images:
            problem = (
                f"have {len(request.pictures)} pictures, and {self._limits.max_images} are read"
            )
            raise bad_request("messages", f"{problem} at most")
        for picture in request.pictures:
            self._source.check(picture)

    def answer(self, request: ChatRequest) -> Iterator[AnswerEvent]:
        """Yield that an answer begins, its pieces, and that it has ended.

        Raises:
            RefusedError: the request cannot be answered.
        """
        try:
            begun = self._begin(request)
        except DataError as error:
            words = self._told(error)
            place = _PLACE.match(words)
            raise RefusedError(400, words, param=place and place[1]) from error
        yield begun
        try:
            yield from self._pieces(begun, request)
        finally:  # also if the asker left
            self.cache.trim()

    def _pieces(self, begun: AnswerBegun, request: ChatRequest) -> Iterator[AnswerEvent]:
        answering = begun.answering
        stops = StopText(request.stops)
        for piece in answering:
            if text := stops.push(piece):
                yield text
            if stops.found:
                answering.close()
                break
        if rest := stops.finish():
            yield rest
        ended = bool(answering.token_ids) and answering.token_ids[-1] in (
            self._runtime.prompter.eos_ids
        )
        yield Finished("stop" if stops.found or ended else "length", begun.usage)

    def _begin(self, request: ChatRequest) -> AnswerBegun:
        started = time.perf_counter()
        digests, alone = self._looked_at(request.pictures)
        seen = of_one_prompt(alone, [picture.where for picture in request.pictures])
        ids = self._runtime.encode([self._message(turn) for turn in request.turns], seen)
        asked = request.max_tokens
        most = self._limits.max_tokens if asked is None else asked
        room = self._runtime.room_for(ids, seen, most)
        options = AnswerOptions(
            max_new_tokens=room if asked is None else asked,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=secrets.randbits(63) if request.seed is None else request.seed % (1 << 64),
        )
        cached, kept = NOTHING, False
        if room >= options.max_new_tokens:  # else `answering` refuses
            cached, kept = self._prefix(ids, seen, digests)
        answering = self._runtime.answering(ids, seen, cached, options, started)
        return AnswerBegun(answering, len(cached.ids) if kept else 0)

    def _looked_at(self, pictures: Sequence[PictureUrl]) -> tuple[list[bytes], list[SeenPicture]]:
        """Return the digests of pictures, and the pictures as the model takes them."""
        digests, seen, rows = [], [], 0
        for picture in pictures:
            content = self._source.read(picture)
            digest = hashlib.sha256(content).digest()
            found: SeenPicture | None = self.cache.get(PIXELS, digest)
            if found is None:
                try:
                    found = self._runtime.images(read_picture(content, picture.where))
                except DataError as error:
                    raise _refused(error, picture.where) from error
                self.cache.put(PIXELS, digest, found, partial(_picture_bytes, found))
            digests.append(digest)
            seen.append(found)
            rows += found.rows
            if rows > self._runtime.facts.decoder.max_positions:  # before more memory is taken
                most = self._runtime.facts.decoder.max_positions
                problem = f"the pictures so far take {rows} of the model's {most} positions"
                raise bad_request(picture.where, f"{problem}; give fewer, or smaller ones")
        return digests, seen

    def _message(self, turn: MessageTurn) -> dict[str, Any]:
        if turn.role == "user":
            for number, part in enumerate(turn.parts):
                if isinstance(part, str):
                    self._check_text(part, turn.place(number))
            blocks = [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                for part in turn.parts
            ]
            return {"role": "user", "content": blocks}
        text = "".join(part for part in turn.parts if isinstance(part, str))
        if turn.role == "assistant":
            # An answer may spell it, and comes back as it was sent.
            text = text.replace(self._runtime.prompter.image_token, "")
        self._check_text(text, turn.content)
        return {"role": turn.role, "content": self._roles.content(turn.role, text, turn.where)}

    def _check_text(self, text: str, where: str) -> None:
        """Refuse a text that no conversation may have, by its place in the request."""
        try:
            check_text(text, where, self._runtime.prompter.image_token)
        except DataError as error:
            raise _refused(error, where) from error

    def _prefix(
        self, ids: tuple[int, ...], seen: Sequence[SeenPicture], digests: Sequence[bytes]
    ) -> tuple[Cached, bool]:
        """Return the rows up to the last picture, and whether they were kept from an earlier request.

        They run apart in either case, so that an answer does not depend on what was asked before.
        """
        if not self._keeps or not seen:
            return NOTHING, False
        end = pictures_end(ids, self._runtime.facts.image_token_id)
        if end >= len(ids):
            return NOTHING, False
        key = (ids[:end], tuple(digests))
        found: Cached | None = self.cache.get(ROWS, key)
        if found is not None:
            return found, True
        found = prefilled(self._runtime, ids[:end], seen)
        self.cache.put(ROWS, key, found, partial(self._cached_bytes, found))
        return found, False

    def _cached_bytes(self, cached: Cached) -> int:
        session = self._runtime.session
        buffers = session.buffer_bytes(cached.past)
        held = session.past_bytes(cached.past) if buffers is None else buffers
        return held + len(cached.ids) * _ID_BYTES

    def _told(self, error: DataError) -> str:
        """Return an error's words without the place of the artifact."""
        words = "; ".join(error.problems)
        for folder in self._hidden:
            words = words.replace(f"{folder}/", "").replace(folder, "the artifact")
        return words


def _refused(error: DataError, where: str) -> RefusedError:
    """Return the refusal of a part of a request, whose place an error may say already."""
    words = "; ".join(error.problems)
    return bad_request(where, words.removeprefix(f"{where}: ").removeprefix("image: "))


def _picture_bytes(seen: SeenPicture) -> int:
    beside = seen.beside_others
    others = _picture_bytes(beside) if isinstance(beside, SeenPicture) else 0
    return seen.pixels.nbytes + len(seen.text) + others
