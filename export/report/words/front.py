"""Which visual tokens enter the decoder, go on and become more in it, in words."""

from compressor.plan.growth import Growth
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
    return (
        f"Of {front.of:,} visual tokens of {of} {front.count:,} enter the decoder{words.front_how} (method "
        f"{words.label}), at the places that they have among all. There are no rows of the others, no work "
        "on them, and no keys and values.",
    )


def kept_words(kept: Kept) -> str:
    """Return how many of how many visual tokens go on: `288 of 576`."""
    return f"{kept.count:,} of {kept.of:,}"


def grown_words(grown: Growth) -> str:
    """Return how many visual tokens of a tile become how many: `144 become 576`."""
    return f"{grown.of:,} become {grown.count:,}"


def visual_words(plan: Plan) -> str:
    """Return the number of visual rows of a plan's workload: `288 of 576` where some are kept alone."""
    return str(plan.visual) if plan.front is None else f"{plan.visual} of {plan.image_tokens}"
