"""Families whose pictures go through the tower each at a size of its own, or all at one size."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from compressor.facts import ModelFacts
from compressor.families.model_class.family import ModelClassFamily
from compressor.families.pictures.sizes import cell_step
from compressor.families.pictures.steps import Resize
from compressor.families.told import IMAGE_FILE


class OwnSizeFamily(ModelClassFamily):
    """A family of which every picture is resized to whole cells, each of which is one visual token."""

    no_grid = "each picture has a grid of its own"

    @abstractmethod
    def cell(self, config: Any) -> int:
        """Return the side of the square of pixels that one visual token shows."""

    def vision_problems(self, config: Any, image_size: int | None, where: str) -> list[str]:
        """See `ModelClassFamily.vision_problems`."""
        if image_size is None:
            return []
        return [
            f"export.image_size: {image_size} is nothing for pictures of the family {self.name!r}, which "
            f"keep their proportions; take {self.budget_words()}, or leave it out"
        ]

    def visual_grid(
        self, config: Any, image_size: int | None
    ) -> tuple[int, int, tuple[int, int] | None]:
        """See `ModelClassFamily.visual_grid`; how large pictures are, the image processor's file tells."""
        return self.cell(config), 1, None

    def facts(self, config: Any, name: str, **options: Any) -> ModelFacts:
        """See `Family.facts`."""
        facts = super().facts(config, name, **options)
        return facts.model_copy(update={"cell": self.cell(config)})

    def with_pictures(self, facts: ModelFacts, saved: Mapping[str, Any]) -> ModelFacts:
        """See `Family.with_pictures`."""
        steps = self.picture_steps(saved, IMAGE_FILE) if saved else ()
        cell, grid, first = facts.cell or 1, None, next(iter(steps), None)
        if isinstance(first, Resize):
            grid = first.size[0] // cell, first.size[1] // cell
            tokens = math.prod(grid)
        elif (step := cell_step(steps)) is not None:
            tokens, cell = step.most_cells, step.cell
        else:
            return facts
        side = math.isqrt(tokens) * cell
        return facts.model_copy(
            update={"visual_tokens": tokens, "token_grid": grid, "image_size": side}
        )

    def layers_read(self, config: Any) -> int:
        """See `ModelClassFamily.layers_read`."""
        layers: int = config.vision_config.num_hidden_layers
        return layers

    def resize_processor(self, processor: Any, image_size: int) -> None:
        """See `Family.resize_processor`; there is no one size, which `vision_problems` sees to."""
