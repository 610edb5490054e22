"""LLaVA-OneVision: one picture as in LLaVA-NeXT, of large ones fewer rows; each of several as one square.

Limitations: pictures alone, no videos. Several pictures of a prompt are read otherwise than one alone, so
what was computed of a picture cannot be kept when another one comes.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from compressor.arrangement import Arrangement
from compressor.facts import ModelFacts
from compressor.families.llava.arranged import ArrangedFamily
from compressor.families.pictures.processors import steps_beside_others
from compressor.families.pictures.steps import PictureSteps

ASPECT = "vision_aspect_ratio"
FITTED = re.compile(r"anyres_max_([1-9]\d*)")


class LlavaOnevisionFamily(ArrangedFamily):
    """`LlavaOnevisionForConditionalGeneration` of transformers 5; its projector is that of LLaVA."""

    name = "llava_onevision"
    model_types = ("llava_onevision",)
    architecture = "LlavaOnevisionForConditionalGeneration"
    image_processors: ClassVar[tuple[str, ...]] = ("LlavaOnevisionImageProcessor",)
    token_keys = ("num_image_tokens", "vision_feature_select_strategy", ASPECT)

    def problems(self, raw: Mapping[str, Any], where: str) -> list[str]:
        """See `Family.problems`."""
        found, aspect = super().problems(raw, where), raw.get(ASPECT)
        if aspect is not None and _most_tiles(aspect) is None:
            found.append(
                f"{where}: {ASPECT}: {aspect!r} is not supported; anyres_max_ and a number of tiles is"
            )
        return found

    def shrunk_beyond(self, config: Any) -> int | None:
        """See `ArrangedFamily.shrunk_beyond`."""
        return _most_tiles(config.vision_aspect_ratio)

    def steps_beside_others(self, saved: Mapping[str, Any], where: str) -> PictureSteps | None:
        """See `Family.steps_beside_others`."""
        return steps_beside_others(saved, where)

    def processor_class(self) -> type:
        """See `Family.processor_class`."""
        from transformers import LlavaOnevisionProcessor

        return LlavaOnevisionProcessor

    def complete_processor(self, processor: Any, config: Any, saved: Mapping[str, Any]) -> None:
        """See `Family.complete_processor`."""
        super().complete_processor(processor, config, saved)
        of_model = {
            "num_image_tokens": self.visual_grid(config, None)[1],
            ASPECT: config.vision_aspect_ratio,
        }
        for key, value in of_model.items():
            if saved.get(key) is None:
                setattr(processor, key, value)

    def arrangements(
        self, processor: Any, sizes: Sequence[tuple[int, int]], facts: ModelFacts
    ) -> tuple[Arrangement, ...] | None:
        """See `Family.arrangements`."""
        if facts.arrangement is not None and len(sizes) > 1:
            return (facts.arrangement.of_whole(),) * len(sizes)
        return super().arrangements(processor, sizes, facts)


def _most_tiles(aspect: Any) -> int | None:
    """Return of how many tiles a grid may have the cells; None: an aspect ratio does not tell."""
    found = FITTED.fullmatch(aspect) if isinstance(aspect, str) else None
    return int(found[1]) if found else None
