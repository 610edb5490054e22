"""Measures plans on questions: next-token distributions and answers behind forced right answers.

Rule: a prompt runs with its answer forced behind it. KL(original || plan) is the mean over the answer's
tokens. One pass also tells whether greedy decoding gives that answer; where it gives another one, that is
decoded and scored, see `compressor.search.asking.forced`. Where no right answer is known, the original's own
is forced, and no other is right. Where a plan chooses visual rows by the end of the prompt, the answer is
forced in a second call, as the choice must not see it.

Of single changes only what lies behind them runs again: states of the original in front of every layer are
made once for a batch, and a change of layer i starts from those at its input.

Letters: B questions of a batch, A answer tokens, V visual rows, T text rows, L layers, D hidden.

Limitations:
- Pixels, and the original's logits at answers, stay in memory; so do the decoders of all modes, of which
  narrower parts are copies. Visual rows do as far as `compressor.search.asking.kept_rows` allows.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum
from pathlib import Path
from statistics import median_low
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from compressor.chosen_rows import vision_of
from compressor.decoder import Decoder, decoder_from
from compressor.decoder.full_pass import kl_divergence
from compressor.decoder.model import added_by
from compressor.errors import DataError, PlanError
from compressor.families import LoadedModel
from compressor.methods import layer_scores, run_rules
from compressor.plan.edits import identity_plan
from compressor.plan.plan import Plan, Workload
from compressor.progress import SILENT, Progress
from compressor.samples.prompts import PromptRows
from compressor.samples.questions import Sample
from compressor.samples.scores import EXACT, Score
from compressor.search.asking.forced import Asking, ForcedQuestion, known_of
from compressor.search.candidates import Choice, PlanSpace
from compressor.search.results import HalfFigures, KeptAnswers

if TYPE_CHECKING:
    from compressor.decoder.layer import DecoderLayer

MOST_ROWS = 4096
"""Rows of a batch that runs as a whole."""
MOST_ROWS_OF_SINGLES = 1024
"""Rows of a batch whose single changes are measured: findings are kept behind each."""
MOST_BATCHED_BYTES = 512 << 20
"""Of batches of the original's visual rows that stay together for the next plan."""


_Shape = tuple[tuple[int, ...], bool]
"""Sizes of a question's visual rows, text rows and answer, and whether places turn its rows."""


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

    def known(self, logits: Tensor) -> list[list[int]]:
        """Return of each of B answers the first tokens that greedy decoding gives; as `losses`."""
        answers = zip(logits[:, -self.answers.shape[1] :], self.answers, strict=True)
        return [known_of(made, answer) for made, answer in answers]


class Measuring:
    """Runs plans of a model on questions.

    Args:
        model: the original.
        samples: the questions, each with a picture.
        tokens: longest answer that is decoded.
        budget: seconds for a whole search; None: as long as it takes.
        progress: shows the questions.
        score: of answers, where right ones are known.
        folder: that visual rows are kept in which do not fit into memory; None: the system's own.

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
        *,
        score: Score = EXACT,
        folder: Path | None = None,
    ) -> None:
        self.model = model
        plan = identity_plan(model.facts, model.digest)
        self.decoder = decoder_from(plan, model.tensors, logits="all")
        self.asking = Asking(model, self.decoder, score, tokens, folder)
        self.questions: list[ForcedQuestion] = []
        for sample in progress.track(samples, "asking the original", len(samples)):
            began = time.monotonic()
            self.questions.append(self.asking.asked(sample))
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
        self._room = MOST_BATCHED_BYTES
        self._shapes: dict[tuple[str, int], _Shape] = {}

    @property
    def workload(self) -> Workload:
        """The typical prompt."""
        return Workload(text=median_low(question.text for question in self.questions))

    def batches_of_singles(self, places: Sequence[int]) -> list[Batch]:
        """Return questions in the batches that single changes are measured on."""
        return list(self._batches(places, MOST_ROWS_OF_SINGLES))

    @torch.inference_mode()
    def singles(self, candidates: PlanSpace, batch: Batch) -> Iterator[tuple[str, float]]:
        """Yield the sum of KL over a batch's questions of every change of a layer, exit and choice at one.

        Args:
            candidates: whose changes are measured; they are the same at every call.
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
            begun = changed.begin(
                rows.visual_embeds,
                rows.text_embeds,
                rows.visual_index,
                rows.text_index,
                changed.empty_past(size),
                rows.positions,
                rows.deepstack,
            )
            own_call = begun.places.call(count, kinds=begun.kinds)
            for index in candidates.open():
                caches = zip(begun.pairs, changed.caches, strict=True)
                own = [pair for pair, cache in caches if cache.layer == index]
                visual, text, *_ = changed.layers[index](*states[index], own_call, *own)
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
        for number in candidates.kept_at_layers:
            choosing = self._decoder(candidates.plan(candidates.nothing._replace(keeps=number)))
            yield keeps_key(number), batch.losses(forced_logits(choosing, batch)).sum().item()

    def _sum(self, batch: Batch, text: Tensor) -> float:
        answers = text[:, -batch.answers.shape[1] :]
        return batch.losses(self.decoder.next_token_logits(answers)).sum().item()

    def mean_loss(self, candidates: PlanSpace, choice: Choice, places: Sequence[int]) -> float:
        """Return the mean KL of a plan over some questions."""
        found = self._ran(candidates.plan(choice), places, scored=False)
        return sum(loss for _, loss, _ in found) / len(found)

    def figures(self, candidates: PlanSpace, choice: Choice, places: Sequence[int]) -> HalfFigures:
        """Return what a plan does to the answers of some questions."""
        found = self._ran(candidates.plan(choice), places)
        after = {place: score for place, _, score in found}
        kinds = dict.fromkeys(self.questions[place].kind for place in places)
        return HalfFigures(
            kl=sum(loss for _, loss, _ in found) / len(found),
            overall=self.kept("all", after),
            kinds=tuple(
                self.kept(kind, {p: s for p, s in after.items() if self.questions[p].kind == kind})
                for kind in sorted(kinds)
            ),
        )

    def kept(self, kind: str, after: Mapping[int, float]) -> KeptAnswers:
        """Return what a plan keeps of the answers to questions, by the scores of its own, by place."""
        both = [(self.questions[place].before, score) for place, score in after.items()]
        graded = self.asking.score.graded

        def summed(scores: Iterable[float]) -> float:
            return fsum(scores) if graded else round(fsum(scores))

        return KeptAnswers(
            kind=kind,
            questions=len(both),
            original=summed(before for before, _ in both),
            kept=summed(min(before, score) for before, score in both),
            won=summed(max(score - before, 0.0) for before, score in both),
            graded=graded,
        )

    def original(self, places: Sequence[int]) -> KeptAnswers:
        """Return the original's own answers to some questions."""
        return self.kept("all", {place: self.questions[place].before for place in places})

    @torch.inference_mode()
    def _ran(
        self, plan: Plan, places: Sequence[int], *, scored: bool = True
    ) -> list[tuple[int, float, float]]:
        """Return place, KL and score of the answer of each question; 0 where nothing is scored."""
        decoder, reader = self._decoder(plan), self._reader(plan)
        front = _front_key(plan)
        found = []
        for batch in self._in_batches(reader, front, tuple(places)):
            logits = forced_logits(decoder, batch)
            each = zip(
                batch.places, batch.losses(logits).tolist(), batch.known(logits), strict=True
            )
            for place, loss, known in each:
                question, score = self.questions[place], 0.0
                if scored:
                    score = self.asking.scored(question, known, decoder, reader, front)
                found.append((place, loss, score))
        return sorted(found)

    def _reader(self, plan: Plan) -> LoadedModel:
        if plan.front is None:
            return self.model
        return replace(self.model, vision=vision_of(plan, self.model.vision), facts=plan.model)

    def _decoder(self, plan: Plan) -> Decoder:
        return decoder_from(
            plan,
            self.model.tensors,
            logits="all",
            scores=layer_scores(plan),
            runs=run_rules(plan),
        )

    def _in_batches(
        self, reader: LoadedModel, front: str, places: tuple[int, ...]
    ) -> Iterable[Batch]:
        if front:
            return self._batches(places, MOST_ROWS, reader, front)
        # All rows enter in most plans: as far as they fit into memory they are put together once.
        if places not in self._whole:
            found = list(self._batches(places, MOST_ROWS)) if self._fits(places) else []
            self._whole[places] = found
        return self._whole[places] or self._batches(places, MOST_ROWS)

    def _fits(self, places: Sequence[int]) -> bool:
        """Whether the rows of questions fit into memory; they take their room then."""
        one = self.questions[places[0]]
        rows = self.asking.rows(one.sample, one.prompt)
        parts = (rows.visual_embeds, rows.text_embeds, *rows.deepstack)
        size = len(places) * sum(part.nbytes for part in parts)
        fits = size <= self._room
        self._room -= size * fits
        return fits

    def _batches(
        self,
        places: Sequence[int],
        most: int,
        reader: LoadedModel | None = None,
        front: str = "",
    ) -> Iterator[Batch]:
        def rows_at(place: int) -> PromptRows:
            question = self.questions[place]
            return self.asking.rows(question.sample, question.prompt, reader, front)

        groups: defaultdict[_Shape, list[int]] = defaultdict(list)
        for place in places:
            if (front, place) not in self._shapes:
                rows, answer = rows_at(place), self.questions[place].answer
                shape = (*rows.visual_embeds.shape, *rows.text_embeds.shape, *answer.shape)
                self._shapes[front, place] = shape, rows.positions is None
            groups[self._shapes[front, place]].append(place)
        for ((_, visual, _, _, text, *_), _), group in groups.items():
            size = max(1, most // (visual + text))
            for start in range(0, len(group), size):
                own = tuple(group[start : start + size])
                yield self._batch(own, [rows_at(place) for place in own])

    def _batch(self, places: tuple[int, ...], rows: Sequence[PromptRows]) -> Batch:
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


def _check_budget(budget: float | None, seconds: float, questions: int) -> None:
    """Refuse a budget that ends before all questions have run once."""
    if budget is not None and seconds * questions > budget:
        raise PlanError(
            [
                f"budget: {budget:g} s are too few: one pass over the {questions} questions takes about "
                f"{seconds * questions:.2g} s here; give many times that, or fewer questions"
            ]
        )


def _front_key(plan: Plan) -> str:
    """Return what tells the vision side of a plan from others; empty: the model's own."""
    return "" if plan.front is None else plan.front.model_dump_json()


def forced_logits(decoder: Decoder, batch: Batch) -> Tensor:
    """Return what a plan gives, [B, A or more, vocab], the last A behind the tokens of the answers.

    Args:
        decoder: of the plan, with the logits of all text rows.
        batch: with its answers forced.
    """
    behind = batch.answers.shape[1] - 1
    apart = bool(behind and decoder.plan.keeps())
    past, found = decoder.empty_past(len(batch.places)), []
    for rows in batch.rows.parted(behind) if apart else (batch.rows,):
        *call, positions, deepstack = rows.call
        logits, past = decoder(*call, past, positions, deepstack)
        found.append(logits)
    return torch.cat(found, dim=1)


def mode_key(layer: int, mode: int) -> str:
    """Return what findings call a mode of a layer."""
    return f"{layer}:{mode}"


def exit_key(leaves: int) -> str:
    """Return what findings call an exit."""
    return f"exit:{leaves}"


def keeps_key(number: int) -> str:
    """Return what findings call a choice among visual rows at a layer."""
    return f"keeps:{number}"
