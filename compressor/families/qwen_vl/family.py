"""Qwen2-VL and Qwen2.5-VL: pictures at a size of their own, four patches to a visual token.

Rows are turned by time, row and column, in sections of the frequencies (`mrope_section`). Qwen3-VL starts
from what they share.

Limitations: pictures alone, no videos; windows of visual tokens only where all pictures are resized to one
size, because else their grid differs from picture to picture.
"""

import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from compressor.families.base import VisionEncoder
from compressor.families.configuration import list_problems, section_problems
from compressor.families.model_class.patched import PatchedFamily
from compressor.families.model_class.patches import head_width_problems
from compressor.families.model_class.stored import COMPUTED
from compressor.families.model_class.tower import CHANNELS
from compressor.families.qwen_vl.tower import PatchGrid

EVERYWHERE = "fullatt_block_indexes"


class QwenVlFamily(PatchedFamily):
    """What Qwen2-VL, Qwen2.5-VL and Qwen3-VL share.

    Attributes:
        counts: keys of numbers from 1 on in its configuration.
        width: key of its width.
    """

    budget_keys = (*PatchedFamily.budget_keys, "height", "width")
    no_grid = f"{PatchedFamily.no_grid}, unless image.height and image.width give them all one"
    tower_layers = "depth"
    counts: ClassVar[tuple[str, ...]]
    width: ClassVar[str]

    @abstractmethod
    def tower_class(self) -> Any:
        """Return transformers' class of the tower."""

    @abstractmethod
    def encoder(self, tower: Any) -> VisionEncoder:
        """Return what a graph is made of, for a tower of transformers."""

    def own_problems(self, section: Mapping[str, Any], where: str) -> list[str]:
        """See `PatchedFamily.own_problems`."""
        found = section_problems(
            section, where, counts=self.counts, eps="eps", layers=self.tower_layers
        )
        channels = section.get("in_channels", CHANNELS)
        if channels != CHANNELS:
            found.append(
                f"{where}.in_channels: {channels!r} is not supported; pictures have {CHANNELS}"
            )
        return found or head_width_problems(section, where, self.width, "num_heads")

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

    def complete_processor(self, processor: Any, config: Any, saved: Mapping[str, Any]) -> None:
        """See `PatchedFamily.complete_processor`."""
        from compressor.families.qwen_vl.images import sized_images

        processor.image_processor = sized_images(processor.image_processor)
        super().complete_processor(processor, config, saved)

    def patching(self, vision: Any) -> Mapping[str, int]:
        """See `PatchedFamily.patching`."""
        return {
            "patch_size": vision.patch_size,
            "merge_size": vision.spatial_merge_size,
            "temporal_patch_size": vision.temporal_patch_size,
        }

    def laid_out(self, patches: Tensor, grid: tuple[int, int], merge: int, side: int) -> Tensor:
        """See `PatchedFamily.laid_out`; patches come block by block, and as a film of equal frames."""
        film = patches.reshape(*grid, merge, merge, CHANNELS, -1, side, side)
        picture = film[..., 0, :, :].permute(4, 0, 2, 5, 1, 3, 6)
        return picture.flatten(4).flatten(1, 3)[None]


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

    def own_problems(self, section: Mapping[str, Any], where: str) -> list[str]:
        """See `PatchedFamily.own_problems`."""
        found = super().own_problems(section, where)
        return found or list_problems(section, EVERYWHERE, where, layers=self.tower_layers)

    def vision_problems(self, config: Any, image_size: int | None, where: str) -> list[str]:
        """See `ModelClassFamily.vision_problems`."""
        problems = super().vision_problems(config, image_size, where)
        if not problems and not _window(config.vision_config):
            problems.append(
                f"{where}: vision_config.window_size: {config.vision_config.window_size} pixels are less "
                f"than a visual token's {self.cell(config)}"
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


def _window(vision: Any) -> int:
    """Side of a window in patches: as many whole visual tokens as fit."""
    merge = int(vision.spatial_merge_size)
    return int(vision.window_size // vision.patch_size // merge) * merge
