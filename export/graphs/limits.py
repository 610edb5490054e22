"""How many rows engines and fixed caches are made for."""

import math
from collections.abc import Mapping

from compressor.arrangement import cells_kept
from compressor.errors import RecipeError
from compressor.facts import Facts, ModelFacts, Positive
from compressor.methods import GATED
from compressor.plan.kept import rows_going_on
from compressor.plan.plan import TEXT_PAST, Plan
from compressor.schema.sections import ExportSection, ProfilesSection

# Text rows of one call, and text rows of a conversation beside its images, where the recipe is silent.
USUAL_TEXT, USUAL_CONVERSATION = 512, 2048


GoingOn = Mapping[str, tuple[tuple[int, int], ...]]
"""(k, n) of each time that k of n visual rows went on in front of caches, by the name of their length."""


class Limits(Facts):
    """The largest sizes of one artifact's calls.

    Attributes:
        max_batch: sequences of one call.
        max_images: images of one call.
        max_text: text rows of one call.
        max_context: visual and text rows of a conversation.
        visual_tokens: visual rows of one image at most, of those that the decoder gets.
        tiles: of one image at most.
        cell: side in pixels of what one visual token shows, where each image has its own size; else None.
    """

    max_batch: Positive
    max_images: Positive
    max_text: Positive
    max_context: Positive
    visual_tokens: Positive
    tiles: Positive = 1
    cell: Positive | None = None

    @property
    def max_visual(self) -> int:
        """Visual rows of one call."""
        return self.max_images * self.visual_tokens

    @property
    def sides(self) -> tuple[int, int, int]:
        """Height and width of images with sizes of their own, in pixels: least, of a square, and most.

        One side may be twice a square's, not more: both at once are what an engine is built for.
        """
        cell, square = self.cell or 1, math.isqrt(self.visual_tokens)
        return cell, square * cell, min(self.visual_tokens, 2 * square) * cell

    def cached_rows(self, length: str, kept: GoingOn) -> int:
        """Return how many rows a cache with this name of its length holds at most.

        A conversation that fills the context has an image. Caches of text alone hold the context less this
        one, those behind a choice also what goes on of it. Behind a gate a cache may hold everything. Where
        rows of a tile become more, there may be as many tiles as the context has room for beside a text row.

        Args:
            length: the name.
            kept: (k, n) of each time that k of n visual rows went on, or n became k, by the name of the
                length.
        """
        if length != TEXT_PAST and length not in kept:
            return self.max_context
        changes = kept.get(length, ())
        if grown := [(count, of) for count, of in changes if count > of]:
            more = ((self.max_context - 1) // of * (count - of) for count, of in grown)
            return self.max_context + sum(more)
        held = rows_going_on(self.visual_tokens, changes) if length in kept else 0
        return self.max_context - self.visual_tokens + held

    def problems(self, positions: int) -> tuple[str, ...]:
        """Return what makes no sense together, a line each; none: the limits can be built for.

        Args:
            positions: of the model.
        """
        found = []
        if self.max_context > positions:
            found.append(
                f"max_context: {self.max_context} is more than the model's {positions} positions"
            )
        if self.max_context <= self.max_visual:
            found.append(
                f"max_context: {self.max_context} has no room for {self.max_images} image(s) of "
                f"{self.visual_tokens} rows and a text row; give {self.max_visual + 1} or more"
            )
        if self.max_text > self.max_context:
            found.append(
                f"max_text: {self.max_text} is more than max_context, {self.max_context}; "
                "give a smaller max_text or a larger max_context"
            )
        return tuple(found)


def limits_of(profiles: ProfilesSection, facts: ModelFacts, kept: int | None = None) -> Limits:
    """Return a recipe's limits, with defaults that fit the model where it has none.

    Args:
        profiles: of the recipe.
        facts: of the model.
        kept: how many of a tile's visual rows the decoder gets; None: all.
    """
    positions = facts.decoder.max_positions
    picture = rows_of_picture(facts, kept)
    visual = profiles.max_images * picture
    context = profiles.max_context or min(positions, visual + USUAL_CONVERSATION)
    text = profiles.max_text or max(1, min(USUAL_TEXT, context - visual))
    return Limits(
        max_batch=profiles.max_batch,
        max_images=profiles.max_images,
        max_text=text,
        max_context=context,
        visual_tokens=picture,
        tiles=facts.most_tiles,
        cell=facts.cell if facts.sizes_differ else None,
    )


def rows_of_picture(facts: ModelFacts, kept: int | None) -> int:
    """Return how many visual rows of a picture the decoder gets at most, if `kept` of a tile's; None: all."""
    if kept is None:
        return facts.picture_rows
    if facts.arrangement is None:
        return facts.most_tiles * kept
    tiles, most = facts.most_tiles, facts.picture_rows
    rows = facts.tile_rows
    return facts.arrangement.most_rows_kept(tiles, most, lambda n: cells_kept(n, kept, rows))


def limits_of_original(limits: Limits, facts: ModelFacts) -> Limits:
    """Return the limits within which the original's decoder, of all visual rows, takes the same calls."""
    more = limits.max_images * (facts.picture_rows - limits.visual_tokens)
    context = min(facts.decoder.max_positions, limits.max_context + more)
    return limits.model_copy(update={"visual_tokens": facts.picture_rows, "max_context": context})


def cache_limits(
    export: ExportSection, facts: ModelFacts, kept: int | None = None
) -> Limits | None:
    """Return the limits of fixed caches, see `limits_of`; None: the recipe lets them grow."""
    return limits_of(export.profiles, facts, kept) if export.kv_cache == "fixed" else None


def check_fixed(
    export: ExportSection, facts: ModelFacts, exit_by: str | None, kept: int | None = None
) -> None:
    """Refuse fixed caches that the model or its gates rule out.

    Args:
        export: of the recipe.
        facts: of the model.
        exit_by: how gates are deployed (`dynamic`, `staged`, `baked`); None: there are none.
        kept: how many of a tile's visual rows the decoder gets, as far as it is known; None: all.

    Raises:
        RecipeError: no room for an image and a question, more than the model has places for, or gates that
            decide inside one graph.
    """
    limits = cache_limits(export, facts, kept)
    if limits is None:
        return
    problems = []
    least, most = limits.visual_tokens + 1, facts.decoder.max_positions
    if not least <= limits.max_context <= most:
        problems.append(
            f"export.profiles.max_context: {limits.max_context} is outside {least}..{most}: a fixed KV cache "
            f"holds an image's {limits.visual_tokens} rows and text, and {facts.name} has {most} places; "
            "choose a number in between, or export.kv_cache: growing"
        )
    if exit_by == "dynamic":
        problems.append(
            f"export.kv_cache: fixed does not go with {GATED[0].name}'s exit: dynamic, where a graph "
            "computes how many rows it keeps; use exit: staged, or export.kv_cache: growing"
        )
    if problems:
        raise RecipeError(problems)


def buffer_bytes(plan: Plan, limits: Limits, bytes_per_value: int) -> int:
    """Return what a plan's fixed caches occupy at most for one sequence, keys and values together."""
    kept = plan.changed_by_length()
    rows = sum(cache.groups * limits.cached_rows(cache.length, kept) for cache in plan.caches())
    return 2 * rows * plan.model.decoder.head_dim * bytes_per_value
