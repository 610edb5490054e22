"""ViP-LLaVA: features of five layers without the class token, normalised, and two Linears."""

from collections.abc import Mapping
from typing import Any

from compressor.families.configuration import eps_problems
from compressor.families.llava.tower_family import TowerFamily

EPS = "projector_layernorm_eps"


class VipLlavaFamily(TowerFamily):
    """`VipLlavaForConditionalGeneration` of transformers 5."""

    name = "vipllava"
    model_types = ("vipllava",)
    architecture = "VipLlavaForConditionalGeneration"

    def problems(self, raw: Mapping[str, Any], where: str) -> list[str]:
        """See `Family.problems`."""
        return super().problems(raw, where) + eps_problems(raw.get(EPS, 0.0), f"{where}: {EPS}")

    def projector(self, config: Any) -> Any:
        """See `TowerFamily.projector`."""
        from transformers.models.vipllava.modeling_vipllava import VipLlavaMultiModalProjector

        return VipLlavaMultiModalProjector(config)
