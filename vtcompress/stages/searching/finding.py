"""What a search and an export that searches do alike: check, calibrate, search."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

from compressor.calibration.resume import Task
from compressor.contract.method import Evidence
from compressor.contract.searched import SearchedMethod
from compressor.errors import DataError, PlanError, ProblemsError, RecipeError, VtcompressError
from compressor.facts import ModelFacts
from compressor.methods import METHODS
from compressor.plan.plan import Plan
from compressor.profile import Profile
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.samples.questions import Sample, question_numbers
from compressor.samples.scores import EXACT, Score
from compressor.search.candidates import candidate_problems, measures_for, offering
from compressor.search.costs import CostModel, TimeCost, first_token_problems
from compressor.search.halves import check_floor, measured_alone, split
from compressor.search.results import SearchReport
from vtcompress.stages.calibrate import drop_foreign
from vtcompress.stages.checks.score import checked_score
from vtcompress.stages.inputs import calibration_samples, note_in_vain, validation_samples
from vtcompress.stages.plan import open_costs

if TYPE_CHECKING:
    from compressor.families import LoadedModel

PROFILE, FINDINGS = "profile.json", "search.json"
"""Of the folder in which a search keeps what it has measured: its calibration, and the rest."""

GOES_ON = "the same command, or one with another goal, goes on from there"


@dataclass(frozen=True)
class SearchRun:
    """A recipe's search before it runs.

    Attributes:
        recipe: with the entry.
        searched: the entry.
        samples: the questions.
        budget: seconds for all; None: as long as it takes.
        costs: predicts what plans cost; None: FLOPs or bytes, by the target.
        score: of answers, where right ones are known.
    """

    recipe: Recipe
    searched: SearchedMethod
    samples: tuple[Sample, ...]
    budget: float | None = None
    costs: CostModel | None = None
    score: Score = EXACT

    @property
    def where(self) -> str:
        """The entry's place in the recipe."""
        return f"compress[{self.recipe.methods.index(self.searched)}].{self.searched.name}"

    @classmethod
    def of(cls, recipe: Recipe, budget: float | None = None) -> "SearchRun":
        """Return the search of a recipe; its data is read, and nothing of the model.

        Raises:
            RecipeError: no entry is found by a search, it names no data, there is no such score, or held-out
                questions are the same.
            PlanError: the entry names methods or kinds that are not there.
            DataError: the data cannot be used.
        """
        searched = recipe.searched
        if searched is None:
            names = " or ".join(m.name for m in METHODS if issubclass(m, SearchedMethod))
            raise RecipeError(
                [f"compress: no entry leaves the plan to a search; give {names} alone"]
            )
        samples = calibration_samples(recipe)
        found = cls(recipe, searched, samples, budget, score=checked_score(recipe, samples))
        offering(searched, found.where)
        check_floor(searched, found.where, found.samples)
        split(found.samples, recipe.calibrate.seed)
        _check_held_out(recipe, found.samples)
        return found

    def by_time(self, costs: Path, facts: ModelFacts, progress: Progress) -> "SearchRun":
        """Return the search with predicted times in the place of FLOPs.

        Raises:
            PlanError: the costs are another model's or dtype's, or the target's parts were not timed.
        """
        if self.searched.target == "first_token":
            raise PlanError(
                [
                    f"{self.where}.target: first_token: {costs} holds times of the decoder, none of the "
                    "vision side; leave costs out, or ask for prefill"
                ]
            )
        if self.searched.target != "prefill":
            why = f"the target is {self.searched.target}"
            note_in_vain("costs", costs, why, progress)
            return self
        return replace(self, costs=TimeCost(open_costs(costs, self.recipe, facts, progress)))

    def check(self, facts: ModelFacts) -> None:
        """Refuse what the facts of the model rule out.

        Raises:
            PlanError: the entry names layers that the model does not have, or a target of unknown cost.
        """
        candidate_problems(self.searched, facts, self.where)
        if self.searched.target == "first_token":
            methods = offering(self.searched, self.where)
            first_token_problems(facts, methods, f"{self.where}.target")

    def run(
        self, model: "LoadedModel", folder: Path, progress: Progress
    ) -> tuple[SearchReport, Mapping[str, Plan], Profile | None]:
        """Calibrate what the candidates need, and search.

        Args:
            model: the original.
            folder: in which what is measured is kept; a run that was stopped goes on with it.
            progress: shows what is done.

        Raises:
            VtcompressError: nothing keeps what is asked, or input or environment.
        """
        from compressor.search.engine import SearchTerms, find

        data, began = self.recipe.calibrate.data, time.monotonic()
        profile = self._calibrated(model, folder / PROFILE, progress)
        evidence = Evidence(self.where)
        if profile is not None:
            evidence = Evidence(self.where, measured=profile.measured(), measures=profile.measures)
        spent = time.monotonic() - began
        terms = SearchTerms(
            searched=self.searched,
            where=self.where,
            evidence=evidence,
            samples=self.samples,
            data=data.name if data else "",
            seed=self.recipe.calibrate.seed,
            tokens=self.recipe.validation.max_new_tokens,
            score=self.score,
            profile="" if profile is None else profile.digest,
            costs=self.costs,
            budget=None if self.budget is None else max(self.budget - spent, 0.0),
            trained=bool(self.recipe.heal.trained_in_the_run),
        )
        report, plans = find(model, terms, folder / FINDINGS, progress)
        seconds = {"seconds": report.seconds + spent, "budget": self.budget}
        return report.model_copy(update=seconds), plans, profile

    def _calibrated(self, model: "LoadedModel", path: Path, progress: Progress) -> Profile | None:
        measures = measures_for(offering(self.searched, self.where))
        if not measures:
            return None
        from compressor.calibration.run import calibrate

        data = self.recipe.calibrate.data
        name = data.name if data else ""
        names = tuple(measure.name for measure in measures)
        # Of the half to choose on: no plan is made by what it is judged by.
        choose, _ = split(self.samples, self.recipe.calibrate.seed)
        samples = [self.samples[place] for place in measured_alone(choose)]
        task = Task.of(model.facts, model.digest, samples, name, names)
        if path.is_file():
            drop_foreign(path, task)
        return calibrate(model, task, path, progress=progress)


@contextmanager
def kept_while(folder: Path) -> Iterator[None]:
    """Keep what a search measures in a folder until the block ends well; errors say so.

    Args:
        folder: of the search; where nothing was measured, none is left.
    """
    try:
        yield
    except VtcompressError as error:
        if any(entry.stat().st_size for entry in folder.glob("*.json")):
            _add(error, f"what was measured is kept in {folder}; {GOES_ON}")
        else:
            rmtree(folder, ignore_errors=True)
        raise
    rmtree(folder, ignore_errors=True)


def _add(error: VtcompressError, words: str) -> None:
    """Let an error's last line say something more."""
    lines = error.problems if isinstance(error, ProblemsError) else (str(error),)
    lines = (*lines[:-1], f"{lines[-1]} ({words})")
    if isinstance(error, ProblemsError):
        error.problems = lines
    error.args = ("\n".join(lines),)


def _check_held_out(recipe: Recipe, samples: Sequence[Sample]) -> None:
    """Refuse held-out questions that the search would see.

    Raises:
        DataError: some are the same.
    """
    held = validation_samples(recipe)
    seen = {*question_numbers(samples)} if held else frozenset()
    same = sum(number in seen for number in question_numbers(held))
    if same:
        raise DataError(
            [
                f"validate.data: {same} of its questions are among those that the search chooses plans "
                "by, so that they are not held out; give others"
            ]
        )
