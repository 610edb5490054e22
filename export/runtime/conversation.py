"""A conversation of several turns: the cache stays, and only the new tokens of a turn run."""

import logging
import time
from typing import TYPE_CHECKING, Unpack

from compressor.samples.pictures import Pictures, pictures_of
from export.runtime.answering import Answering
from export.runtime.images import SeenPicture, of_one_prompt
from export.runtime.messages import Message, user_message
from export.runtime.sampling import AnswerKeys, AnswerOptions
from export.runtime.sequence import NOTHING, Cached
from export.session.session import Past

if TYPE_CHECKING:
    from export.runtime.core import RuntimeCore

log = logging.getLogger(__name__)


class Conversation:
    """Several turns with one model; made by `Runtime.chat`.

    Every turn is rendered as the whole conversation by the model's chat template. If what ran so far (the
    last prompt and the answer's tokens) is exactly the beginning of that, only the rest runs: the end of
    the answer as the template writes it, the new pictures and the new question. If not, because the
    template writes an earlier answer otherwise than the model gave it, everything runs again; the log
    says so. So it is where a new picture changes how the model reads the first one. Either way the answer
    is that of the whole conversation.

    Args:
        runtime: answers.
    """

    def __init__(self, runtime: "RuntimeCore") -> None:
        self._runtime = runtime
        self._messages: list[Message] = []
        self._seen: tuple[SeenPicture, ...] = ()
        self._cached = NOTHING
        self._open: Answering | None = None

    @property
    def messages(self) -> tuple[Message, ...]:
        """The turns so far, questions and answers."""
        return tuple(self._messages)

    def ask(
        self,
        question: str,
        images: Pictures = (),
        **options: Unpack[AnswerKeys],
    ) -> Answering:
        """Return the answer of the next turn as an iterator over pieces of text.

        The turn counts once its first token is there; an answer that is left early (`close`, or the next
        question) is kept as far as it came.

        Args:
            question: what is asked.
            images: new pictures of this turn, as `Runtime.generate` takes them.
            options: as of `Runtime.generate`; what `generation_config` asks of a prompt is asked of the whole
                conversation.

        Raises:
            DataError: a picture cannot be read, or the conversation does not fit the model any more;
                the conversation is as it was.
        """
        if self._open is not None:
            self._open.close()
        started = time.perf_counter()
        pictures = pictures_of(images)
        self._runtime.check_question(question)
        wanted = AnswerOptions(**options)
        messages = [*self._messages, user_message(question, len(pictures))]
        seen = of_one_prompt(self._seen + self._runtime.look(pictures))
        ids = self._runtime.encode(messages, seen)
        cached = self._cached
        if any(was is not now for was, now in zip(self._seen, seen, strict=False)):
            log.info(
                "this model reads each of several pictures otherwise than one alone: all %d rows run again",
                len(ids),
            )
            cached = NOTHING
        elif not cached.begins(ids):
            log.info(
                "the chat template writes the earlier turns otherwise than they ran: all %d rows run again",
                len(ids),
            )
            cached = NOTHING

        def keep(tokens: tuple[int, ...], past: Past) -> None:
            # An answer may spell the image token; as text of a later prompt it would count as a picture.
            prompter = self._runtime.prompter
            text = prompter.decode(tokens).replace(prompter.image_token, "")
            answer = {"role": "assistant", "content": [{"type": "text", "text": text}]}
            self._messages = [*messages, answer]
            self._seen = seen
            # The last token was picked and has not run.
            self._cached = Cached(ids + tokens[:-1], len(seen), past)
            self._open = None

        self._open = self._runtime.answering(ids, seen, cached, wanted, started, keep)
        return self._open
