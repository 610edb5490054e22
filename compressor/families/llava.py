"""LLaVA 1.5 and its like: CLIP or SigLIP tower, two-layer projector, Llama-like decoder.

Limitations: one fixed square image size; image features are inserted at the image tokens, one block of N
tokens an image.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from compressor.dims import ModelFacts, SourceDType
from compressor.errors import ModelError
from compressor.families.base import Family, VisionEncoder
from compressor.families.text import decoder_dims

TOWERS = ("clip_vision_model", "siglip_vision_model")


class LlavaVisionEncoder(VisionEncoder):
    """Hidden states of the tower at the configured layers, class token dropped, projected."""

    def __init__(self, config: Any, tower: Any, projector: Any, image_size: int) -> None:
        super().__init__()
        self.vision_tower = tower
        self.multi_modal_projector = projector
        layers = config.vision_feature_layer
        self.feature_layers = (layers,) if isinstance(layers, int) else tuple(layers)
        self.first = 1 if config.vision_feature_select_strategy == "default" else 0
        # Only away from the native size: interpolation of position embeddings costs accuracy.
        self.interpolate = image_size != config.vision_config.image_size

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map pixels [I, 3, S, S] to visual embeddings [I, N, D]."""
        states = self.vision_tower(
            pixel_values,
            output_hidden_states=True,
            interpolate_pos_encoding=self.interpolate,
        ).hidden_states
        features = [states[layer][:, self.first :] for layer in self.feature_layers]
        embeds: Tensor = self.multi_modal_projector(torch.cat(features, dim=-1))
        return embeds


class LlavaFamily(Family):
    """`LlavaForConditionalGeneration` of transformers 5."""

    name = "llava"
    model_types = ("llava",)

    def facts(self, config: Any, name: str, *, image_size: int | None = None) -> ModelFacts:
        """See `Family.facts`."""
        where = f"{name}/config.json"
        vision, text = config.vision_config, config.text_config
        problems = []
        if vision.model_type not in TOWERS:
            problems.append(
                f"{where}: vision_config.model_type: {vision.model_type!r} is not supported; "
                f"supported towers: {', '.join(TOWERS)}"
            )
        size = image_size or vision.image_size
        if size % vision.patch_size:
            problems.append(
                f"{where}: an image size of {size} is no multiple of the tower's patch size "
                f"{vision.patch_size}; the tower's own size is {vision.image_size}"
            )
        tied = bool(config.tie_word_embeddings)
        try:
            dims = decoder_dims(text, tied=tied, where=f"{where}: text_config")
        except ModelError as error:
            raise ModelError([*problems, *error.problems]) from None
        if problems:
            raise ModelError(problems)
        side = size // vision.patch_size
        patches = side**2
        class_token = _has_class_token(vision)
        dropped = config.vision_feature_select_strategy == "default"
        visual_tokens = patches + int(class_token) - int(dropped)
        return ModelFacts(
            name=name,
            family=self.name,
            architecture=f"{config.architectures[0] if config.architectures else 'Llava'} "
            f"({vision.model_type}, {text.model_type})",
            decoder=dims,
            visual_tokens=visual_tokens,
            # With a class token among them, or a patch dropped, rows do not line up.
            token_grid=(side, side) if visual_tokens == patches else None,
            image_size=size,
            image_token_id=config.image_token_id,
            eos_token_ids=(),  # what `describe` reads: more files than this configuration decide
            dtype=cast("SourceDType", str(config.dtype or "float32").removeprefix("torch.")),
        )

    def original(self, folder: Path, config: Any, dtype: Any) -> Any:
        """See `Family.original`."""
        from transformers import LlavaForConditionalGeneration

        return LlavaForConditionalGeneration.from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, local_files_only=True
        ).eval()

    def vision(self, config: Any, *, image_size: int, source: Any = None) -> VisionEncoder:
        """See `Family.vision`."""
        if source is not None:
            tower, projector = source.model.vision_tower, source.model.multi_modal_projector
        else:
            from transformers import AutoModel
            from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

            tower = AutoModel.from_config(config.vision_config)
            projector = LlavaMultiModalProjector(config)
        return LlavaVisionEncoder(config, tower, projector, image_size).eval()

    def tensors(self, original: Any) -> Mapping[str, Tensor]:
        """See `Family.tensors`."""
        tensors = dict(original.model.language_model.state_dict())
        tensors["lm_head.weight"] = original.lm_head.weight.detach()
        return tensors

    def complete_processor(self, processor: Any, config: Any, saved: Mapping[str, Any]) -> None:
        """See `Family.complete_processor`."""
        of_model = {
            "patch_size": config.vision_config.patch_size,
            "vision_feature_select_strategy": config.vision_feature_select_strategy,
            "num_additional_image_tokens": int(_has_class_token(config.vision_config)),
        }
        for key, value in of_model.items():
            if saved.get(key) is None:
                setattr(processor, key, value)

    def resize_processor(self, processor: Any, image_size: int) -> None:
        """See `Family.resize_processor`."""
        images = processor.image_processor
        square = {"height": image_size, "width": image_size}
        keeps_aspect = "shortest_edge" in dict(images.size)
        images.size = {"shortest_edge": image_size} if keeps_aspect else square
        if getattr(images, "crop_size", None):
            images.crop_size = square


def _has_class_token(vision: Any) -> bool:
    """Whether a tower has one state more than patches, in front of them."""
    return bool(vision.model_type == "clip_vision_model")
