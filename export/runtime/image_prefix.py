"""Pictures looked at once: their keys and values are kept, and of every question only its own tokens run.

Exact, because attention is causal: a visual row never sees what follows it, so its keys and values do not
depend on the question. Where gates decide how deep visual rows go, or the question which of them go on, they
do; and where visual rows become more than the prompt has image tokens, text behind them stands elsewhere in
one call with them than in a later one. Then nothing is kept and all rows run.
"""

import logging
import time
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Unpack

from compressor.errors import DataError
from compressor.samples.pictures import Pictures, pictures_of
from export.runtime.answering import Answering
from export.runtime.images import SeenPicture
from export.runtime.messages import user_message
from export.runtime.sampling import AnswerKeys, AnswerOptions
from export.runtime.sequence import NOTHING, Cached

if TYPE_CHECKING:
    from export.runtime.core import Reply, RuntimeCore

log = logging.getLogger(__name__)

# Two questions that share no beginning: what their prompts share does not depend on the question.
PROBES = ("a", "Is 7 it?")


class ImagePrefix:
    """Pictures that a model has looked at; made by `Runtime.prefill_image`.

    Args:
        runtime: answers.
        seen: the pictures.
        cached: rows up to the last picture; none if the chat template leaves nothing to share.
    """

    def __init__(self, runtime: "RuntimeCore", seen: Sequence[SeenPicture], cached: Cached) -> None:
        self._runtime, self._seen, self._cached = runtime, seen, cached

    @property
    def rows(self) -> int:
        """How many rows are kept."""
        return len(self._cached.ids)

    def generate(self, question: str, **options: Unpack[AnswerKeys]) -> Answering:
        """Return the answer to a question about the pictures; see `Runtime.generate`."""
        started = time.perf_counter()
        ids, cached = self._ids_and_cached(question)
        wanted = AnswerOptions(**options)
        return self._runtime.answering(ids, self._seen, cached, wanted, started)

    def answer(
        self, question: str, *, max_new_tokens: int = 64, generation_config: bool = True
    ) -> "Reply":
        """Return the whole greedy answer to a question about the pictures; see `Runtime.answer`."""
        ids, cached = self._ids_and_cached(question)
        prompt = self._runtime.prompt_of(ids, self._seen, cached)
        wanted = AnswerOptions(max_new_tokens, generation_config=generation_config)
        return self._runtime.replies([prompt], wanted, cached.past)[0]

    def _ids_and_cached(self, question: str) -> tuple[tuple[int, ...], Cached]:
        self._runtime.check_question(question)
        ids = self._runtime.encode([user_message(question, len(self._seen))], self._seen)
        if self._cached.begins(ids):
            return ids, self._cached
        log.info("the tokens before the pictures are others for this question: all rows run")
        return ids, NOTHING


def prefill_images(runtime: "RuntimeCore", images: Pictures) -> ImagePrefix:
    """Run what every question about these pictures begins with.

    Raises:
        DataError: a picture cannot be read, or none is given.
    """
    pictures = pictures_of(images)
    if not pictures:
        raise DataError(["prefill_image: no picture; give at least one, or use generate"])
    seen = runtime.look(pictures)
    if (why := nothing_kept(runtime)) is not None:
        log.info("%s: nothing can be kept", why)
        return ImagePrefix(runtime, seen, NOTHING)
    prompts = [runtime.encode([user_message(probe, len(seen))], seen) for probe in PROBES]
    end = shared_end(prompts, runtime.facts.image_token_id)
    if end is None:
        log.info("the chat template puts the question before the pictures: nothing can be kept")
        return ImagePrefix(runtime, seen, NOTHING)
    return ImagePrefix(runtime, seen, prefilled(runtime, prompts[0][:end], seen))


def nothing_kept(runtime: "RuntimeCore") -> str | None:
    """Return why rows of pictures cannot be kept for other questions; None: they can."""
    if runtime.session.reads_question:
        return "what becomes of visual tokens depends on the question"
    if runtime.session.moves_text:
        return "visual tokens that become more move the question on"
    return None


def prefilled(runtime: "RuntimeCore", ids: tuple[int, ...], seen: Sequence[SeenPicture]) -> Cached:
    """Run the beginning of a sequence, which holds all its pictures.

    Args:
        runtime: runs it.
        ids: up to `pictures_end`.
        seen: the pictures.
    """
    _, past = runtime.prefill([runtime.prompt_of(ids, seen, unfinished=True)])
    return Cached(ids, len(seen), past)


def pictures_end(ids: Sequence[int], image_token_id: int) -> int:
    """Return where the rows of a sequence end that are kept for its pictures, at least one.

    The end is right behind the last picture. A decoder call needs a text row, so if the picture comes first,
    the token behind it is taken along.
    """
    places = [place for place, token in enumerate(ids) if token == image_token_id]
    end = places[-1] + 1
    return end + 1 if end == len(places) else end


def shared_end(prompts: Sequence[tuple[int, ...]], image_token_id: int) -> int | None:
    """Return where the rows end that prompts share and that hold all pictures; None: there is no such place.

    Tokens behind that may merge with the question's first.
    """
    columns = zip(*prompts, strict=False)  # to the end of the shortest
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    end = pictures_end(prompts[0], image_token_id)
    return end if end <= shared else None
