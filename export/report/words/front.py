"""Which visual tokens enter the decoder and go on in it, in words; nothing to say where all do."""

from compressor.plan.kept import Kept
from compressor.plan.plan import Plan
from export.report.words.methods import words_of


def front_words(plan: Plan) -> tuple[str, ...]:
    """Return how many visual tokens enter the decoder, and which, as a sentence; none: all do."""
    front = plan.front
    if front is None:
        return ()
    words = words_of(front.by)
    of = "a picture" if plan.model.most_tiles == 1 else "every tile of a picture"
    places = "at the places that they have among all"
    if plan.model.tile_places is not None:
        places = "numbered anew, as if there were so many"
    found = (
        f"Of {front.of:,} visual tokens of {of} {front.count:,} enter the decoder{words.front_how} (method "
        f"{words.label}), {places}. There are no rows of the others, no work on them, and no keys and "
        "values.",
    )
    if not front.weights:
        return found
    return (
        *found,
        f"They are made by weights of {words.label}'s own (digest {front.weights[:12]}), which are trained "
        "together with a decoder. The original that the compression loss compares with has another projector "
        "in front of the same decoder: the loss tells how far these two models are apart, not what fewer "
        "visual tokens cost.",
    )


def kept_words(kept: Kept) -> str:
    """Return how many of how many visual tokens go on: `288 of 576`."""
    return f"{kept.count:,} of {kept.of:,}"


def visual_words(plan: Plan) -> str:
    """Return the number of visual rows of a plan's workload: `288 of 576` where some are kept alone."""
    return str(plan.visual) if plan.front is None else f"{plan.visual} of {plan.image_tokens}"
