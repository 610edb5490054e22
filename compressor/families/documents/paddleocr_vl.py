"""PaddleOCR-VL: pictures as Qwen2-VL takes them, through a tower like SigLIP's, and a Llama-like decoder.

Places of patches are learned for one square grid, stretched over that of each picture, and told by rotations
as well. Rows of the decoder are turned by time, row and column, in sections of the frequencies.

Limitations: those of `compressor.families.qwen_vl.family`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from compressor.families.base import VisionEncoder
from compressor.families.model_class.patched import PatchedFamily
from compressor.families.model_class.patches import head_width_problems, rotations, squares, turned
from compressor.families.model_class.stored import COMPUTED
from compressor.families.model_class.tower import square_tower_problems


class PlacedPatchGrid(VisionEncoder):
    """The tower on whole pictures of one size, which the batch axis keeps apart, and the projector."""

    def __init__(self, config: Any, tower: Any, projector: Any) -> None:
        super().__init__()
        self.visual, self.projector = tower, projector
        vision = config.vision_config
        self.heads, self.merge = vision.num_attention_heads, vision.spatial_merge_size
        self.side = vision.image_size // vision.patch_size
        half = vision.hidden_size // self.heads // 2
        theta = vision.rope_parameters["rope_theta"]
        self.speeds = tuple(theta ** (-i / half) for i in range(0, half, 2))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map pixels [I, 3, H, W] to visual embeddings [I, N, D]."""
        tower = self.visual.vision_model
        patches = tower.embeddings.patch_embedding(pixel_values)  # [I, C, h, w]
        high, wide = grid = patches.shape[2:]
        table = tower.embeddings.position_embedding.weight.unflatten(0, (1, self.side, self.side))
        patches = patches + F.interpolate(table.permute(0, 3, 1, 2), (high, wide), mode="bilinear")
        rows = patches.flatten(2).transpose(1, 2)  # [I, h * w, C]
        turns = rotations((high, wide), self.speeds, self.speeds, rows)
        for layer in tower.encoder.layers:
            rows = rows + self._attended(layer.self_attn, layer.layer_norm1(rows), turns)
            rows = rows + layer.mlp(layer.layer_norm2(rows))
        rows = self.projector.pre_norm(tower.post_layernorm(rows))
        joined = squares(rows.unflatten(1, grid), self.merge).flatten(3).flatten(1, 2)
        embeds: Tensor = self.projector.linear_2(
            self.projector.act(self.projector.linear_1(joined))
        )
        return embeds

    def _attended(self, attention: Any, normed: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """Let patches [I, h * w, C] of a picture read each other."""
        query, key, value = (
            projection(normed).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed = F.scaled_dot_product_attention(turned(query, *turns), turned(key, *turns), value)
        attended: Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
        return attended


class PaddleOcrVlFamily(PatchedFamily):
    """`PaddleOCRVLForConditionalGeneration` of transformers 5."""

    name = "paddleocr_vl"
    model_types = ("paddleocr_vl",)
    decoders = ("paddleocr_vl_text",)
    architecture = "PaddleOCRVLForConditionalGeneration"
    tower = "paddleocr_vl_vision"
    processor = "PaddleOCRVLProcessor"
    image_processors = ("PaddleOCRVLImageProcessor",)

    def own_problems(self, section: Mapping[str, Any], where: str) -> list[str]:
        """See `PatchedFamily.own_problems`."""
        found = square_tower_problems(section, where, more=("spatial_merge_size",))
        return found or head_width_problems(section, where, "hidden_size", "num_attention_heads")

    def patching(self, vision: Any) -> Mapping[str, int]:
        """See `PatchedFamily.patching`."""
        return {
            "patch_size": vision.patch_size,
            "merge_size": vision.spatial_merge_size,
            "temporal_patch_size": 1,
        }

    def unread(self, config: Any) -> Callable[[str], bool]:
        """See `ModelClassFamily.unread`."""
        unread = re.compile(
            rf"{COMPUTED}|rotary_pos_emb\.inv_freq$|packing_position_embedding|vision_model\.head\."
        )
        return lambda name: bool(unread.search(name))

    def vision(self, config: Any, *, image_size: int, source: Any = None) -> VisionEncoder:
        """See `Family.vision`."""
        if source is not None:
            tower, projector = source.model.visual, source.model.projector
        else:
            from transformers.models.paddleocr_vl import modeling_paddleocr_vl as theirs

            tower = theirs.PaddleOCRVisionModel(config.vision_config)
            projector = theirs.PaddleOCRProjector(config)
        return PlacedPatchGrid(config, tower, projector).eval()

    def laid_out(self, patches: Tensor, grid: tuple[int, int], merge: int, side: int) -> Tensor:
        """See `PatchedFamily.laid_out`; patches come row by row."""
        lines = patches.unflatten(0, (grid[0] * merge, grid[1] * merge))  # [h, w, 3, side, side]
        picture: Tensor = lines.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
        return picture[None]
