"""Measures plans on questions: next-token distributions and answers behind forced right answers.

Rule: a prompt runs with its answer forced behind it. KL(original || plan) is the mean over the answer's
tokens. The answer that greedy decoding gives is the forced one if each of its tokens is the likeliest behind
those before it, so one pass tells both. Where no right answer is known, the original's own is forced.

Of single changes only what lies behind them runs again: states of the original in front of every layer are
made once for a batch, and a change of layer i starts from those at its input.

Letters: B questions of a batch, A answer tokens, V visual rows, T text rows, L layers, D hidden.

Limitations:
- Prompts with their pictures, and the original's logits at answers, stay in memory; so do the decoders of
  all modes, of which narrower parts are copies.
- An answer that is right in other tokens than those forced counts as wrong, for both models.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import median_low
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from compressor.chosen_rows import vision_of
from compressor.decoder import Decoder, decoder_from
from compressor.decoder.full_pass import kl_divergence
from compressor.decoder.model import added_by
from compressor.decoder.one_prompt import greedy_tokens
from compressor.errors import DataError, PlanError
from compressor.families import LoadedModel
from compressor.generation.settings import PLAIN
from compressor.methods import layer_scores, run_rules
from compressor.plan.edits import identity_plan
from compressor.plan.plan import Plan, Workload
from compressor.progress import SILENT, Progress
from compressor.samples.prompts import (
    EncodedPrompt,
    PromptRows,
    embed,
    encode,
    encode_answered,
    layout,
)
from compressor.samples.questions import Sample
from compressor.search.candidates import Choice, PlanSpace
from compressor.search.results import HalfFigures, KeptAnswers

if TYPE_CHECKING:
    from compressor.decoder.layer import DecoderLayer

MOST_ROWS = 4096
"""Rows of a batch that runs as a whole."""
MOST_ROWS_OF_SINGLES = 1024
"""Rows of a batch whose single changes are measured: findings are kept behind each."""


@dataclass(frozen=True)
class ForcedQuestion:
    """A question with the answer that is forced.

    Attributes:
        prompt: followed by all tokens of the answer but the last.
        answer: [A] its tokens.
        kind: of the question.
        own: whether the answer is the original's own.
        text: T of the prompt without the answer.
        taught: [A, vocab] the original's logits at the answer's tokens.
        right: whether the original gives the answer.
    """

    prompt: EncodedPrompt
    answer: Tensor
    kind: str
    own: bool
    text: int
    taught: Tensor
    right: bool


@dataclass(frozen=True)
class Batch:
    """Questions of equal shapes.

    Attributes:
        places: of its questions.
        rows: of them together, B of each.
        answers: [B, A].
        taught: [B, A, vocab].
    """

    places: tuple[int, ...]
    rows: PromptRows
    answers: Tensor
    taught: Tensor

    def losses(self, logits: Tensor) -> Tensor:
        """Return KL(original || plan) [B] of logits [B, A or more, vocab], whose last are the answer's."""
        found = kl_divergence(self.taught, logits[:, -self.answers.shape[1] :])
        return found.mean(dim=-1)

    def right(self, logits: Tensor) -> Tensor:
        """Return which answers [B] greedy decoding gives; as `losses`."""
        likeliest = logits[:, -self.answers.shape[1] :].argmax(dim=-1)
        return (likeliest == self.answers).all(dim=-1)


class Measuring:
    """Runs plans of a model on questions.

    Args:
        model: the original.
        samples: the questions, each with a picture.
        tokens: longest answer of the original's own.
        budget: seconds for a whole search; None: as long as it takes.
        progress: shows the questions.

    Raises:
        DataError: a picture cannot be read, a prompt does not fit the model, or nothing is answered.
        PlanError: one pass over the questions takes longer than a search may.
    """

    def __init__(
        self,
        model: LoadedModel,
        samples: Sequence[Sample],
        tokens: int,
        budget: float | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.model = model
        plan = identity_plan(model.facts, model.digest)
        self.decoder = decoder_from(plan, model.tensors, logits="all")
        self.questions: list[ForcedQuestion] = []
        for sample in progress.track(samples, "asking the original", len(samples)):
            began = time.monotonic()
            self.questions.append(self._asked(sample, tokens))
            if len(self.questions) == 2:  # the first one is slower than all others
                _check_budget(budget, time.monotonic() - began, len(samples))
        if not any(len(question.answer) > 1 for question in self.questions):
            raise DataError(
                [
                    "no question has an answer, and the original gives none of its own: there is nothing to "
                    "keep; give questions with answers"
                ]
            )
        self._modes: list[Decoder] = []
        self._whole: dict[tuple[int, ...], list[Batch]] = {}

    @property
    def workload(self) -> Workload:
        """The typical prompt."""
        return Workload(text=median_low(question.text for question in self.questions))

    def batches_of_singles(self, places: Sequence[int]) -> list[Batch]:
        """Return questions in the batches that single changes are measured on."""
        return list(self._batches(self.model, places, MOST_ROWS_OF_SINGLES))

    @torch.inference_mode()
    def singles(self, candidates: PlanSpace, batch: Batch) -> Iterator[tuple[str, float]]:
        """Yield the sum of KL over a batch's questions of every change of a layer, and every exit.

        Args:
            candidates: whose modes and exits are measured; they are the same at every call.
            batch: of questions.
        """
        if not self._modes:
            whole = (candidates.everywhere(m) for m in range(1, len(candidates.modes) + 1))
            self._modes = [self._decoder(candidates.plan(choice)) for choice in whole]
        rows, decoder = batch.rows, self.decoder
        size, count = rows.text_embeds.shape[:2]
        places = decoder.rotary.places(
            rows.visual_index, rows.text_index, rows.text_embeds.dtype, rows.positions
        )
        call, past = places.call(count), decoder.empty_past(size)
        added = added_by(rows.deepstack, decoder.deepstack, rows.visual_embeds)
        states = [(rows.visual_embeds, rows.text_embeds)]

        def behind(index: int, visual: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
            visual, text, _ = decoder.layers[index](visual, text, call, past[index])
            return (visual + added[index] if index in added else visual), text

        for index in range(len(decoder.layers)):
            states.append(behind(index, *states[index]))
        for number, changed in enumerate(self._modes, start=1):
            pasts = changed.empty_past(size)
            for index in candidates.open():
                own = [p for p, c in zip(pasts, changed.caches, strict=True) if c.layer == index]
                visual, text, *_ = changed.layers[index](*states[index], call, *own)
                visual = visual + added[index] if index in added else visual
                for later in range(index + 1, len(decoder.layers)):
                    visual, text = behind(later, visual, text)
                yield mode_key(index, number), self._sum(batch, text)
        alone = places.last(count).call(count).alone
        for leaves in candidates.exits:
            text = states[leaves][1]
            for later in range(leaves, len(decoder.layers)):
                layer = cast("DecoderLayer", decoder.layers[later])
                text, _ = layer.text_only(text, alone, past[later])
            yield exit_key(leaves), self._sum(batch, text)

    def _sum(self, batch: Batch, text: Tensor) -> float:
        answers = text[:, -batch.answers.shape[1] :]
        return batch.losses(self.decoder.next_token_logits(answers)).sum().item()

    def mean_loss(self, candidates: PlanSpace, choice: Choice, places: Sequence[int]) -> float:
        """Return the mean KL of a plan over some questions."""
        found = self._ran(candidates.plan(choice), places)
        return sum(loss for _, loss, _ in found) / len(found)

    def figures(self, candidates: PlanSpace, choice: Choice, places: Sequence[int]) -> HalfFigures:
        """Return what a plan does to the answers of some questions."""
        found = self._ran(candidates.plan(choice), places)
        right = {place: right for place, _, right in found}
        kinds = dict.fromkeys(self.questions[place].kind for place in places)
        return HalfFigures(
            kl=sum(loss for _, loss, _ in found) / len(found),
            overall=self.kept("all", right),
            kinds=tuple(
                self.kept(kind, {p: r for p, r in right.items() if self.questions[p].kind == kind})
                for kind in sorted(kinds)
            ),
        )

    def kept(self, kind: str, right: Mapping[int, bool]) -> KeptAnswers:
        """Return the counts of questions that a plan answers right or not, by place."""
        before = {place: self.questions[place].right for place in right}
        return KeptAnswers(
            kind=kind,
            questions=len(right),
            original=sum(before.values()),
            kept=sum(before[place] and right[place] for place in right),
            won=sum(right[place] and not before[place] for place in right),
        )

    def original(self, places: Sequence[int]) -> KeptAnswers:
        """Return the original's own answers to some questions."""
        return self.kept("all", {place: self.questions[place].right for place in places})

    @torch.inference_mode()
    def _ran(self, plan: Plan, places: Sequence[int]) -> list[tuple[int, float, bool]]:
        """Return place, KL and whether the answer is right, of each question."""
        decoder = self._decoder(plan)
        found = []
        for batch in self._in_batches(plan, tuple(places)):
            *call, positions, deepstack = batch.rows.call
            past = decoder.empty_past(len(batch.places))
            logits, _ = decoder(*call, past, positions, deepstack)
            values = zip(
                batch.places,
                batch.losses(logits).tolist(),
                batch.right(logits).tolist(),
                strict=True,
            )
            found += list(values)
        return sorted(found)

    def _decoder(self, plan: Plan) -> Decoder:
        return decoder_from(
            plan,
            self.model.tensors,
            logits="all",
            scores=layer_scores(plan),
            runs=run_rules(plan),
        )

    def _in_batches(self, plan: Plan, places: tuple[int, ...]) -> list[Batch]:
        if plan.front is not None:
            reader = replace(
                self.model, vision=vision_of(plan, self.model.vision), facts=plan.model
            )
            return list(self._batches(reader, places, MOST_ROWS))
        # All rows enter in most plans: they are made once.
        if places not in self._whole:
            self._whole[places] = list(self._batches(self.model, places, MOST_ROWS))
        return self._whole[places]

    def _batches(self, reader: LoadedModel, places: Sequence[int], most: int) -> Iterator[Batch]:
        groups: defaultdict[tuple[object, ...], list[tuple[int, PromptRows]]] = defaultdict(list)
        for place in places:
            question = self.questions[place]
            rows = embed(reader, question.prompt)
            shape = (
                rows.visual_embeds.shape,
                rows.text_embeds.shape,
                question.answer.shape,
                rows.positions is None,
            )
            groups[shape].append((place, rows))
        for group in groups.values():
            _, first = group[0]
            size = max(1, most // (first.visual_embeds.shape[1] + first.text_embeds.shape[1]))
            for start in range(0, len(group), size):
                yield self._batch(group[start : start + size])

    def _batch(self, group: Sequence[tuple[int, PromptRows]]) -> Batch:
        places, rows = tuple(place for place, _ in group), [own for _, own in group]
        first = rows[0]
        together = replace(
            first,
            visual_embeds=torch.cat([own.visual_embeds for own in rows]),
            text_embeds=torch.cat([own.text_embeds for own in rows]),
            visual_index=torch.cat([own.visual_index for own in rows]),
            text_index=torch.cat([own.text_index for own in rows]),
            positions=None
            if first.positions is None
            else torch.cat([p for own in rows if (p := own.positions) is not None]),
            deepstack=tuple(map(torch.cat, zip(*(own.deepstack for own in rows), strict=True))),
        )
        questions = [self.questions[place] for place in places]
        return Batch(
            places,
            together,
            torch.stack([question.answer for question in questions]),
            torch.stack([question.taught for question in questions]),
        )

    @torch.inference_mode()
    def _asked(self, sample: Sample, tokens: int) -> ForcedQuestion:
        """Return a question with the first of its right answers that the original gives, or the first."""
        if not sample.answers:
            return self._with_own(sample, tokens)
        prompt = encode(self.model.processor, sample, self.model.facts)
        text = len(layout(self.model, prompt).text_ids)
        found = None
        for answer in sample.answers:
            one = replace(sample, answer=answer, others=())
            forced = encode_answered(self.model.processor, one, self.model.facts)
            asked = self._taught(*forced, sample.kind, text, own=False)
            if asked.right:
                return asked
            found = found or asked
        return cast("ForcedQuestion", found)

    def _with_own(self, sample: Sample, tokens: int) -> ForcedQuestion:
        model = self.model
        prompt = encode(model.processor, sample, model.facts)
        rows = embed(model, prompt)
        ends = model.facts.eos_token_ids
        given = greedy_tokens(self.decoder, model.embedding, rows, prompt.input_ids, PLAIN, ends)
        answer = torch.tensor(list(islice(given, tokens)))
        ids = torch.cat([prompt.input_ids[0], answer[:-1]])[None]
        text = rows.text_embeds.shape[1]
        return self._taught(prompt.with_ids(ids), answer, sample.kind, text, own=True)

    def _taught(
        self, prompt: EncodedPrompt, answer: Tensor, kind: str, text: int, *, own: bool
    ) -> ForcedQuestion:
        *call, positions, deepstack = embed(self.model, prompt).call
        logits, _ = self.decoder(*call, self.decoder.empty_past(1), positions, deepstack)
        taught, answer = logits[0, -len(answer) :].clone(), answer.to(logits.device)
        right = bool((taught.argmax(dim=-1) == answer).all())
        return ForcedQuestion(prompt, answer, kind, own, text, taught, right)


def _check_budget(budget: float | None, seconds: float, questions: int) -> None:
    """Refuse a budget that ends before all questions have run once."""
    if budget is not None and seconds * questions > budget:
        raise PlanError(
            [
                f"budget: {budget:g} s are too few: one pass over the {questions} questions takes about "
                f"{seconds * questions:.2g} s here; give many times that, or fewer questions"
            ]
        )


def mode_key(layer: int, mode: int) -> str:
    """Return what findings call a mode of a layer."""
    return f"{layer}:{mode}"


def exit_key(leaves: int) -> str:
    """Return what findings call an exit."""
    return f"exit:{leaves}"
