"""LLaVA goes through the cases of every family."""

from pathlib import Path
from typing import Any

from tests.family_cases import FamilyCases
from tests.tiny_families import (
    IMAGE,
    PATCH,
    SIDE,
    TinyFamily,
    byte_tokenizer,
    clip_section,
    template_of,
    text_section,
    write_model,
)


def processor_of(strategy: str) -> Any:
    """Return LLaVA's processor for a CLIP tower."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    square = {"height": SIDE, "width": SIDE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square),
        tokenizer=byte_tokenizer(IMAGE),
        patch_size=PATCH,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
        chat_template=template_of(IMAGE),
    )


def make(folder: Path) -> None:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    processor = processor_of("default")
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **clip_section()},
        text_config={"model_type": "llama", **text_section()},
        image_token_index=processor.tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    write_model(LlavaForConditionalGeneration, config, processor, folder)


class TestLlava(FamilyCases):
    family = TinyFamily("llava", make, grid=(SIDE // PATCH, SIDE // PATCH))
