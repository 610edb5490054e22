"""What LLaVA 1.5 and its like share: projected hidden states of a CLIP or SigLIP tower, a Llama-like decoder.

Limitations: one fixed square image size; image features are inserted at the image tokens, one block of N
tokens an image.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from compressor.contract.choice import Front
from compressor.facts import TowerFacts, TowerWork
from compressor.families.base import VisionEncoder
from compressor.families.llava.config import (
    feature_layers,
    has_class_token,
    tower_problems,
    unread_of,
    vision_problems,
)
from compressor.families.model_class.family import ModelClassFamily
from compressor.families.model_class.patch_states import PatchStates


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
        self.side = image_size // config.vision_config.patch_size
        # Only away from the native size: interpolation of position embeddings costs accuracy.
        self.interpolate = image_size != config.vision_config.image_size

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map pixels [I, 3, S, S] to visual embeddings [I, N, D]."""
        return self.front(pixel_values).features

    def front(self, pixel_values: Tensor) -> Front:
        """See `VisionEncoder.front`."""
        states = self.vision_tower(
            pixel_values,
            output_hidden_states=True,
            interpolate_pos_encoding=self.interpolate,
        ).hidden_states
        taken = torch.cat([states[layer] for layer in self.feature_layers], dim=-1)
        tower = PatchStates(
            self.vision_tower.encoder.layers,
            states,
            taken,
            self.first,
            self.multi_modal_projector,
            side=self.side,
        )
        return Front(tower.project(tower.patches()), tower=tower)


class TowerFamily(ModelClassFamily):
    """A family of a CLIP or SigLIP tower: its class and its projector tell nearly all."""

    image_id_key = "image_token_index"
    image_processors: ClassVar[tuple[str, ...]] = ("CLIPImageProcessor", "SiglipImageProcessor")
    token_keys: ClassVar[tuple[str, ...]] = (
        *("patch_size", "vision_feature_select_strategy"),
        "num_additional_image_tokens",
    )

    @abstractmethod
    def projector(self, config: Any) -> Any:
        """Return a new projector of the configured shape."""

    def drops_first(self, config: Any) -> bool:
        """Whether the first state, a class token where there is one, is no visual token."""
        return True

    def tower_problems(self, section: Mapping[str, Any], where: str) -> list[str]:
        """See `ModelClassFamily.tower_problems`."""
        return tower_problems(section, where)

    def vision_problems(self, config: Any, image_size: int | None, where: str) -> list[str]:
        """See `ModelClassFamily.vision_problems`."""
        return vision_problems(config, image_size, where)

    def visual_grid(
        self, config: Any, image_size: int | None
    ) -> tuple[int, int, tuple[int, int] | None]:
        """See `ModelClassFamily.visual_grid`."""
        vision = config.vision_config
        size = image_size or vision.image_size
        # The patches that fit: what is left at the right and below is not looked at, as the tower does it.
        side = size // vision.patch_size
        patches = side**2
        tokens = patches + int(has_class_token(vision)) - int(self.drops_first(config))
        # With a class token among them, or a patch dropped, rows do not line up.
        return size, tokens, (side, side) if tokens == patches else None

    def unread(self, config: Any) -> Callable[[str], bool]:
        """See `ModelClassFamily.unread`."""
        return unread_of(config)

    def layers_read(self, config: Any) -> int:
        """See `ModelClassFamily.layers_read`."""
        states: int = config.vision_config.num_hidden_layers + 1
        return max(layer % states for layer in feature_layers(config))

    def tower_facts(self, config: Any) -> TowerFacts:
        """See `ModelClassFamily.tower_facts`."""
        vision, hidden = config.vision_config, config.text_config.hidden_size
        taken = vision.hidden_size * len(feature_layers(config))
        return TowerFacts(
            class_token=has_class_token(vision),
            layers=vision.num_hidden_layers,
            layers_read=self.layers_read(config),
            width=vision.hidden_size,
            work=TowerWork(
                patch=vision.patch_size,
                intermediate=vision.intermediate_size,
                projector=(taken, hidden, hidden),
            ),
        )

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

    def resize_processor(self, processor: Any, image_size: int) -> None:
        """See `Family.resize_processor`."""
        images = processor.image_processor
        square = {"height": image_size, "width": image_size}
        keeps_aspect = "shortest_edge" in dict(images.size)
        images.size = {"shortest_edge": image_size} if keeps_aspect else square
        if getattr(images, "crop_size", None):
            images.crop_size = square
