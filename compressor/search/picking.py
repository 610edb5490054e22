"""What a plan must keep, which of the plans that were judged is taken, and why."""

from collections.abc import Callable, Collection

from compressor.contract.searched import SearchedMethod
from compressor.errors import PlanError
from compressor.search.results import HalfFigures, KeptAnswers
from compressor.search.tried import Tried


def reached(searched: SearchedMethod, figures: HalfFigures) -> bool:
    """Whether a plan keeps on some questions what it must; a speed-up asks for its floors alone."""
    enough = True
    if searched.keep is not None:
        enough = _at_least(figures.overall, searched.keep)
    if searched.max_kl is not None:
        enough = figures.kl <= searched.max_kl
    return enough and not below_floor(searched, figures)


def below_floor(searched: SearchedMethod, figures: HalfFigures) -> list[str]:
    """Return what is kept of the kinds that keep too little, a phrase each."""
    kinds = {kept.kind: kept for kept in figures.kinds}
    return [
        f"{kind}: {share_words(kinds[kind])}, asked {least:.1%}"
        for kind, least in (searched.floor or {}).items()
        if kind in kinds and not _at_least(kinds[kind], least)
    ]


def _at_least(kept: KeptAnswers, share: float) -> bool:
    # A hair less, so that 0.29 of 100 is 29.
    return kept.kept >= share * kept.original - 1e-9


def share_words(kept: KeptAnswers) -> str:
    """Return the share that is kept, its counts and its bound: `96.9% (31 of 32, 95% sure of 86.0%)`.

    Of a graded score no bound holds.
    """
    if kept.share is None:
        return f"none of {kept.questions} that the original answers right"
    bound = "" if kept.bound is None else f", 95% sure of {kept.bound:.1%}"
    return f"{kept.share:.1%} ({kept.counts}{bound})"


def pick(
    searched: SearchedMethod,
    where: str,
    judged: Collection[Tried],
    speedup: Callable[[Tried], float],
) -> tuple[Tried, str]:
    """Return the plan to take of some that were judged, by rising speed-up, and why.

    Raises:
        PlanError: none keeps what is asked for.
    """
    if not judged:
        raise PlanError(
            ["budget: there was no time to judge one plan; give more, or fewer questions"]
        )
    enough = [t for t in judged if reached(searched, t.chosen_on) and reached(searched, _on(t))]
    words = searched.asked_words
    if searched.speedup is not None:
        fast = [t for t in enough if speedup(t) >= searched.speedup * (1 - 1e-9)]
        if not fast:
            raise PlanError([f"{where}: {_short(searched, judged, speedup)}"])
        best = min(fast, key=lambda t: (t.chosen_on.kl, t.choice))
        return best, (
            f"of {len(fast)} plans that are predicted {searched.speedup:g} x or faster, the one that changes "
            f"answers least; on the other half of the questions it keeps {share_words(_on(best).overall)}"
        )
    if not enough:
        raise PlanError([f"{where}: {_short(searched, judged, speedup)}"])
    best = enough[-1]
    return best, (
        f"the fastest of {len(enough)} plans that reach {words} on both halves of the questions; on the half "
        f"by which no plan was made it keeps {share_words(_on(best).overall)}"
    )


def _on(tried: Tried) -> HalfFigures:
    """Return the figures of a plan that was judged."""
    return tried.judged_on or tried.chosen_on


def _short(
    searched: SearchedMethod, judged: Collection[Tried], speedup: Callable[[Tried], float]
) -> str:
    """Return that no plan is enough, the best that there is, and the remedy."""
    if searched.max_kl is not None:
        best = min(judged, key=lambda t: _on(t).kl)
        what = f"has a mean KL of {_on(best).kl:.3g} nats at {speedup(best):.2f} x"
    else:
        best = max(judged, key=lambda t: _least(t, searched))
        what = f"keeps {share_words(_on(best).overall)} at {speedup(best):.2f} x"
    missed = "; ".join(below_floor(searched, _on(best)) or below_floor(searched, best.chosen_on))
    return (
        f"{searched.goal_words}{' with its floor' if searched.floor else ''} is not reached by any of "
        f"{len(judged)} plans: the best {what}{f' ({missed})' if missed else ''}; ask for less, or give more "
        "questions"
    )


def _least(tried: Tried, searched: SearchedMethod) -> float:
    """Return the least share that is kept on a half; where floors are asked, of their kinds too."""
    kinds = searched.floor or {}
    shares = [
        kept.share
        for half in (tried.chosen_on, _on(tried))
        for kept in (half.overall, *(k for k in half.kinds if k.kind in kinds))
        if kept.share is not None
    ]
    return min(shares, default=0.0)
