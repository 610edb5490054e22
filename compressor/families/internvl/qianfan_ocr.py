"""Qianfan-OCR: InternVL's tiles and tower in a class of their own, Qwen3's decoder.

Limitations: those of InternVL.
"""

from collections.abc import Mapping
from typing import Any

from compressor.errors import ModelError
from compressor.families.internvl.family import InternVlFamily


class QianfanOcrFamily(InternVlFamily):
    """`QianfanOCRForConditionalGeneration` of transformers 5."""

    name = "qianfan_ocr"
    model_types = ("qianfan_ocr",)
    architecture = "QianfanOCRForConditionalGeneration"
    tower = "qianfan_ocr_vision"
    layers = "layers"

    def projector(self, config: Any) -> Any:
        """See `InternVlFamily.projector`."""
        from transformers.models.qianfan_ocr.modeling_qianfan_ocr import (
            QianfanOCRMultiModalProjector,
        )

        return QianfanOCRMultiModalProjector(config)

    def processor_class(self) -> None:
        """See `Family.processor_class`: it has no part for videos."""

    def complete_processor(self, processor: Any, config: Any, saved: Mapping[str, Any]) -> None:
        """See `Family.complete_processor`.

        Its chat template writes another text for a picture than the image token. Both are made one, which the
        processor then takes in its place: what it encodes stays the same.
        """
        super().complete_processor(processor, config, saved)
        written, token = processor.image_placeholder_token, processor.image_token
        if not isinstance(written, str) or not written:
            raise ModelError(
                [
                    f"processor_config.json: image_placeholder_token: {written!r:.60} is not allowed; a "
                    "text: correct it"
                ]
            )
        template = processor.chat_template or processor.tokenizer.chat_template
        if isinstance(template, str):
            processor.chat_template = template.replace(written, token)
            processor.image_placeholder_token = token
