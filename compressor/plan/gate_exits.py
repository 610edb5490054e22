"""Which gate lets the visual rows of a prompt leave, counted over prompts."""

from collections.abc import Sequence


def first_to_fire(margins: Sequence[float], candidates: Sequence[int]) -> int | None:
    """Return the layer whose gate fires first, None if none does.

    Args:
        margins: logit 1 minus logit 0 of each candidate's gate.
        candidates: layers with a gate, ascending.
    """
    pairs = zip(margins, candidates, strict=True)
    return next((layer for margin, layer in pairs if margin > 0), None)


def histogram(
    exits: Sequence[int | None], candidates: Sequence[int]
) -> tuple[tuple[int, ...], int]:
    """Return how many prompts exit after each candidate, and how many never."""
    return tuple(sum(e == c for e in exits) for c in candidates), sum(e is None for e in exits)
