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
    places = "at the places that they have among all"
    if plan.model.tile_places is not None:
        places = "numbered anew, as if there were so many"
    found = (
        f"Of {amount} visual tokens of {of} {front.count:,} enter the decoder{words.front_how} (method "
        f"{words.label}), {places}. There are no rows of the others, no work on them, and no keys and "
        f"values.{ends}",
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


def drawable(plan: Plan) -> bool:
    """Whether pictures can show which of their cells enter the decoder, and which do not."""
    return plan.front is not None and not _undrawn(plan, plan.front)


def _undrawn(plan: Plan, front: Kept) -> str:
    """Return why they cannot, as a sentence; empty: they can."""
    if plan.model.token_grid is None or plan.model.grids_differ:
        return "Where on a picture a visual token of this model lies is not known."
    return words_of(front.by).front_undrawn


def cells_words(plan: Plan, *, drawn: bool) -> tuple[str, ...]:
    """Return what pictures of questions show of the choice among visual tokens, or why they show nothing.

    Args:
        plan: what is chosen.
        drawn: which tokens go on is stored of at least one picture.
    """
    found = []
    if plan.front is not None:
        if reason := _undrawn(plan, plan.front):
            found.append(f"{reason} So the pictures do not show which visual tokens go on.")
        elif drawn:
            found.append(
                "On the pictures the cells of visual tokens that enter the decoder are clear, the others "
                "shaded; what is faded the model does not see."
            )
        else:
            found.append(
                "Which cells of the pictures enter the decoder is not stored in this artifact: it keeps no "
                "pictures (validate.keep_pictures: none), or an earlier version made it."
            )
    if layers := plan.keeps():
        which = f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
        found.append(
            f"Which visual tokens go on at {which} is decided in the decoder for each question, and its "
            "graph does not give their places: the pictures do not show it."
        )
    return tuple(found)


def kept_words(kept: Kept) -> str:
    """Return how many of how many visual tokens go on: `288 of 576`."""
    return f"{kept.count:,} of {kept.of:,}"


def grown_words(grown: Growth) -> str:
    """Return how many visual tokens of a tile become how many: `144 become 576`."""
    return f"{grown.of:,} become {grown.count:,}"


def visual_words(plan: Plan) -> str:
    """Return the number of visual rows of a plan's workload: `288 of 576` where some are kept alone."""
    return str(plan.visual) if plan.front is None else f"{plan.visual} of {plan.image_tokens}"
