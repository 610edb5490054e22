"""LLaVA 1.5: the features of one layer or several, with or without the class token, and two Linears."""

from collections.abc import Mapping
from typing import Any

from compressor.families.llava.tower_family import TowerFamily

STRATEGY = "vision_feature_select_strategy"
STRATEGIES = ("default", "full")


class LlavaFamily(TowerFamily):
    """`LlavaForConditionalGeneration` of transformers 5."""

    name = "llava"
    model_types = ("llava",)
    architecture = "LlavaForConditionalGeneration"

    def problems(self, raw: Mapping[str, Any], where: str) -> list[str]:
        """See `Family.problems`."""
        found = super().problems(raw, where)
        strategy = raw.get(STRATEGY, STRATEGIES[0])
        if strategy not in STRATEGIES:
            found.append(
                f"{where}: {STRATEGY}: {strategy!r} is not supported; supported: {', '.join(STRATEGIES)}"
            )
        return found

    def projector(self, config: Any) -> Any:
        """See `TowerFamily.projector`."""
        from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

        return LlavaMultiModalProjector(config)

    def drops_first(self, config: Any) -> bool:
        """See `TowerFamily.drops_first`."""
        return bool(getattr(config, STRATEGY) == STRATEGIES[0])
