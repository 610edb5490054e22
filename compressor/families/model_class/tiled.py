"""Families whose pictures become tiles of one size, each with as many visual tokens."""

from collections.abc import Mapping
from typing import Any

from compressor.families.model_class.family import ModelClassFamily
from compressor.families.pictures.sizes import most_tiles
from compressor.families.told import IMAGE_FILE


class TiledFamily(ModelClassFamily):
    """A family of which every picture is cut into tiles as large as the tower's own pictures."""

    budget_keys = ("max_tiles",)

    def size_problems(self, image_size: int | None, size: int) -> list[str]:
        """Return a line if tiles of another size than the tower's are asked for; both in pixels."""
        if image_size in (None, size):
            return []
        return [
            f"export.image_size: {image_size} is nothing for pictures of the family {self.name!r}: its "
            f"tiles have {size} pixels; take image.max_tiles, or leave it out"
        ]

    def layers_read(self, config: Any) -> int:
        """See `ModelClassFamily.layers_read`."""
        layers: int = config.vision_config.num_hidden_layers
        return layers

    def most_tiles(self, saved: Mapping[str, Any]) -> int:
        """See `Family.most_tiles`."""
        return most_tiles(self.picture_steps(saved, IMAGE_FILE)) if saved else 1

    def resize_processor(self, processor: Any, image_size: int) -> None:
        """See `Family.resize_processor`; there is one size, which `size_problems` sees to."""
