"""Qwen2-VL and Qwen2.5-VL: pictures at a size of their own, four patches to a visual token.

Rows are turned by time, row and column, in sections of the frequencies (`mrope_section`).

Limitations: pictures alone, no videos; windows of visual tokens only where all pictures are resized to one
size, because else their grid differs from picture to picture.
"""

import json
import math
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from compressor.errors import ModelError
from compressor.facts import ModelFacts
from compressor.families.base import VisionEncoder
from compressor.families.configuration import MOST_LAYERS, section_problems
from compressor.families.model_class.cells import cells_within, with_cells
from compressor.families.model_class.family import ModelClassFamily
from compressor.families.model_class.stored import COMPUTED
from compressor.families.picture_steps import cell_grid
from compressor.families.qwen_vl.tower import PatchGrid
from compressor.schema.sections import ImageSection

CHANNELS = 3
PROCESSOR = "the image processor"


class QwenVlFamily(ModelClassFamily):
    """What Qwen2-VL and Qwen2.5-VL share.

    Attributes:
        tower: `model_type` of the vision tower.
        counts: keys of numbers from 1 on in its configuration.
        width: key of its width.
        processor: name of transformers' class of processors.
    """

    budget_keys = ("max_pixels", "height", "width")
    no_grid = (
        "each picture has a grid of its own, unless image.height and image.width give them all one"
    )
    tower: ClassVar[str]
    counts: ClassVar[tuple[str, ...]]
    width: ClassVar[str]
    processor: ClassVar[str]

    @abstractmethod
    def tower_class(self) -> Any:
        """Return transformers' class of the tower."""

    @abstractmethod
    def encoder(self, tower: Any) -> VisionEncoder:
        """Return what a graph is made of, for a tower of transformers."""

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
        found = section_problems(section, where, counts=self.counts, eps="eps")
        depth, channels = section.get("depth"), section.get("in_channels", CHANNELS)
        if type(depth) is int and depth > MOST_LAYERS:
            found.append(f"{where}.depth: {depth} is not allowed; 1 to {MOST_LAYERS}")
        if channels != CHANNELS:
            found.append(
                f"{where}.in_channels: {channels!r} is not supported; pictures have {CHANNELS}"
            )
        width, heads = section.get(self.width), section.get("num_heads")
        if not found and width and heads and width % (4 * heads):
            found.append(
                f"{where}.num_heads: {heads} heads of a width of {width}: a head's width must be a multiple "
                "of 4, half for rows and half for columns"
            )
        return found

    def vision_problems(self, config: Any, image_size: int | None, where: str) -> list[str]:
        """See `ModelClassFamily.vision_problems`."""
        from transformers.activations import ACT2FN

        vision, problems = config.vision_config, []
        if vision.hidden_act not in ACT2FN:
            problems.append(
                f"{where}: vision_config.hidden_act: {vision.hidden_act!r} is no activation that "
                "transformers knows; correct it"
            )
        if image_size is not None:
            problems.append(
                f"export.image_size: {image_size} is nothing for pictures of the family {self.name!r}, which "
                "keep their proportions; take image.max_pixels, or leave it out"
            )
        return problems

    def visual_grid(
        self, config: Any, image_size: int | None
    ) -> tuple[int, int, tuple[int, int] | None]:
        """See `ModelClassFamily.visual_grid`; how large pictures are, the image processor's file tells."""
        return _cell(config), 1, None

    def facts(self, config: Any, name: str, **options: Any) -> ModelFacts:
        """See `Family.facts`."""
        facts = super().facts(config, name, **options)
        return facts.model_copy(update={"cell": _cell(config)})

    def with_pictures(self, facts: ModelFacts, saved: Mapping[str, Any]) -> ModelFacts:
        """See `Family.with_pictures`."""
        return with_cells(facts, saved)

    def within(self, budget: ImageSection, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Family.within`."""
        steps = self.picture_steps(saved, PROCESSOR) if saved else ()
        return cells_within(budget, saved, next(iter(steps), None))

    def unread(self, config: Any) -> Callable[[str], bool]:
        """See `ModelClassFamily.unread`."""
        unread = re.compile(rf"{COMPUTED}|rotary_pos_emb\.inv_freq$")
        return lambda name: bool(unread.search(name))

    def layers_read(self, config: Any) -> int:
        """See `ModelClassFamily.layers_read`."""
        layers: int = config.vision_config.depth
        return layers

    def vision(self, config: Any, *, image_size: int, source: Any = None) -> VisionEncoder:
        """See `Family.vision`."""
        tower = self.tower_class()(config.vision_config) if source is None else source.model.visual
        return self.encoder(tower).eval()

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
        from compressor.families.qwen_vl.images import sized_images

        processor.image_processor = sized_images(processor.image_processor)
        images, vision = processor.image_processor, config.vision_config
        wanted = {
            "patch_size": vision.patch_size,
            "merge_size": vision.spatial_merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
        }
        if differ := [
            f"{PROCESSOR}: {key}: {found!r}, but the vision tower takes {value}: correct it, or config.json"
            for key, value in wanted.items()
            if (found := getattr(images, key, None)) != value
        ]:
            raise ModelError(differ)

    def image_rows(
        self, processor: Any, sizes: Sequence[tuple[int, int]], facts: ModelFacts
    ) -> tuple[int, ...]:
        """See `Family.image_rows`."""
        saved = json.loads(processor.image_processor.to_json_string())
        steps = self.picture_steps(saved, PROCESSOR)
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
        """See `Family.image_pixels`; the processor gives patches, block by block."""
        patches: Tensor | None = encoded.get("pixel_values")
        if patches is None or not rows:
            return ()
        grids = self.image_grids(encoded, facts) or ()
        merge = _patches_a_side(len(patches), encoded["input_ids"], facts)
        patch = (facts.cell or 1) // merge
        pictures = patches.split([count * merge**2 for count in rows])
        return tuple(
            picture.reshape(*grid, merge, merge, CHANNELS, -1, patch, patch)[..., 0, :, :]
            .permute(4, 0, 2, 5, 1, 3, 6)
            .reshape(1, CHANNELS, grid[0] * merge * patch, grid[1] * merge * patch)
            for picture, grid in zip(pictures, grids, strict=True)
        )

    def original_rows(self, original: Any, out: Any, pictures: Mapping[str, Tensor]) -> Tensor:
        """See `Family.original_rows`."""
        seen = original.get_image_features(pictures["pixel_values"], pictures["image_grid_thw"])
        return torch.cat(list(seen.pooler_output))

    def forget(self, original: Any) -> None:
        """See `Family.forget`: how far positions lie behind places is kept from prompt to prompt."""
        original.model.rope_deltas = None

    def resize_processor(self, processor: Any, image_size: int) -> None:
        """See `Family.resize_processor`; there is no one size, which `vision_problems` sees to."""


class Qwen2VlFamily(QwenVlFamily):
    """`Qwen2VLForConditionalGeneration` of transformers 5: all patches of a picture read each other."""

    name = "qwen2_vl"
    model_types = ("qwen2_vl",)
    decoders = ("qwen2_vl_text",)
    architecture = "Qwen2VLForConditionalGeneration"
    tower = "qwen2_vl_vision"
    width = "embed_dim"
    counts = (
        *("depth", "embed_dim", "hidden_size", "num_heads", "mlp_ratio"),
        *("patch_size", "spatial_merge_size", "temporal_patch_size"),
    )
    processor = "Qwen2VLProcessor"

    def tower_class(self) -> Any:
        """See `QwenVlFamily.tower_class`."""
        from transformers.models.qwen2_vl.modeling_qwen2_vl import (
            Qwen2VisionTransformerPretrainedModel,
        )

        return Qwen2VisionTransformerPretrainedModel

    def encoder(self, tower: Any) -> VisionEncoder:
        """See `QwenVlFamily.encoder`."""
        return PatchGrid(tower)


class Qwen25VlFamily(QwenVlFamily):
    """`Qwen2_5_VLForConditionalGeneration` of transformers 5: most layers attend in windows."""

    name = "qwen2_5_vl"
    model_types = ("qwen2_5_vl",)
    decoders = ("qwen2_5_vl_text",)
    architecture = "Qwen2_5_VLForConditionalGeneration"
    tower = "qwen2_5_vl_vision"
    width = "hidden_size"
    counts = (
        *("depth", "hidden_size", "intermediate_size", "out_hidden_size", "num_heads"),
        *("patch_size", "spatial_merge_size", "temporal_patch_size", "window_size"),
    )
    processor = "Qwen2_5_VLProcessor"

    def vision_problems(self, config: Any, image_size: int | None, where: str) -> list[str]:
        """See `ModelClassFamily.vision_problems`."""
        problems, window = (
            super().vision_problems(config, image_size, where),
            _window(config.vision_config),
        )
        if not window:
            problems.append(
                f"{where}: vision_config.window_size: {config.vision_config.window_size} pixels are less "
                f"than a visual token's {_cell(config)}"
            )
        return problems

    def tower_class(self) -> Any:
        """See `QwenVlFamily.tower_class`."""
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
            Qwen2_5_VisionTransformerPretrainedModel,
        )

        return Qwen2_5_VisionTransformerPretrainedModel

    def encoder(self, tower: Any) -> VisionEncoder:
        """See `QwenVlFamily.encoder`."""
        return PatchGrid(
            tower, window=_window(tower.config), everywhere=tower.config.fullatt_block_indexes
        )


def _cell(config: Any) -> int:
    """Side of the square of pixels that one visual token shows."""
    vision = config.vision_config
    return int(vision.patch_size * vision.spatial_merge_size)


def _window(vision: Any) -> int:
    """Side of a window in patches: as many whole visual tokens as fit."""
    merge = int(vision.spatial_merge_size)
    return int(vision.window_size // vision.patch_size // merge) * merge


def _patches_a_side(patches: int, ids: Tensor, facts: ModelFacts) -> int:
    """How many patches lie on the side of a visual token, by what a processor made of a prompt."""
    return math.isqrt(patches // int((ids == facts.image_token_id).sum()))
