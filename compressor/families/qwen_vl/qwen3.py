"""Qwen3-VL: as Qwen2-VL, and rows of inner layers of the tower go to the decoder's first layers (deepstack).

They are added to the visual rows behind those layers. Rows are turned by time, row and column, which take
frequencies by turns.

Limitations: those of `compressor.families.qwen_vl.family`, and no one size for all pictures.
"""

import math
from collections.abc import Mapping
from typing import Any

from compressor.facts import ModelFacts
from compressor.families.base import VisionEncoder
from compressor.families.configuration import list_problems
from compressor.families.model_class.patched import PatchedFamily
from compressor.families.qwen_vl.family import QwenVlFamily
from compressor.families.qwen_vl.tower import DeepPatchGrid

INNER = "deepstack_visual_indexes"
PLACES = "num_position_embeddings"


class Qwen3VlFamily(QwenVlFamily):
    """`Qwen3VLForConditionalGeneration` of transformers 5."""

    budget_keys = PatchedFamily.budget_keys
    no_grid = PatchedFamily.no_grid
    name = "qwen3_vl"
    model_types = ("qwen3_vl",)
    decoders = ("qwen3_vl_text",)
    architecture = "Qwen3VLForConditionalGeneration"
    tower = "qwen3_vl_vision"
    width = "hidden_size"
    counts = (
        *("depth", "hidden_size", "intermediate_size", "out_hidden_size", "num_heads", PLACES),
        *("patch_size", "spatial_merge_size", "temporal_patch_size"),
    )
    processor = "Qwen3VLProcessor"

    def own_problems(self, section: Mapping[str, Any], where: str) -> list[str]:
        """See `PatchedFamily.own_problems`."""
        found = super().own_problems(section, where)
        return found or list_problems(section, INNER, where, layers=self.tower_layers)

    def vision_problems(self, config: Any, image_size: int | None, where: str) -> list[str]:
        """See `ModelClassFamily.vision_problems`."""
        problems, vision = super().vision_problems(config, image_size, where), config.vision_config
        places = vision.num_position_embeddings
        if math.isqrt(places) ** 2 != places:
            problems.append(
                f"{where}: vision_config.{PLACES}: {places} is no square number, and places are learned for "
                "a square grid"
            )
        return problems

    def facts(self, config: Any, name: str, **options: Any) -> ModelFacts:
        """See `Family.facts`."""
        facts = super().facts(config, name, **options)
        inner = len(config.vision_config.deepstack_visual_indexes)
        decoder = facts.decoder.model_copy(update={"deepstack": inner})
        return facts.model_copy(update={"decoder": decoder})

    def tower_class(self) -> Any:
        """See `QwenVlFamily.tower_class`."""
        from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

        return Qwen3VLVisionModel

    def encoder(self, tower: Any) -> VisionEncoder:
        """See `QwenVlFamily.encoder`."""
        return DeepPatchGrid(tower)
