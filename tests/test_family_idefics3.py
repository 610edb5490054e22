"""Idefics3 goes through the cases of every family; what it shares with SmolVLM is tested there."""

from pathlib import Path

from tests.family_cases import FamilyCases
from tests.test_family_smolvlm import GRID, images_of, sections, tokenizer
from tests.tiny_families import IMAGE, TinyFamily, template_of, write_model


def make(folder: Path) -> None:
    """Write a model whose head is no embedding, as that of 8B."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    processor = Idefics3Processor(
        images_of(Idefics3ImageProcessorPil),
        tokenizer(),
        image_seq_len=GRID**2,
        chat_template=template_of(IMAGE),
    )
    token = processor.tokenizer.convert_tokens_to_ids(IMAGE)
    config = Idefics3Config(**sections() | {"tie_word_embeddings": False}, image_token_id=token)
    write_model(Idefics3ForConditionalGeneration, config, processor, folder)


class TestIdefics3(FamilyCases):
    family = TinyFamily("idefics3", make, grid=(GRID, GRID), layers="model.text_model.layers")
