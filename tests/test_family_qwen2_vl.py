"""Qwen2-VL goes through the cases of every family: pictures of their own sizes, rows turned on three axes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.family_cases import FamilyCases
from tests.tiny_families import (
    TinyFamily,
    byte_tokenizer,
    template_of,
    text_section,
    write_model,
)

PATCH, MERGE = 4, 2
CELL = PATCH * MERGE
IMAGE = "<|image_pad|>"
TOKENS = (IMAGE, "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
LEAST, MOST = 4 * CELL**2, 48 * CELL**2
TURNED = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


def processor_of(kind: str, most: int = MOST) -> Any:
    """Return a processor without the part for videos that asks for torchvision."""
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    whole = getattr(transformers, kind)

    class Processor(whole):  # type: ignore[misc, valid-type]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

    Processor.__name__ = kind
    return Processor(
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=PATCH,
            merge_size=MERGE,
            size={"shortest_edge": LEAST, "longest_edge": most},
        ),
        tokenizer=byte_tokenizer(*TOKENS),
        chat_template=template_of("<|vision_start|>" + IMAGE + "<|vision_end|>"),
    )


def whole(made: Any) -> np.ndarray:
    """Return a picture [1, 3, H, W] that the processor cut into patches, block by block."""
    ((_, high, wide),) = made["image_grid_thw"].tolist()
    patches = made["pixel_values"].reshape(-1, 3, 2, PATCH, PATCH)
    assert np.array_equal(patches[:, :, 0], patches[:, :, 1])  # a film of two equal frames
    picture = np.zeros((1, 3, high * PATCH, wide * PATCH), np.float32)
    blocks = ((row, column) for row in range(0, high, MERGE) for column in range(0, wide, MERGE))
    cells = [
        (row + y, column + x) for row, column in blocks for y in range(MERGE) for x in range(MERGE)
    ]
    for (y, x), patch in zip(cells, patches[:, :, 0], strict=True):
        picture[0, :, y * PATCH : (y + 1) * PATCH, x * PATCH : (x + 1) * PATCH] = patch
    return picture


def maker(name: str, vision: dict[str, Any], **text: Any) -> Callable[[Path], None]:
    """Return what writes a tiny model.

    Args:
        name: how its classes begin.
        vision: keys of its tower.
        text: keys of its decoder, in place of those of `text_section`.
    """

    def make(folder: Path) -> None:
        import transformers

        processor = processor_of(f"{name}Processor")
        ids = dict(
            zip(TOKENS, processor.tokenizer.convert_tokens_to_ids(list(TOKENS)), strict=True)
        )
        config = getattr(transformers, f"{name}Config")(
            vision_config={
                "depth": 4,
                "num_heads": 2,
                "patch_size": PATCH,
                "spatial_merge_size": MERGE,
                **vision,
            },
            text_config=text_section(**{"rope_parameters": TURNED} | text),
            image_token_id=ids[IMAGE],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
            tie_word_embeddings=False,
        )
        kind = getattr(transformers, f"{name}ForConditionalGeneration")
        write_model(kind, config, processor, folder)

    return make


class TestQwen2Vl(FamilyCases):
    family = TinyFamily(
        "qwen2_vl",
        maker("Qwen2VL", {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}),
        grid=None,
        pixels=whole,
    )
