"""What a search and an export that searches do alike: check, calibrate, search."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.calibration.resume import Task
from compressor.contract.method import Evidence
from compressor.contract.searched import SearchedMethod
from compressor.errors import DataError, RecipeError
from compressor.facts import ModelFacts
from compressor.methods import METHODS
from compressor.plan.plan import Plan
from compressor.profile import Profile
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.samples.questions import Sample, sample_digest
from compressor.search.candidates import candidate_problems, measures_for, offering
from compressor.search.costs import CostModel, TimeCost
from compressor.search.halves import check_floor, measured_alone, split
from compressor.search.results import SearchReport
from vtcompress.stages.calibrate import drop_foreign
from vtcompress.stages.inputs import calibration_samples, note_in_vain, validation_samples
from vtcompress.stages.plan import open_costs

if TYPE_CHECKING:
    from compressor.families import LoadedModel

PROFILE, FINDINGS = "profile.json", "search.json"
"""Of the folder in which a search keeps what it has measured: its calibration, and the rest."""


@dataclass(frozen=True)
class SearchRun:
    """A recipe's search before it runs.

    Attributes:
        recipe: with the entry.
        searched: the entry.
        samples: the questions.
        budget: seconds for all; None: as long as it takes.
        costs: predicts what plans cost; None: FLOPs or bytes, by the target.
    """

    recipe: Recipe
    searched: SearchedMethod
    samples: tuple[Sample, ...]
    budget: float | None = None
    costs: CostModel | None = None

    @property
    def where(self) -> str:
        """The entry's place in the recipe."""
        return f"compress[{self.recipe.methods.index(self.searched)}].{self.searched.name}"

    @classmethod
    def of(cls, recipe: Recipe, budget: float | None = None) -> "SearchRun":
        """Return the search of a recipe; its data is read, and nothing of the model.

        Raises:
            RecipeError: no entry is found by a search, it names no data, or held-out questions are the same.
            PlanError: the entry names methods or kinds that are not there.
            DataError: the data cannot be used.
        """
        searched = recipe.searched
        if searched is None:
            names = " or ".join(m.name for m in METHODS if issubclass(m, SearchedMethod))
            raise RecipeError(
                [f"compress: no entry leaves the plan to a search; give {names} alone"]
            )
        found = cls(recipe, searched, calibration_samples(recipe), budget)
        offering(searched, found.where)
        check_floor(searched, found.where, found.samples)
        split(found.samples, recipe.calibrate.seed)
        _check_held_out(recipe, found.samples)
        return found

    def by_time(self, costs: Path, facts: ModelFacts, progress: Progress) -> "SearchRun":
        """Return the search with predicted times in the place of FLOPs.

        Raises:
            PlanError: the costs are another model's or dtype's.
        """
        if self.searched.target != "prefill":
            why = f"the target is {self.searched.target}"
            note_in_vain("costs", costs, why, progress)
            return self
        return replace(self, costs=TimeCost(open_costs(costs, self.recipe, facts, progress)))

    def check(self, facts: ModelFacts) -> None:
        """Refuse what the facts of the model rule out.

        Raises:
            PlanError: the entry names layers that the model does not have.
        """
        candidate_problems(self.searched, facts, self.where)

    def run(
        self, model: "LoadedModel", folder: Path, progress: Progress
    ) -> tuple[SearchReport, Mapping[str, Plan], Profile | None]:
        """Calibrate what the candidates need, and search.

        Args:
            model: the original.
            folder: in which what is measured is kept; a run that was stopped goes on with it.
            progress: shows what is done.
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
            profile="" if profile is None else profile.digest,
            costs=self.costs,
            budget=None if self.budget is None else max(self.budget - spent, 0.0),
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


def _check_held_out(recipe: Recipe, samples: Sequence[Sample]) -> None:
    """Refuse held-out questions that the search would see.

    Raises:
        DataError: some are the same.
    """
    seen = {sample_digest(sample) for sample in samples}
    same = sum(sample_digest(sample) in seen for sample in validation_samples(recipe))
    if same:
        raise DataError(
            [
                f"validate.data: {same} of its questions are among those that the search chooses plans "
                "by, so that they are not held out; give others"
            ]
        )
