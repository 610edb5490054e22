"""Questions with the answers that are forced behind them, and what greedy decoding gives in their place.

The answer that greedy decoding gives is the forced one if each of its tokens is the likeliest behind those
before it. Where it is another, it is decoded from the first token that differs on, and scored as
`validate.score` says; as `exact` scores, only as far as it may still become a right one.

Letters: A answer tokens, S tokens of a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from compressor.decoder import Decoder
from compressor.decoder.one_prompt import greedy_tokens
from compressor.families import LoadedModel
from compressor.generation.settings import PLAIN
from compressor.samples.prompts import (
    EncodedPrompt,
    PromptRows,
    Reader,
    answer_ids,
    embed_seen,
    encode,
    see_pictures,
)
from compressor.samples.questions import Sample
from compressor.samples.scores import Score
from compressor.search.asking.kept_rows import KeptRows


@dataclass(frozen=True)
class ForcedQuestion:
    """A question with the answer that is forced.

    Attributes:
        sample: the question.
        prompt: followed by all tokens of the answer but the last.
        answer: [A] its tokens.
        text: T of the prompt without the answer.
        taught: [A, vocab] the original's logits at the answer's tokens.
        before: score of the original's own answer, 0 to 1.
    """

    sample: Sample
    prompt: EncodedPrompt
    answer: Tensor
    text: int
    taught: Tensor
    before: float

    @property
    def own(self) -> bool:
        """Whether the answer is the original's own, as no right one is known."""
        return not self.sample.answers

    @property
    def kind(self) -> str:
        """Of the question."""
        return self.sample.kind

    def answered(self, given: Sequence[int]) -> EncodedPrompt:
        """Return the prompt with other tokens behind it than the forced answer's."""
        ids = self.prompt.input_ids
        asked = ids[:, : ids.shape[1] - len(self.answer) + 1]
        return self.prompt.with_ids(
            torch.cat([asked, torch.tensor([list(given)], dtype=ids.dtype)], dim=1)
        )


class Asking:
    """Asks a model, and plans of it, and scores their answers.

    Args:
        model: the original.
        decoder: of it, with the logits of all text rows.
        score: of answers.
        tokens: longest answer.
        folder: that visual rows are kept in which do not fit into memory; None: the system's own.
    """

    def __init__(
        self,
        model: LoadedModel,
        decoder: Decoder,
        score: Score,
        tokens: int,
        folder: Path | None = None,
    ) -> None:
        self.model, self.decoder, self.score, self.tokens = model, decoder, score, tokens
        self._seen = KeptRows(folder)

    @torch.inference_mode()
    def rows(
        self, sample: Sample, prompt: EncodedPrompt, reader: Reader | None = None, front: str = ""
    ) -> PromptRows:
        """Return what the decoder takes of a prompt. The vision side sees a sample's pictures once.

        Args:
            sample: whose pictures they are.
            prompt: with any tokens.
            reader: with another vision side than the model's; None: the model.
            front: tells that vision side from others.
        """
        by = reader or self.model
        seen = self._seen.of((front, sample.images), lambda: see_pictures(by, prompt))
        return embed_seen(by, prompt, seen)

    @torch.inference_mode()
    def asked(self, sample: Sample) -> ForcedQuestion:
        """Return a question with the first of its right answers that the original gives, or the first.

        Where none is known, with the original's own.
        """
        model = self.model
        prompt = encode(model.processor, sample, model.facts)
        rows = self.rows(sample, prompt)
        text = rows.text_embeds.shape[1]
        ends = model.facts.eos_token_ids
        if not sample.answers:
            given = greedy_tokens(
                self.decoder, model.embedding, rows, prompt.input_ids, PLAIN, ends
            )
            own = torch.tensor(list(islice(given, self.tokens)))
            return self._taught(sample, prompt, own, text)
        first = None
        for answer in dict.fromkeys(sample.answers):
            one = replace(sample, answer=answer, others=())
            ids = torch.tensor(answer_ids(model.processor, one, ends))
            forced = self._taught(sample, prompt, ids, text)
            first = first or forced
            if known_of(forced.taught, forced.answer) == ids.tolist():
                return forced
        if first is None:
            raise ValueError(f"{sample.place}: no answer")
        return first

    def _taught(
        self, sample: Sample, prompt: EncodedPrompt, answer: Tensor, text: int
    ) -> ForcedQuestion:
        forced = prompt.with_ids(torch.cat([prompt.input_ids[0], answer[:-1]])[None])
        *call, positions, deepstack = self.rows(sample, forced).call
        logits, _ = self.decoder(*call, self.decoder.empty_past(1), positions, deepstack)
        taught, answer = logits[0, -len(answer) :].clone(), answer.to(logits.device)
        found = ForcedQuestion(sample, forced, answer, text, taught, before=0.0)
        return replace(found, before=self.scored(found, known_of(taught, answer), self.decoder))

    def scored(
        self,
        question: ForcedQuestion,
        known: Sequence[int],
        decoder: Decoder,
        reader: Reader | None = None,
        front: str = "",
    ) -> float:
        """Return the score of the answer that greedy decoding gives, 0 to 1.

        Args:
            question: that is answered.
            known: first tokens of that answer, see `known_of`.
            decoder: of the plan that answers.
            reader: of it; as of `rows`.
            front: likewise.

        Raises:
            DataError: a score of the user's own fails.
        """
        sample, given = question.sample, [*known]
        same = given == question.answer.tolist()
        if question.own:
            return float(same)
        if not same:
            given = self._gone_on(question, given, decoder, reader, front)
        return self.score.of(self._text(given[: self.tokens]), sample) or 0.0

    def _gone_on(
        self,
        question: ForcedQuestion,
        given: Sequence[int],
        decoder: Decoder,
        reader: Reader | None,
        front: str,
    ) -> list[int]:
        """Return an answer that begins with tokens, as far as the score asks for it."""
        sample, ends, found = question.sample, self.model.facts.eos_token_ids, [*given]

        def over() -> bool:
            long = len(found) >= self.tokens or found[-1] in ends
            return long or not self.score.may(self._text(found), sample)

        if over():
            return found
        # The last of them is asked for again: no prompt may have it if it is the image token. Where the end
        # of the prompt decides on visual rows, nothing may stand behind it.
        found = [] if decoder.plan.keeps() else found[:-1]
        prompt = question.answered(found)
        rows = self.rows(sample, prompt, reader, front)
        table = self.model.embedding
        for token in greedy_tokens(decoder, table, rows, prompt.input_ids, PLAIN, ends):
            found.append(token)
            if over():
                break
        return found

    def _text(self, tokens: Sequence[int]) -> str:
        text: str = self.model.processor.decode(tokens, skip_special_tokens=True)
        return text


def known_of(logits: Tensor, answer: Tensor) -> list[int]:
    """Return the first tokens that greedy decoding gives, by logits [A, vocab] behind a forced answer [A].

    They are those of the answer up to the first that is not the likeliest, and the likeliest in its place.
    """
    likeliest = logits.argmax(dim=-1)
    same = int((likeliest == answer).int().cumprod(dim=-1).sum())
    return [int(token) for token in likeliest[: same + 1]]
