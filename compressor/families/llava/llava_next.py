"""LLaVA-NeXT (1.6): the whole picture, then up to four tiles of it without the border that was padded."""

from typing import ClassVar

from compressor.families.llava.arranged import ArrangedFamily


class LlavaNextFamily(ArrangedFamily):
    """`LlavaNextForConditionalGeneration` of transformers 5; its projector is that of LLaVA."""

    name = "llava_next"
    model_types = ("llava_next",)
    architecture = "LlavaNextForConditionalGeneration"
    image_processors: ClassVar[tuple[str, ...]] = ("LlavaNextImageProcessor",)
