"""A search's outcome as its report: plans with names and reasons."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from compressor.plan.cost import predict, predicted_speedup
from compressor.plan.plan import Plan
from compressor.search.additive import Additive
from compressor.search.candidates import Choice, PlanSpace, label_of
from compressor.search.results import PLANS, FrontPoint, Single
from compressor.search.tried import SearchOutcome, Tried


@dataclass(frozen=True)
class Told:
    """What is said of an outcome.

    Attributes:
        points: of the report.
        plans: by the names of their points.
        chosen: name of the chosen point.
        singles: of the report.
    """

    points: tuple[FrontPoint, ...]
    plans: dict[str, Plan]
    chosen: str
    singles: tuple[Single, ...]


def told(additive: Additive, outcome: SearchOutcome) -> Told:
    """Return an outcome as points and plans."""
    points: list[FrontPoint] = []
    plans: dict[str, Plan] = {}
    chosen = ""
    for tried in (*outcome.front, *outcome.baselines):
        point, plan = _point(additive, tried, plans)
        points.append(point)
        plans[point.name] = plan
        if tried is outcome.chosen:
            chosen = point.name
    return Told(tuple(points), plans, chosen, tuple(_singles(additive)))


def _point(additive: Additive, tried: Tried, others: dict[str, Plan]) -> tuple[FrontPoint, Plan]:
    candidates, choice = additive.candidates, tried.choice
    plan = Plan.model_validate(dict(candidates.plan(choice)))
    name = _free(
        f"{f'{tried.series}-' * bool(tried.series)}{additive.speedup(choice):.2f}x", others
    )
    kv, kv_before = (sum(predict(p).layer_kv_values) for p in (plan, plan.naive()))
    point = FrontPoint(
        name=name,
        label=label_of(candidates, choice),
        series=tried.series,
        plan=f"{PLANS}/{name}.json",
        predicted=additive.speedup(choice),
        predicted_prefill=predicted_speedup(plan),
        kv_bytes=kv / kv_before,
        summed_kl=additive.losses.summed(choice),
        chosen_on=tried.chosen_on,
        judged_on=tried.judged_on,
        swaps=tried.swaps,
        layers=candidates.words(choice),
        reasons=reasons_of(additive, choice),
    )
    return point, plan


def _free(name: str, others: dict[str, Plan]) -> str:
    number = 1
    while (found := name if number == 1 else f"{name}-{number}") in others:
        number += 1
    return found


def reasons_of(additive: Additive, choice: Choice) -> tuple[str, ...]:
    """Return what speaks for what each layer does, one sentence a layer."""
    candidates, losses = additive.candidates, additive.losses
    words = candidates.words(choice)
    last = (choice.leaves or candidates.layers) - 1
    found = []
    for i, mode in enumerate(choice.modes):
        if i > last:
            kl = losses.exits[choice.leaves]
            found.append(
                f"visual tokens left in front of layer {choice.leaves}, which alone changes answers by "
                f"{kl:.3g} nats"
            )
        elif i == last:
            found.append(
                "nobody reads what visual tokens become here, so that freezing them is exact"
            )
        elif i in candidates.whole:
            found.append("kept whole, as the recipe asks")
        elif mode:
            saved = _saved(additive, candidates.nothing.with_mode(i, mode))
            found.append(
                f"{words[i]}: alone it changes answers by {losses.modes[i][mode]:.3g} nats and saves "
                f"{saved:.1%} of the work"
            )
        else:
            found.append(_why_whole(candidates, losses.modes[i], choice.keeps))
    if layer := candidates.kept_at(choice.keeps):
        kept, kl = candidates.keeps[choice.keeps - 1].words, losses.keeps[choice.keeps]
        found[layer] = (
            f"{kept} go on from here, which alone changes answers by {kl:.3g} nats; {found[layer]}"
        )
    return tuple(found)


def _why_whole(candidates: PlanSpace, row: Sequence[float], keeps: int) -> str:
    """Return why a layer keeps everything, by the KL of its modes that go with a choice among rows."""
    modes = candidates.modes_with(keeps)[1 : len(row)]
    if not modes:
        return "kept whole: nothing was offered for it"
    best = min(modes, key=lambda mode: row[mode])
    return (
        f"kept whole: of its changes the one that changes answers least ({candidates.modes[best - 1].words}) "
        f"costs {row[best]:.3g} nats alone, more than the same saving elsewhere"
    )


def _saved(additive: Additive, choice: Choice) -> float:
    nothing = additive.cost(additive.candidates.nothing)
    return (nothing - additive.cost(choice)) / additive.original


def _singles(additive: Additive) -> Iterator[Single]:
    """Yield what every change does alone: of layers, exits, and choices among visual rows."""
    candidates, losses = additive.candidates, additive.losses
    nothing = candidates.nothing
    layers = (
        (change, i, losses.modes[i][mode], nothing.with_mode(i, mode))
        for i in candidates.open()
        for mode, change in enumerate(candidates.modes, start=1)
    )
    exits = (
        (change, leaves, losses.exits[leaves], nothing._replace(leaves=leaves))
        for leaves, change in candidates.exits.items()
    )
    keeps = (
        (
            change,
            candidates.kept_at(number) or None,
            losses.keeps[number],
            nothing._replace(keeps=number),
        )
        for number, change in enumerate(candidates.keeps, start=1)
    )
    for change, layer, kl, choice in chain(layers, exits, keeps):
        saved = _saved(additive, choice)
        yield Single(method=change.method, change=change.words, layer=layer, kl=kl, saved=saved)
