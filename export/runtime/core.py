"""Token ids and pixels through one model: what conversations, kept pictures and whole answers share."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.errors import DataError
from compressor.facts import ModelFacts
from compressor.generation.rules import constraints
from compressor.generation.settings import (
    PLAIN,
    SAMPLES,
    GenerationSettings,
    check_positions,
)
from compressor.samples.layout import Grid, VisualRows, layout_of
from compressor.samples.pictures import Pictures, pictures_of
from export.runtime.answering import Answering
from export.runtime.images import ImageProcessor, SeenPicture, looked_at, rows_of
from export.runtime.messages import Message, check_text, user_message
from export.runtime.prompter import Prompter
from export.runtime.sampling import AnswerOptions
from export.runtime.sequence import NOTHING, Cached, Prompt, Step
from export.session.arrays import Array
from export.session.feeds import prompt_rows, text_rows
from export.session.interruptible import check_ending
from export.session.session import Past, Session, cached_rows, exit_of

log = logging.getLogger(__name__)

# Rows of one batch bound its memory; encoded prompts wait for others of their layout, but not for ever.
BATCH_ROWS = 4096
PROMPTS_AHEAD = 256


@dataclass(frozen=True)
class Reply:
    """A greedy answer.

    Attributes:
        token_ids: its tokens, the ending one included.
        text: without special tokens.
        first_logits: [vocab] float32 at the last prompt token.
        exit_layer: first layer that had no visual rows of the prompt; None if they stayed.
    """

    token_ids: tuple[int, ...]
    text: str
    first_logits: Array
    exit_layer: int | None = None


class RuntimeCore:
    """One model on one session: prompts made, run and read.

    Args:
        session: runs the graphs.
        facts: of the model.
        prompter: writes and reads tokens.
        images: turns pictures into pixels.
        settings: what the model's generation configuration asks for.
    """

    def __init__(
        self,
        session: Session,
        facts: ModelFacts,
        prompter: Prompter,
        images: ImageProcessor,
        settings: GenerationSettings = PLAIN,
    ) -> None:
        self.session = session
        self.facts = facts
        self.prompter = prompter
        self.images = images
        self.settings = settings
        self._told = False

    def prepare(self, question: str, images: Pictures) -> Prompt:
        """Return a prompt ready to run: its rows and its pictures."""
        pictures = pictures_of(images)
        self.check_question(question)
        seen = self.look(pictures)
        return self.prompt_of(self.encode([user_message(question, len(seen))], seen), seen)

    def check_question(self, question: str, where: str = "question") -> None:
        """Refuse a question that contains the image token, by that name; all else `encode` refuses.

        Args:
            question: what is asked.
            where: what the error calls it.

        Raises:
            DataError: says what to change.
        """
        if isinstance(question, str):
            check_text(question, where, self.prompter.image_token)

    def encode(self, messages: Sequence[Message], seen: Sequence[SeenPicture]) -> tuple[int, ...]:
        """Return a conversation as token ids, up to where the model's answer begins.

        Args:
            messages: the conversation.
            seen: all its pictures, in their order.
        """
        return self.prompter.encode(messages, [picture.text for picture in seen])

    def look(self, images: Pictures) -> tuple[SeenPicture, ...]:
        """Return pictures as the model takes them."""
        return looked_at(images, self.images)

    def prompt_of(
        self,
        ids: tuple[int, ...],
        seen: Sequence[SeenPicture],
        cached: Cached = NOTHING,
        *,
        unfinished: bool = False,
    ) -> Prompt:
        """Return what is left to run of a token sequence.

        Args:
            ids: the whole sequence.
            seen: all its pictures.
            cached: its rows that ran already.
            unfinished: more of the sequence comes later; see `layout_of`.

        Raises:
            DataError: the pictures are not those of the sequence, or it cannot run; see `layout_of`.
        """
        new = tuple(seen[cached.images :])
        layout = layout_of(
            ids[len(cached.ids) :],
            self.facts,
            [picture.rows for picture in new],
            spell=self.prompter.tokenizer.id_to_token,
            start=self.facts.places(len(cached.ids), cached.ids.count(self.facts.image_token_id)),
            grids=self._cells(new),
            earlier=self._cells(seen[: cached.images]),
            unfinished=unfinished,
        )
        return Prompt(layout, new, ids)

    def prefill(self, prompts: Sequence[Prompt], past: Past = None) -> tuple[Array, Past]:
        """Run prompts of equal layout; return the logits [B, vocab] at their ends and the cache.

        Args:
            prompts: whole ones, or what is left of them after `past`.
            past: cache of what ran before; None: nothing did.
        """
        layout = prompts[0].layout
        visual = VisualRows(())
        text = self.session.embed(np.stack([p.layout.text_ids for p in prompts]))
        if layout.images:
            pictures = [picture for prompt in prompts for picture in prompt.seen]
            visual = rows_of(self.session, pictures)
        logits, past = self.session.decode(
            prompt_rows(layout, text, *visual),
            self.session.empty_past(len(prompts)) if past is None else past,
        )
        return logits[:, -1], past

    def answering(
        self,
        ids: tuple[int, ...],
        seen: Sequence[SeenPicture],
        cached: Cached,
        options: AnswerOptions,
        started: float,
        on_end: Callable[[tuple[int, ...], Past], None] | None = None,
    ) -> Answering:
        """Return the answer to a token sequence of which some rows ran already.

        Raises:
            DataError: the sequence does not fit the model.
        """
        prompt = self.prompt_of(ids, seen, cached)
        self._check_room(prompt, options.max_new_tokens, cached.past)
        return Answering(
            self.steps([prompt], options, cached.past),
            self.prompter,
            prompt_rows=len(ids),
            reused_rows=len(cached.ids),
            prepared_s=time.perf_counter() - started,
            cache_bytes=self.session.past_bytes,
            exit_layer=lambda past: self._exit_layer(past, ids),
            on_end=on_end,
        )

    def room_for(self, ids: tuple[int, ...], seen: Sequence[SeenPicture], most: int) -> int:
        """Return how many tokens an answer to a token sequence may have, `most` at most.

        Raises:
            DataError: the sequence does not fit the model, or leaves no room for one token.
        """
        prompt = self.prompt_of(ids, seen)
        self._check_room(prompt, 1, None)
        fits, beyond = 1, most + 1
        while beyond - fits > 1:
            tried = (fits + beyond) // 2
            try:
                self._check_room(prompt, tried, None)
            except DataError:
                beyond = tried
            else:
                fits = tried
        return fits

    def replies(
        self, prompts: Sequence[Prompt], options: AnswerOptions, past: Past = None
    ) -> list[Reply]:
        """Return the answers to prompts of equal layout."""
        steps = self.steps(prompts, options, past)
        first = next(steps)
        left = self._exit_layer(first.past, prompts[0].ids)
        rows = np.stack([first.tokens, *(step.tokens for step in steps)], axis=1).tolist()
        answers = [until_end(row, self.prompter.eos_ids) for row in rows]
        return [
            Reply(tokens, self.prompter.decode(tokens), logits, left)
            for tokens, logits in zip(answers, first.logits, strict=True)
        ]

    def steps(
        self, prompts: Sequence[Prompt], options: AnswerOptions, past: Past = None
    ) -> Iterator[Step]:
        """Yield decoding steps of prompts of equal layout until all have ended.

        Their logits are the model's own; the generation configuration changes what is picked.

        Raises:
            EndedError: another thread has ended this one's work; see `export.session.interruptible`.
        """
        self._check_room(prompts[0], options.max_new_tokens, past)
        pick = options.picker()
        settings = self._asked(options) if options.generation_config else PLAIN
        rules = constraints(settings, self.prompter.eos_ids)
        sequences = np.array([prompt.ids for prompt in prompts])
        logits, past = self.prefill(prompts, past)
        ended = np.zeros(len(prompts), dtype=bool)
        for number in range(options.max_new_tokens):
            check_ending()
            allowed = logits
            for rule in rules:
                allowed = rule(allowed, sequences, number)
            tokens = pick(allowed)
            if rules:
                sequences = np.concatenate([sequences, tokens[:, None]], axis=1)
            yield Step(tokens, logits, past)
            ended |= np.isin(tokens, self.prompter.eos_ids)
            if ended.all() or number + 1 == options.max_new_tokens:
                return
            text = self.session.embed(tokens[:, None])
            rows, past = self.session.decode(
                text_rows(prompts[0].layout.behind(number), text), past
            )
            logits = rows[:, -1]

    def _asked(self, options: AnswerOptions) -> GenerationSettings:
        """Return what the model asks for; tell once what of it is not applied."""
        greedy = options.temperature == 0
        left_out = [line for line in self.settings.left_out if greedy or SAMPLES not in line]
        if left_out and not self._told:
            self._told = True
            log.warning(
                "the model's generation_config.json asks for what is not applied here: %s",
                "; ".join(left_out),
            )
        return self.settings

    def _cells(self, seen: Sequence[SeenPicture]) -> list[Grid]:
        """Return rows and columns of pictures' visual rows; read where these have positions of their own."""
        own = self.facts.token_grid or (0, 0)
        return [picture.cells or own for picture in seen]

    def _exit_layer(self, past: Past, ids: Sequence[int]) -> int | None:
        """Return where visual rows left, from the cache behind a prompt of these tokens."""
        held = cached_rows(self.session.caches, self.session.past_shapes(past))
        visual = ids.count(self.facts.image_token_id)
        return exit_of(held, visual, len(ids) - visual)

    def _check_room(self, prompt: Prompt, max_new_tokens: int, past: Past) -> None:
        check_positions(prompt.end, max_new_tokens, self.facts.decoder.max_positions)
        # The last token is picked and does not run.
        text = prompt.layout.text_ids.size + max_new_tokens - 1
        visual = prompt.layout.visual_index.size
        if (kept := self.session.rows_kept) is not None:
            visual = sum(one.rows_kept(kept, self.facts.tile_rows) for one in prompt.seen)
        self.session.check_room(past, visual, text)


def until_end(tokens: Sequence[int], ends: Sequence[int]) -> tuple[int, ...]:
    """Cut what a batch went on with after the end of an answer; the ending token stays."""
    for place, token in enumerate(tokens):
        if token in ends:
            return tuple(tokens[: place + 1])
    return tuple(tokens)
