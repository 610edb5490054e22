"""DyVTE: gates look at the prompt's text states and decide after which layer visual tokens leave.

Source: see `compressor.decoder.gates`. Gates are trained, everything else stays as it is.

Rule: after each layer with a gate, in order, the gate is asked; the first that fires sends the visual rows
away for good. Calibration asks every gate on the full model's states, which are those that the gate would
see, because nothing has left before the first that fires. This file counts these exits, and picks a fixed
one for the `baked` form.

Limitations:
- A gate decides from text states alone; it cannot know that a later question needs the picture.
- The baked form loses what makes the method dynamic: prompts that would stay longer exit all the same.
"""

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


def baked_exit(
    fired: Sequence[int], unfired: int, candidates: Sequence[int], quantile: float
) -> int | None:
    """Return the first layer without visual rows by which a share of the prompts has exited.

    Args:
        fired: prompts that exit after each candidate.
        unfired: prompts that never do.
        candidates: layers with a gate, ascending.
        quantile: the share, above 0, up to 1.

    Returns:
        The layer behind the first candidate that reaches the share; None if too few prompts exit at all.
    """
    wanted = quantile * (sum(fired) + unfired)
    gone = 0
    for count, layer in zip(fired, candidates, strict=True):
        gone += count
        # A hair less, so that 0.9 of 10 is 9 whatever the rounding of the product.
        if gone >= wanted - 1e-9:
            return layer + 1
    return None
