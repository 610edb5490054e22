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
    of, amount, ends = "every tile of a picture", f"{front.of:,}", ""
    if plan.model.most_tiles == 1:
        of = "a picture"
    if plan.model.grids_differ:
        amount = f"every {front.of:,}"
    if plan.model.arrangement is not None:
        of = "a grid"
        ends = (
            " The whole picture is one grid, its tiles without the padded border are another; tokens that "
            "end lines are in none and all enter."
        )
    return (
        f"Of {amount} visual tokens of {of} {front.count:,} enter the decoder{words.front_how} (method "
        f"{words.label}), at the places that they have among all. There are no rows of the others, no work "
        f"on them, and no keys and values.{ends}",
    )


def kept_words(kept: Kept) -> str:
    """Return how many of how many visual tokens go on: `288 of 576`."""
    return f"{kept.count:,} of {kept.of:,}"


def visual_words(plan: Plan) -> str:
    """Return the number of visual rows of a plan's workload: `288 of 576` where some are kept alone."""
    return str(plan.visual) if plan.front is None else f"{plan.visual} of {plan.image_tokens}"
