"""What LLaVA 1.5 and its like share: projected hidden states of a CLIP or SigLIP tower, a Llama-like decoder.

Limitations: one fixed square image size; image features are inserted at the image tokens, one block of N
tokens an image.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast, get_args

import torch
from torch import Tensor

from compressor.errors import ModelError
from compressor.facts import ModelFacts, SourceDType
from compressor.families.base import Family, VisionEncoder
from compressor.families.checkpoint import Header, check_complete, check_finite, opened_weights
from compressor.families.configuration import CONVERTED
from compressor.families.guard import reading
from compressor.families.image_processors import saved_steps
from compressor.families.llama_text import TEXT_MODEL_TYPES, decoder_dims, text_problems
from compressor.families.llava.config import (
    feature_layers,
    has_class_token,
    image_token_problems,
    tower_problems,
    vision_problems,
)
from compressor.families.llava.weights import check_stored, unread_of
from compressor.families.picture_steps import PictureSteps

DTYPES = get_args(SourceDType)


class ProjectedStates(VisionEncoder):
    """Hidden states of the tower at the configured layers, side by side, projected."""

    def __init__(
        self, config: Any, tower: Any, projector: Any, *, image_size: int, first: int
    ) -> None:
        super().__init__()
        self.vision_tower = tower
        self.multi_modal_projector = projector
        self.feature_layers = feature_layers(config)
        self.first = first
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


class TowerFamily(Family):
    """A family of which a class of transformers and its projector tell nearly all.

    Attributes:
        architecture: name of transformers' class.
    """

    architecture: ClassVar[str]
    decoders = TEXT_MODEL_TYPES

    @abstractmethod
    def projector(self, config: Any) -> Any:
        """Return a new projector of the configured shape."""

    def drops_first(self, config: Any) -> bool:  # noqa: ARG002 - for those that may ask for it
        """Whether the first state, a class token where there is one, is no visual token."""
        return True

    def problems(self, raw: Mapping[str, Any], where: str) -> list[str]:
        """See `Family.problems`."""
        found = []
        named = raw.get("architectures")
        if named and not (isinstance(named, list) and self.architecture in named):
            found.append(
                f"{where}: architectures: {named!r} is not supported; only {self.architecture} is: "
                f"{CONVERTED}"
            )
        for key, problems in (("vision_config", tower_problems), ("text_config", text_problems)):
            section, place = raw.get(key, {}), f"{where}: {key}"
            if isinstance(section, dict):
                found += problems(section, place)
            else:
                found.append(f"{place}: {section!r} is no section of a configuration")
        return found + image_token_problems(raw, where)

    def facts(
        self,
        config: Any,
        name: str,
        *,
        where: str = "config.json",
        image_size: int | None = None,
        tied: bool | None = None,
    ) -> ModelFacts:
        """See `Family.facts`."""
        vision, text = config.vision_config, config.text_config
        problems = vision_problems(config, image_size, where)
        tied = bool(config.tie_word_embeddings) if tied is None else tied
        dtype = str(config.dtype or "float32").removeprefix("torch.")
        if dtype not in DTYPES:
            problems.append(
                f"{where}: dtype: {dtype!r} is not supported; supported: {', '.join(DTYPES)}"
            )
        try:
            dims = decoder_dims(text, tied=tied, where=f"{where}: text_config")
        except ModelError as error:
            raise ModelError([*problems, *error.problems]) from None
        if problems:
            raise ModelError(problems)
        size = image_size or vision.image_size
        # The patches that fit: what is left at the right and below is not looked at, as the tower does it.
        side = size // vision.patch_size
        patches = side**2
        visual_tokens = patches + int(has_class_token(vision)) - int(self.drops_first(config))
        return ModelFacts(
            name=name,
            family=self.name,
            architecture=f"{self.architecture} ({vision.model_type}, {text.model_type})",
            decoder=dims,
            visual_tokens=visual_tokens,
            # With a class token among them, or a patch dropped, rows do not line up.
            token_grid=(side, side) if visual_tokens == patches else None,
            image_size=size,
            image_token_id=config.image_token_id,
            eos_token_ids=(),  # what `describe` reads: more files than this configuration decide
            dtype=cast("SourceDType", dtype),
        )

    def check_stored(
        self, config: Any, folder: Path, stored: Mapping[str, Header], names: Iterable[str]
    ) -> None:
        """See `Family.check_stored`."""
        check_stored(self._class, config, folder, stored, names)

    def original(self, folder: Path, config: Any, dtype: Any) -> Any:
        """See `Family.original`."""
        unread = unread_of(config)
        # The files are opened here and not by transformers, which a configuration can lead elsewhere.
        with opened_weights(folder) as stored, reading(folder, "the weights"):
            loaded: Any = self._class.from_pretrained(
                None,
                config=config,
                state_dict=stored,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, with all that is wrong
            )
        model, info = loaded
        check_complete(info, folder, unread)
        check_finite(model.state_dict(), folder, unread)
        return model.eval()

    def vision(self, config: Any, *, image_size: int, source: Any = None) -> VisionEncoder:
        """See `Family.vision`."""
        if source is not None:
            tower, projector = source.model.vision_tower, source.model.multi_modal_projector
        else:
            from transformers import AutoModel

            tower = AutoModel.from_config(config.vision_config)
            projector = self.projector(config)
        first = int(self.drops_first(config))
        return ProjectedStates(config, tower, projector, image_size=image_size, first=first).eval()

    def tensors(self, original: Any) -> Mapping[str, Tensor]:
        """See `Family.tensors`."""
        tensors = dict(original.model.language_model.state_dict())
        tensors["lm_head.weight"] = original.lm_head.weight.detach()
        return tensors

    def complete_processor(self, processor: Any, config: Any, saved: Mapping[str, Any]) -> None:
        """See `Family.complete_processor`."""
        of_model = {
            "patch_size": config.vision_config.patch_size,
            "vision_feature_select_strategy": "default" if self.drops_first(config) else "full",
            "num_additional_image_tokens": int(has_class_token(config.vision_config)),
        }
        for key, value in of_model.items():
            if saved.get(key) is None:
                setattr(processor, key, value)

    def picture_steps(self, saved: Mapping[str, Any], where: str) -> PictureSteps:
        """See `Family.picture_steps`."""
        return saved_steps(saved, where)

    def resize_processor(self, processor: Any, image_size: int) -> None:
        """See `Family.resize_processor`."""
        images = processor.image_processor
        square = {"height": image_size, "width": image_size}
        keeps_aspect = "shortest_edge" in dict(images.size)
        images.size = {"shortest_edge": image_size} if keeps_aspect else square
        if getattr(images, "crop_size", None):
            images.crop_size = square

    @property
    def _class(self) -> Any:
        import transformers

        return getattr(transformers, self.architecture)
