"""Runs a search on a model: asks the original, measures single changes, and then plans as wholes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from pathlib import Path

from compressor.contract.asked import method_words
from compressor.contract.method import Evidence
from compressor.contract.searched import SearchedMethod
from compressor.errors import DataError, PlanError
from compressor.families import LoadedModel
from compressor.plan.plan import Plan
from compressor.progress import SILENT, Progress
from compressor.samples.questions import Sample, data_digest
from compressor.samples.scores import EXACT, Score
from compressor.search.additive import Additive, SingleLosses
from compressor.search.candidates import Choice, PlanSpace, candidates_of
from compressor.search.costs import COSTS, CostModel
from compressor.search.findings import Half, SearchFindings, SearchTask
from compressor.search.halves import check_floor, measured_alone, split
from compressor.search.measuring import Batch, Measuring, exit_key, keeps_key, mode_key
from compressor.search.results import HalfFigures, SearchReport
from compressor.search.search import Search
from compressor.search.told import told

SHARE_OF_SINGLES = 0.4
"""Of a budget, that single changes may take before plans are measured."""


@dataclass(frozen=True)
class SearchTerms:
    """What a search is for, beside the model.

    Attributes:
        searched: the recipe's entry.
        where: its place in the recipe; begins every problem.
        evidence: what calibration measured for the candidates.
        samples: questions, each with a picture.
        data: name of their file.
        seed: of their split.
        tokens: longest answer that is decoded.
        score: of answers, where right ones are known.
        profile: digest of the calibration; empty: there was none.
        costs: predicts what plans cost; None: FLOPs or bytes, by the target.
        budget: seconds for all; None: as long as it takes.
        trained: see `candidates_of`.
    """

    searched: SearchedMethod
    where: str
    evidence: Evidence
    samples: tuple[Sample, ...]
    data: str
    seed: int
    tokens: int
    score: Score = EXACT
    profile: str = ""
    costs: CostModel | None = None
    budget: float | None = None
    trained: bool = False


def find(
    model: LoadedModel, terms: SearchTerms, path: Path | None, progress: Progress = SILENT
) -> tuple[SearchReport, Mapping[str, Plan]]:
    """Search for the fastest plan that keeps what is asked.

    Args:
        model: the original.
        terms: of the search.
        path: file that findings are kept in, and gone on with; None: nowhere.
        progress: shows what is done.

    Returns:
        The report, and the plans by the names of its points.

    Raises:
        DataError: the questions cannot be searched with.
        PlanError: the entry names what is not there, nothing keeps what is asked for, or there is no time.
    """
    searched, samples = terms.searched, terms.samples
    check_floor(searched, terms.where, samples)
    halves = split(samples, terms.seed)
    places: dict[Half, tuple[int, ...]] = {"choose": halves[0], "judge": halves[1]}
    task = SearchTask(
        model_digest=model.digest,
        data_digest=data_digest(samples),
        seed=terms.seed,
        allowed=f"use {searched.use}, never {searched.never}",
        trained=terms.trained,
        tokens=terms.tokens,
        score=terms.score.name,
    )
    findings = SearchFindings(path, task)
    if findings.goes_on:
        progress.say("going on with a search that was stopped")
    measuring = Measuring(
        model,
        samples,
        terms.tokens,
        terms.budget,
        progress,
        score=terms.score,
        folder=None if path is None else path.parent,
    )
    before = {half: measuring.original(places[half]) for half in places}
    for half, kept in before.items():
        if searched.keep is not None and not kept.original:
            raise DataError(
                [
                    f"{terms.where}.keep: the original answers none of the {kept.questions} questions to "
                    f"{half} on right, so that nothing can be kept; give questions that it can answer, or "
                    "speedup or max_kl in its place"
                ]
            )
    candidates = candidates_of(
        model.facts,
        model.digest,
        measuring.workload,
        searched,
        terms.evidence,
        trained=terms.trained,
    )
    costs = terms.costs or COSTS[searched.target]
    asked = measured_alone(places["choose"])
    losses, count, cut = _singles(measuring, candidates, asked, findings, terms.budget, progress)
    additive = Additive(candidates, costs, losses)

    def wholes(choice: Choice, half: Half) -> HalfFigures:
        return measuring.figures(candidates, choice, places[half])

    search = Search(additive, wholes, searched, terms.where, findings, terms.budget, progress)
    outcome = search.run()
    said = told(additive, outcome)
    signed = {
        name: plan.signed([method_words(searched)], terms.profile)
        for name, plan in said.plans.items()
    }
    report = SearchReport(
        model=model.facts.name,
        model_digest=model.digest,
        data=terms.data,
        data_digest=task.data_digest,
        questions=len(samples),
        own_answers=sum(question.own for question in measuring.questions),
        score=terms.score.name,
        seed=terms.seed,
        asked=searched.asked_words,
        target=searched.target,
        unit=costs.unit,
        visual=next(iter(signed.values())).image_tokens,
        text=measuring.workload.text,
        original_chosen_on=before["choose"],
        original_judged_on=before["judge"],
        singles=said.singles,
        singles_questions=count,
        points=said.points,
        chosen=said.chosen,
        why=outcome.why,
        not_tried=(*candidates.left_out, *cut, *outcome.not_tried),
        seconds=findings.seconds,
        budget=terms.budget,
    )
    return report, signed


def _singles(
    measuring: Measuring,
    candidates: PlanSpace,
    places: Sequence[int],
    findings: SearchFindings,
    budget: float | None,
    progress: Progress,
) -> tuple[SingleLosses, int, tuple[str, ...]]:
    """Return the losses of single changes, on how many questions they were measured, and what was not.

    Raises:
        PlanError: there is no time for one batch of questions.
    """
    batches = measuring.batches_of_singles(places)
    each = len(candidates.modes) * len(candidates.open()) + len(candidates.exits)
    each += len(candidates.kept_at_layers)
    done: list[Batch] = []
    for number, batch in enumerate(batches):
        key = f"{batch.places[0]}+{len(batch.places)}"
        late = budget is not None and findings.seconds > SHARE_OF_SINGLES * budget
        if key not in findings.singles:
            if late and done:
                break
            label = f"single changes, batch {number + 1} of {len(batches)}"
            sums = {}
            for name, value in progress.track(measuring.singles(candidates, batch), label, each):
                sums[name] = value
                if budget is not None and findings.seconds > 2 * SHARE_OF_SINGLES * budget:
                    raise PlanError(
                        [
                            f"budget: {budget:.0f} s are too few to measure every single change once; give "
                            "more, fewer questions, or fewer methods to use"
                        ]
                    )
            findings.keep_singles(key, sums)
        done.append(batch)
    count = sum(len(batch.places) for batch in done)
    found = [findings.singles[f"{b.places[0]}+{len(b.places)}"] for b in done]
    fronts = _fronts(measuring, candidates, [p for b in done for p in b.places], findings)
    at_layers = candidates.kept_at_layers

    def mean(name: str) -> float:
        return fsum(sums[name] for sums in found) / count

    open_layers = candidates.open()
    losses = SingleLosses(
        modes=tuple(
            (0.0, *(mean(mode_key(i, m)) for m in range(1, len(candidates.modes) + 1)))
            if i in open_layers
            else (0.0,)
            for i in range(candidates.layers)
        ),
        exits={leaves: mean(exit_key(leaves)) for leaves in candidates.exits},
        keeps=(
            0.0,
            *(
                mean(keeps_key(number)) if number in at_layers else fronts[str(number)]
                for number in range(1, len(candidates.keeps) + 1)
            ),
        ),
    )
    cut: tuple[str, ...] = ()
    if count < len(places):
        cut = (
            f"single changes were measured on {count} questions of {len(places)}: there was no time for more",
        )
    return losses, count, cut


def _fronts(
    measuring: Measuring, candidates: PlanSpace, places: Sequence[int], findings: SearchFindings
) -> Mapping[str, float]:
    """Return the losses of choices in front of the decoder, by their numbers."""
    key = f"fronts on {len(places)}"
    known = findings.singles.get(key, {})
    found = {
        str(number): known[str(number)]
        if str(number) in known
        else measuring.mean_loss(candidates, candidates.nothing._replace(keeps=number), places)
        for number in range(1, len(candidates.keeps) + 1)
        if number not in candidates.kept_at_layers
    }
    findings.keep_singles(key, found)
    return found
