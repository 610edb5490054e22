"""SmolVLM's processor of transformers, without what its class asks for on account of videos."""

from typing import Any

from transformers.models.smolvlm import processing_smolvlm
from transformers.processing_utils import ProcessorMixin


class PictureProcessor(processing_smolvlm.SmolVLMProcessor):
    """Prepares text and pictures as `SmolVLMProcessor` does; it refuses videos."""

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        video_processor: Any = None,
        image_seq_len: int = 169,
        chat_template: str | None = None,
        **others: Any,
    ) -> None:
        # The class wants a package that spells how many frames a video has, for pictures too.
        names = vars(processing_smolvlm)
        spell = names["num2words"]
        names["num2words"] = spell or str
        try:
            super().__init__(
                image_processor, tokenizer, video_processor, image_seq_len, chat_template, **others
            )
        finally:
            names["num2words"] = spell

    def apply_chat_template(self, *conversation: Any, **options: Any) -> Any:
        """Do what every processor does; the class would ask the part for videos for its frames."""
        return ProcessorMixin.apply_chat_template(self, *conversation, **options)


PictureProcessor.__name__ = "SmolVLMProcessor"  # which `save_pretrained` writes
