"""InternVL 3 and 3.5: a picture in up to twelve square tiles and the whole, four patches to a visual token.

Limitations: the hidden states behind the last layer of the tower of 300M parameters; no norms on its queries
and keys, no RMS norms in it; pictures alone, no videos.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from compressor.contract.choice import Front
from compressor.errors import ModelError
from compressor.facts import ModelFacts, TowerFacts, TowerWork
from compressor.families.base import VisionEncoder
from compressor.families.configuration import section_problems
from compressor.families.model_class.patch_states import PatchStates
from compressor.families.model_class.stored import COMPUTED
from compressor.families.model_class.tiled import TiledFamily
from compressor.families.model_class.tower import CHANNELS, activation_problems, head_problems
from compressor.families.pictures.processors import saved_steps
from compressor.families.pictures.steps import MAX_TILES, PictureSteps
from compressor.families.pictures.text import PictureText, TextRun
from compressor.schema.sections import ImageSection

COUNTS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

# What the configuration may say, and what alone is read.
ONLY: Mapping[str, tuple[Any, str]] = {
    "vision_feature_layer": (-1, "the states behind the last layer"),
    "vision_feature_select_strategy": ("default", "all states but the class token"),
}
ONLY_IN_TOWER: Mapping[str, tuple[Any, str]] = {
    "use_qk_norm": (False, "a tower without norms on queries and keys"),
    "norm_type": ("layer_norm", "layer norms"),
    "use_absolute_position_embeddings": (True, "learned positions"),
    "num_channels": (CHANNELS, "pictures of three channels"),
}

# The processor's class has it on, whatever the image processor's file says.
TILED = {"crop_to_patches": True}


class ShuffledTiles(VisionEncoder):
    """The tower's last states without the class token, four neighbours side by side, projected."""

    def __init__(self, config: Any, tower: Any, projector: Any, layers: str) -> None:
        super().__init__()
        self.vision_tower = tower
        self.multi_modal_projector = projector
        self.layers = layers
        vision = config.vision_config
        self.side = _side(vision.image_size) // _side(vision.patch_size)
        self.block = _block(config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map pixels of tiles [I, 3, S, S] to visual embeddings [I, N, D]."""
        tower = self._seen((), self.vision_tower(pixel_values).last_hidden_state)
        return tower.project(tower.patches())

    def front(self, pixel_values: Tensor) -> Front:
        """See `VisionEncoder.front`; the states of all layers stay in memory with it."""
        seen = self.vision_tower(pixel_values, output_hidden_states=True)
        tower = self._seen(seen.hidden_states, seen.last_hidden_state)
        return Front(tower.project(tower.patches()), tower=tower)

    def _seen(self, states: Sequence[Tensor], last: Tensor) -> PatchStates:
        return PatchStates(
            self.vision_tower.get_submodule(self.layers),
            states,
            last,
            1,
            self.multi_modal_projector,
            side=self.side,
            block=self.block,
            attention="attention",
            norm="layernorm_before",
        )


class InternVlFamily(TiledFamily):
    """`InternVLForConditionalGeneration` of transformers 5.

    Attributes:
        tower: `model_type` of the vision tower.
        layers: where the tower has its layers.
    """

    name = "internvl"
    model_types = ("internvl",)
    architecture = "InternVLForConditionalGeneration"
    image_processors = ("GotOcr2ImageProcessor",)
    token_keys = ("image_seq_length",)
    tower: ClassVar[str] = "internvl_vision"
    layers: ClassVar[str] = "encoder.layer"

    def problems(self, raw: Mapping[str, Any], where: str) -> list[str]:
        """See `Family.problems`."""
        return super().problems(raw, where) + _others(raw, ONLY, f"{where}: ")

    def tower_problems(self, section: Mapping[str, Any], where: str) -> list[str]:
        """See `ModelClassFamily.tower_problems`."""
        kind = section.get("model_type", self.tower)
        if kind != self.tower:
            return [
                f"{where}.model_type: {kind!r} is not supported; supported towers: {self.tower}"
            ]
        found = section_problems(section, where, counts=COUNTS, eps="layer_norm_eps")
        for key in ("image_size", "patch_size"):
            if key in section and _side(section[key]) < 1:
                found.append(
                    f"{where}.{key}: {section[key]!r} is not allowed; a number, 1 or more, or two equal"
                )
        found = found or head_problems(section, where)
        return found + _others(section, ONLY_IN_TOWER, f"{where}.")

    def vision_problems(self, config: Any, image_size: int | None, where: str) -> list[str]:
        """See `ModelClassFamily.vision_problems`."""
        vision = config.vision_config
        acts = {
            "vision_config.hidden_act": vision.hidden_act,
            "projector_hidden_act": config.projector_hidden_act,
        }
        size, patch, ratio = _side(vision.image_size), _side(vision.patch_size), _block(config)
        problems = activation_problems(acts, where) + self.size_problems(image_size, size)
        if not ratio or size % (patch * ratio):
            problems.append(
                f"{where}: downsample_ratio: {config.downsample_ratio!r} does not divide the tower's "
                f"{size // patch} x {size // patch} patches"
            )
        return problems

    def visual_grid(
        self, config: Any, image_size: int | None
    ) -> tuple[int, int, tuple[int, int] | None]:
        """See `ModelClassFamily.visual_grid`."""
        size = _side(config.vision_config.image_size)
        side = size // _side(config.vision_config.patch_size) // _block(config)
        return size, side**2, (side, side)

    def unread(self, config: Any) -> Callable[[str], bool]:
        """See `ModelClassFamily.unread`."""
        unread = re.compile(rf"{COMPUTED}|vision_tower\.embeddings\.mask_token$")
        return lambda name: bool(unread.search(name))

    def tower_facts(self, config: Any) -> TowerFacts:
        """See `ModelClassFamily.tower_facts`."""
        vision, hidden = config.vision_config, config.text_config.hidden_size
        patches = _block(config) ** 2
        return TowerFacts(
            patches=patches,
            class_token=True,
            layers=vision.num_hidden_layers,
            layers_read=self.layers_read(config),
            width=vision.hidden_size,
            work=TowerWork(
                patch=_side(vision.patch_size),
                intermediate=vision.intermediate_size,
                projector=(vision.hidden_size * patches, hidden, hidden),
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
        return ShuffledTiles(config, tower, projector, self.layers).eval()

    def projector(self, config: Any) -> Any:
        """Return a new projector of the configured shape."""
        from transformers.models.internvl.modeling_internvl import InternVLMultiModalProjector

        return InternVLMultiModalProjector(config)

    def processor_class(self) -> type | None:
        """See `Family.processor_class`."""
        from transformers import InternVLProcessor

        return InternVLProcessor

    def complete_processor(self, processor: Any, config: Any, saved: Mapping[str, Any]) -> None:
        """See `Family.complete_processor`."""
        if saved.get("image_seq_length") is None:
            processor.image_seq_length = self.visual_grid(config, None)[1]

    def picture_steps(self, saved: Mapping[str, Any], where: str) -> PictureSteps:
        """See `Family.picture_steps`."""
        return saved_steps({**saved, **TILED}, where)

    def picture_text(self, processor: Any) -> PictureText:
        """See `Family.picture_text`."""
        return TextRun(before=processor.start_image_token, after=processor.end_image_token)

    def within(self, budget: ImageSection, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Family.within`."""
        if budget.max_tiles is not None and budget.max_tiles > MAX_TILES:
            raise ModelError(
                [f"image.max_tiles: {budget.max_tiles} is too many; {MAX_TILES} are allowed"]
            )
        return {"max_patches": budget.max_tiles}

    def image_rows(
        self, processor: Any, sizes: Sequence[tuple[int, int]], facts: ModelFacts
    ) -> tuple[int, ...]:
        """See `Family.image_rows`."""
        tiles = processor.image_processor.get_number_of_image_patches
        return tuple(facts.tile_rows * tiles(height, width, TILED) for height, width in sizes)


def _side(size: Any) -> int:
    """Return the one number that a size or a pair of equal ones is; 0: it is neither."""
    sizes = tuple(size) if isinstance(size, list | tuple) else (size, size)
    plain = len(sizes) == 2 and all(type(one) is int for one in sizes)
    return int(sizes[0]) if plain and sizes[0] == sizes[1] else 0


def _block(config: Any) -> int:
    """Return the side of the square of patches that become one visual token; 0: the ratio is none."""
    ratio = config.downsample_ratio
    inverse = round(1 / ratio) if 0 < ratio <= 1 else 0
    return inverse if inverse and inverse * ratio == 1 else 0


def _others(
    section: Mapping[str, Any], only: Mapping[str, tuple[Any, str]], where: str
) -> list[str]:
    """Return a line for each key that has another value than the one that is read."""
    return [
        f"{where}{key}: {section[key]!r} is not supported; only {value!r} is, {words}"
        for key, (value, words) in only.items()
        if section.get(key) not in (None, value)
    ]
