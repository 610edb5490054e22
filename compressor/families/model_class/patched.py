"""Families whose image processors cut pictures, of sizes of their own, into patches beside a grid."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from compressor.errors import ModelError
from compressor.facts import ModelFacts, TowerFacts
from compressor.families.model_class.own_size import OwnSizeFamily
from compressor.families.model_class.tower import activation_problems
from compressor.families.pictures.processors import (
    OLDER_PIXELS,
    allowed_pixels,
    values_of,
)
from compressor.families.pictures.sizes import cell_grid, cell_step
from compressor.families.pictures.steps import MAX_SIDE
from compressor.families.told import IMAGE_FILE
from compressor.schema.sections import ImageSection


class PatchedFamily(OwnSizeFamily):
    """A family of which pictures come in patches; rows of the decoder are turned by time, row and column.

    Attributes:
        tower: `model_type` of the vision tower.
        processor: name of transformers' class of processors.
    """

    budget_keys: ClassVar[tuple[str, ...]] = ("max_pixels",)
    image_processors: ClassVar[tuple[str, ...]] = ("Qwen2VLImageProcessor",)
    token_keys = ("do_resize", "patch_size", "merge_size")
    tower: ClassVar[str]
    processor: ClassVar[str]

    @abstractmethod
    def own_problems(self, section: Mapping[str, Any], where: str) -> list[str]:
        """Return a line for each thing in the section of the family's tower that it does not have."""

    @abstractmethod
    def patching(self, vision: Any) -> Mapping[str, int]:
        """Return what values of the image processor cut pictures into patches as a tower takes them."""

    @abstractmethod
    def laid_out(self, patches: Tensor, grid: tuple[int, int], merge: int, side: int) -> Tensor:
        """Return a picture [1, 3, H, W] of its patches.

        Args:
            patches: [h * w, ...] of one picture, as the processor makes them.
            grid: rows and columns of its visual tokens.
            merge: patches on a visual token's side.
            side: of a patch in pixels.
        """

    def problems(self, raw: Mapping[str, Any], where: str) -> list[str]:
        """See `Family.problems`."""
        nested = dict(raw)
        (text,), (own,) = self.decoders, self.model_types
        if (
            "text_config" not in raw
        ):  # as published, all keys of the decoder stand beside the others
            nested["text_config"] = {**raw, "model_type": text}
        vision = raw.get("vision_config")
        if isinstance(vision, dict) and vision.get("model_type") == own:
            nested["vision_config"] = {**vision, "model_type": self.tower}
        return super().problems(nested, where)

    def tower_problems(self, section: Mapping[str, Any], where: str) -> list[str]:
        """See `ModelClassFamily.tower_problems`."""
        kind = section.get("model_type", self.tower)
        if kind != self.tower:
            return [
                f"{where}.model_type: {kind!r} is not supported; supported towers: {self.tower}"
            ]
        return self.own_problems(section, where)

    def vision_problems(self, config: Any, image_size: int | None, where: str) -> list[str]:
        """See `ModelClassFamily.vision_problems`."""
        acts = {"vision_config.hidden_act": config.vision_config.hidden_act}
        own = super().vision_problems(config, image_size, where)
        return activation_problems(acts, where) + own

    def tower_facts(self, config: Any) -> TowerFacts:
        """See `ModelClassFamily.tower_facts`."""
        return TowerFacts(patches=config.vision_config.spatial_merge_size**2, class_token=False)

    def cell(self, config: Any) -> int:
        """See `OwnSizeFamily.cell`."""
        vision = config.vision_config
        return int(vision.patch_size * vision.spatial_merge_size)

    def within(self, budget: ImageSection, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Family.within`."""
        if budget.max_pixels is None:
            size, problems = self._one_size(budget, saved)
        else:
            least, _ = allowed_pixels(saved)
            size, problems = {"shortest_edge": least, "longest_edge": budget.max_pixels}, []
            if budget.max_pixels < least:
                problems = [
                    f"image.max_pixels: {budget.max_pixels} is less than the {least} pixels that the model's "
                    f"image processor gives a picture at least; take {least} or more"
                ]
        if problems:
            raise ModelError(problems)
        return {"size": size, **{key: None for key in OLDER_PIXELS.values() if key in saved}}

    def _one_size(
        self, budget: ImageSection, saved: Mapping[str, Any]
    ) -> tuple[dict[str, int | None], list[str]]:
        """Return the size of all pictures, and a line for each edge that is not made of whole cells."""
        size = {"height": budget.height, "width": budget.width}
        step = cell_step(self.picture_steps(saved, IMAGE_FILE)) if saved else None
        cell, problems = step.cell if step else 1, []
        most = MAX_SIDE // cell * cell
        for key, side in size.items():
            around = ((side or 0) // cell * cell, -(-(side or 0) // cell) * cell)
            nearest = [near for near in around if 0 < near <= most] or [most]
            if side not in nearest:
                problems.append(
                    f"image.{key}: {side} cannot be kept exactly: a visual token shows {cell} x {cell} "
                    f"pixels; take {' or '.join(map(str, nearest))}"
                )
        return size, problems

    def processor_class(self) -> type:
        """See `Family.processor_class`."""
        import transformers

        kind: type = getattr(transformers, self.processor)
        return kind

    def complete_processor(self, processor: Any, config: Any, saved: Mapping[str, Any]) -> None:
        """See `Family.complete_processor`.

        Raises:
            ModelError: it cuts pictures into other patches than the tower takes.
        """
        images, wanted = processor.image_processor, self.patching(config.vision_config)
        if differ := [
            f"{IMAGE_FILE}: {key}: {found!r}, but the vision tower takes {value}: correct it, or config.json"
            for key, value in wanted.items()
            if (found := getattr(images, key, None)) != value
        ]:
            raise ModelError(differ)

    def image_rows(
        self, processor: Any, sizes: Sequence[tuple[int, int]], facts: ModelFacts
    ) -> tuple[int, ...]:
        """See `Family.image_rows`."""
        saved = values_of(processor.image_processor)
        steps = self.picture_steps(saved, IMAGE_FILE)
        grids = (cell_grid(steps, height, width) for height, width in sizes)
        return tuple(math.prod(grid) if grid else facts.tile_rows for grid in grids)

    def image_grids(
        self, encoded: Mapping[str, Any], facts: ModelFacts
    ) -> tuple[tuple[int, int], ...] | None:
        """See `Family.image_grids`."""
        pixels = encoded.get("pixel_values")
        if pixels is None:
            return ()
        grids = encoded["image_grid_thw"].tolist()
        merge = _patches_a_side(len(pixels), encoded["input_ids"], facts)
        return tuple((high // merge, wide // merge) for _, high, wide in grids)

    def image_pixels(
        self, encoded: Mapping[str, Any], rows: Sequence[int], facts: ModelFacts
    ) -> tuple[Tensor, ...]:
        """See `Family.image_pixels`."""
        patches: Tensor | None = encoded.get("pixel_values")
        if patches is None or not rows:
            return ()
        grids = self.image_grids(encoded, facts) or ()
        merge = _patches_a_side(len(patches), encoded["input_ids"], facts)
        pictures = patches.split([count * merge**2 for count in rows])
        return tuple(
            self.laid_out(picture, grid, merge, (facts.cell or 1) // merge)
            for picture, grid in zip(pictures, grids, strict=True)
        )

    def original_rows(
        self, original: Any, out: Any, pictures: Mapping[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """See `Family.original_rows`."""
        seen = original.get_image_features(pictures["pixel_values"], pictures["image_grid_thw"])
        further = getattr(seen, "deepstack_features", None) or ()
        return tuple(torch.cat(list(rows)) for rows in (seen.pooler_output, *further))

    def forget(self, original: Any) -> None:
        """See `Family.forget`: how far positions lie behind places is kept from prompt to prompt."""
        original.model.rope_deltas = None


def _patches_a_side(patches: int, ids: Tensor, facts: ModelFacts) -> int:
    """How many patches lie on the side of a visual token, by what a processor made of a prompt."""
    return math.isqrt(patches // int((ids == facts.image_token_id).sum()))
