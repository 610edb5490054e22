"""LLaVA goes through the cases of every family."""

from pathlib import Path

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


def make(folder: Path) -> None:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = byte_tokenizer(IMAGE)
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **clip_section()},
        text_config={"model_type": "llama", **text_section()},
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    square = {"height": SIDE, "width": SIDE}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template_of(IMAGE),
    )
    write_model(LlavaForConditionalGeneration, config, processor, folder)


class TestLlava(FamilyCases):
    family = TinyFamily("llava", make, grid=(SIDE // PATCH, SIDE // PATCH))
