"""Do losses of single changes add up? Plans drawn at random, each measured as a whole beside their sum.

    python -m benchmarks.additivity --front FOLDER --questions FILE.jsonl --output DIR [--plans 50] [--seed 0]

FOLDER is what a search of the bundled model wrote (`vtcompress search`, or `benchmarks.methods_table`), FILE
the questions that it was given: single losses are its own. As many plans are drawn for each of ten ranges of
predicted speed, from 1.1 to 6 times less work: some kinds of changes, a share of the layers, and one in four
with an exit and with fewer tokens in front. Each is measured as a whole on the questions that the search
measured single changes on. Writes `sums.svg`, as a search draws it, with the search's own plans beside the
drawn ones, and `sums.json`, a line a drawn plan.
"""

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from math import log
from pathlib import Path

import torch

from benchmarks.front import search_recipe
from benchmarks.sweep import EXAMPLE
from compressor.contract.method import Evidence
from compressor.disk.files import write_text
from compressor.families import load
from compressor.profile import Profile
from compressor.progress import SILENT, Progress
from compressor.search.additive import Additive, SingleLosses
from compressor.search.candidates import Change, Choice, PlanSpace, candidates_of
from compressor.search.costs import COSTS
from compressor.search.halves import measured_alone, split
from compressor.search.measuring import Measuring
from compressor.search.results import FRONT_FILE, SearchReport
from compressor.search.told import told
from compressor.search.tried import SearchOutcome, Tried
from export.artifact.artifact import PROFILE_FILE
from export.report.search.page import additivity_chart, additivity_words
from export.report.text.svg import standalone
from vtcompress.console import shown
from vtcompress.stages.inputs import calibration_samples
from vtcompress.stages.searching.finding import SearchRun

SLOWEST, FASTEST, RANGES = 1.1, 6.0, 10
"""Predicted speeds between which plans are drawn, and how many ranges as many of them are in."""
DRAWN = "at random"
DRAWS = 200_000
"""Plans that are drawn at most, most of them for ranges that are full."""


@dataclass(frozen=True)
class Drawn:
    """A plan that was drawn.

    Attributes:
        speed: predicted.
        summed: KL of its changes, each alone, in nats.
        whole: KL of the plan, in nats.
    """

    speed: float
    summed: float
    whole: float


def losses_of(report: SearchReport, candidates: PlanSpace) -> SingleLosses:
    """Return the single losses that a search measured, by its candidates."""
    found = {(s.method, s.change, s.layer): s.kl for s in report.singles}

    def kl(change: Change, layer: int | None) -> float:
        return found[change.method, change.words, layer]

    open_layers = candidates.open()
    return SingleLosses(
        modes=tuple(
            (0.0, *(kl(mode, i) for mode in candidates.modes)) if i in open_layers else (0.0,)
            for i in range(candidates.layers)
        ),
        exits={leaves: kl(change, leaves) for leaves, change in candidates.exits.items()},
        keeps=(
            0.0,
            *(kl(c, candidates.kept_at(n) or None) for n, c in enumerate(candidates.keeps, 1)),
        ),
    )


def draws(additive: Additive, count: int, seed: int) -> list[Choice]:
    """Return plans drawn at random, as many in each range of predicted speeds, by rising speed.

    Args:
        additive: predicts speeds.
        count: of plans; ranges that no draw reaches have fewer.
        seed: of the draws.
    """
    rng = random.Random(seed)
    each = -(-count // RANGES)
    ranges: list[dict[Choice, None]] = [{} for _ in range(RANGES)]
    for choice in _choices(additive.candidates, rng):
        place = log(additive.speedup(choice) / SLOWEST) / log(FASTEST / SLOWEST) * RANGES
        if 0 <= place < RANGES and len(ranges[int(place)]) < each:
            ranges[int(place)].setdefault(choice)
            if all(len(found) == each for found in ranges):
                break
    return sorted((c for found in ranges for c in found), key=additive.speedup)[:count]


def _choices(candidates: PlanSpace, rng: random.Random) -> Iterator[Choice]:
    for _ in range(DRAWS):
        choice = candidates.nothing
        if candidates.exits and rng.random() < 1 / 4:
            choice = choice._replace(leaves=rng.choice(list(candidates.exits)))
        numbers = range(1, len(candidates.keeps) + 1)
        fitting = [n for n in numbers if choice.leaves in candidates.exits_with(n)]
        if fitting and rng.random() < 1 / 4:
            choice = choice._replace(keeps=rng.choice(fitting))
        modes = candidates.modes_with(choice.keeps)[1:]
        kinds, share = rng.sample(modes, rng.randint(1, len(modes))), rng.random()
        for layer in candidates.open(choice.leaves):
            if rng.random() < share:
                choice = choice.with_mode(layer, rng.choice(kinds))
        if choice != candidates.nothing:
            yield choice


def measured(
    front: Path, questions: Path, count: int, seed: int, progress: Progress = SILENT
) -> tuple[SearchReport, list[Drawn]]:
    """Return a search's report with drawn plans in the place of single methods', and their losses."""
    report = SearchReport.load(front / FRONT_FILE)
    recipe = search_recipe(questions)
    run = SearchRun.of(recipe)
    model = load(str(EXAMPLE / "model"))
    samples = calibration_samples(recipe)
    places = measured_alone(split(samples, report.seed)[0])
    alone = [samples[place] for place in places]
    measuring = Measuring(model, alone, recipe.validation.max_new_tokens, progress=progress)
    profile = Profile.load(front / PROFILE_FILE)
    evidence = Evidence(run.where, measured=profile.measured(), measures=profile.measures)
    workload = measuring.workload.model_copy(update={"text": report.text})
    candidates = candidates_of(model.facts, model.digest, workload, run.searched, evidence)
    costs = COSTS[run.searched.target]
    additive = Additive(candidates, costs, losses_of(report, candidates))
    tried = [
        Tried(choice, measuring.figures(candidates, choice, range(len(alone))), series=DRAWN)
        for choice in progress.track(draws(additive, count, seed), "plans", count)
    ]
    points = told(additive, SearchOutcome(tried, [], tried[0], "")).points
    found = [
        Drawn(additive.speedup(t.choice), additive.losses.summed(t.choice), t.chosen_on.kl)
        for t in tried
    ]
    return report.model_copy(update={"points": (*report.front, *points)}), found


def by_range(found: list[Drawn]) -> Iterator[str]:
    """Yield a row of a Markdown table for each power of ten that sums lie in."""
    powers = sorted({_power(one.summed) for one in found if one.summed > 0})
    for power in powers:
        alike = [one for one in found if one.summed > 0 and _power(one.summed) == power]
        ratios = sorted(one.whole / one.summed for one in alike)
        least, middle, most = ratios[0], ratios[len(ratios) // 2], ratios[-1]
        sums = f"{10.0**power:g} to {10.0 ** (power + 1):g}"
        yield f"| {sums} | {len(ratios)} | {least:.2f} | {middle:.2f} | {most:.2f} |"


def _power(value: float) -> int:
    return int(log(value, 10) // 1)


def main() -> None:
    """Draw, measure, and write the plot and the figures."""
    parser = argparse.ArgumentParser(description="sums of single losses beside losses of plans")
    parser.add_argument("--front", type=Path, required=True)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--plans", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    # Two threads on two busy cores can be several times slower than one.
    torch.set_num_threads(1)
    report, found = measured(
        options.front, options.questions, options.plans, options.seed, shown(True)
    )
    options.output.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(vars(one)) for one in found]
    write_text(options.output / "sums.json", "\n".join(lines) + "\n")
    chart = additivity_chart(report)
    if chart is not None:
        write_text(options.output / "sums.svg", standalone(chart))
    print("| sum of its changes alone, nats | plans | least ratio | middle | largest |")
    print("|---|---|---|---|---|", *by_range(found), sep="\n")
    for points in (report.front, report.baselines):
        print(additivity_words(report.model_copy(update={"points": points})))


if __name__ == "__main__":
    main()
