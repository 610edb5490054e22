"""Idefics3 and SmolVLM: rows of square tiles and the whole picture, blocks of patches as one visual token.

Limitations: tiles as large as the tower's own pictures; pictures alone, no videos. transformers leaves out
tiles whose pixels are all zero, as padding, and then fails for want of them; here they are tiles like others.
"""

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from compressor.contract.choice import Front
from compressor.errors import ModelError
from compressor.facts import ModelFacts, TowerFacts, TowerWork
from compressor.families.base import VisionEncoder
from compressor.families.model_class.patch_states import PatchStates
from compressor.families.model_class.stored import COMPUTED
from compressor.families.model_class.tiled import TiledFamily
from compressor.families.model_class.tower import (
    CHANNELS,
    activation_problems,
    square_tower_problems,
)
from compressor.families.pictures.processors import values_of
from compressor.families.pictures.sizes import tile_count, tile_grid
from compressor.families.pictures.steps import MAX_SIDE, CutTiles
from compressor.families.pictures.text import PictureText, TileRows
from compressor.families.told import IMAGE_FILE
from compressor.schema.sections import ImageSection


class JoinedPatches(VisionEncoder):
    """The tower's last states, normalised, squares of neighbours side by side, projected.

    All tiles are as large, so the rows of the table of positions that patches get are the same for each. They
    are taken from transformers' own module, and the graph needs neither masks nor sizes.
    """

    positions: Tensor

    def __init__(self, tower: Any, connector: Any) -> None:
        super().__init__()
        self.vision_model = tower
        self.connector = connector
        self.side = tower.config.image_size // tower.config.patch_size
        self.register_buffer("positions", position_ids(tower), persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map pixels of tiles [I, 3, S, S] to visual embeddings [I, N, D]."""
        states = self._embedded(pixel_values)
        states = self.vision_model.encoder(inputs_embeds=states, attention_mask=None)
        seen = self._seen((), states.last_hidden_state)
        return seen.project(seen.patches())

    def front(self, pixel_values: Tensor) -> Front:
        """See `VisionEncoder.front`; the states of all layers stay in memory with it."""
        states = [self._embedded(pixel_values)]
        for layer in self.vision_model.encoder.layers:
            states.append(layer(states[-1], None))
        seen = self._seen(states, states[-1])
        return Front(seen.project(seen.patches()), tower=seen)

    def _embedded(self, pixel_values: Tensor) -> Tensor:
        embeddings = self.vision_model.embeddings
        patches = embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        embedded: Tensor = patches + embeddings.position_embedding(self.positions)
        return embedded

    def _seen(self, states: Sequence[Tensor], last: Tensor) -> PatchStates:
        return PatchStates(
            self.vision_model.encoder.layers,
            states,
            self.vision_model.post_layernorm(last),
            0,
            self.connector.modality_projection,
            side=self.side,
            block=self.connector.scale_factor,
        )


def position_ids(tower: Any) -> Tensor:
    """Return the row of the table of positions that each patch of a tile gets, [1, patches] int64.

    They come from fractions that are rounded on the way, so transformers' module is run, one channel wide.
    """
    config = copy.deepcopy(tower.config)
    config.hidden_size = 1
    side, found = config.image_size // config.patch_size, []
    with torch.device("cpu"), torch.no_grad():  # the tower itself may have no values yet
        embeddings = type(tower.embeddings)(config)
        embeddings.position_embedding.register_forward_pre_hook(
            lambda _, given: found.extend(given)
        )
        embeddings(
            pixel_values=torch.zeros(1, CHANNELS, config.image_size, config.image_size),
            patch_attention_mask=torch.ones(1, side, side, dtype=torch.bool),
        )
    ids: Tensor = found[0]
    return ids


class Idefics3Family(TiledFamily):
    """`Idefics3ForConditionalGeneration` of transformers 5."""

    name = "idefics3"
    model_types = ("idefics3",)
    architecture = "Idefics3ForConditionalGeneration"
    image_processors: ClassVar[tuple[str, ...]] = ("Idefics3ImageProcessor",)
    token_keys = ("image_seq_len",)
    decoder = "text_model"

    def problems(self, raw: Mapping[str, Any], where: str) -> list[str]:
        """See `Family.problems`."""
        return super().problems(raw, where) + _scale_problems(raw.get("scale_factor", 2), where)

    def tower_problems(self, section: Mapping[str, Any], where: str) -> list[str]:
        """See `ModelClassFamily.tower_problems`."""
        kind = section.get("model_type", self.name)
        towers = (f"{self.name}_vision", self.name)
        if kind not in towers:
            return [f"{where}.model_type: {kind!r} is not supported; supported towers: {towers[0]}"]
        return square_tower_problems(section, where)

    def vision_problems(self, config: Any, image_size: int | None, where: str) -> list[str]:
        """See `ModelClassFamily.vision_problems`."""
        vision, scale = config.vision_config, config.scale_factor
        if problems := _scale_problems(scale, where):
            return problems
        problems = activation_problems({"vision_config.hidden_act": vision.hidden_act}, where)
        size, side = vision.image_size, vision.image_size // vision.patch_size
        problems += self.size_problems(image_size, size)
        if not side or side % scale:
            problems.append(
                f"{where}: scale_factor: {scale} does not divide the tower's {side} x {side} "
                "patches"
            )
        return problems

    def visual_grid(
        self, config: Any, image_size: int | None
    ) -> tuple[int, int, tuple[int, int] | None]:
        """See `ModelClassFamily.visual_grid`."""
        vision = config.vision_config
        side = vision.image_size // vision.patch_size // config.scale_factor
        return vision.image_size, side**2, (side, side)

    def unread(self, config: Any) -> Callable[[str], bool]:
        """See `ModelClassFamily.unread`."""
        return lambda name: re.search(COMPUTED, name) is not None

    def tower_facts(self, config: Any) -> TowerFacts:
        """See `ModelClassFamily.tower_facts`."""
        vision, hidden = config.vision_config, config.text_config.hidden_size
        patches = config.scale_factor**2
        return TowerFacts(
            patches=patches,
            class_token=False,
            layers=vision.num_hidden_layers,
            layers_read=self.layers_read(config),
            width=vision.hidden_size,
            work=TowerWork(
                patch=vision.patch_size,
                intermediate=vision.intermediate_size,
                projector=(vision.hidden_size * patches, hidden),
            ),
        )

    def vision(self, config: Any, *, image_size: int, source: Any = None) -> VisionEncoder:
        """See `Family.vision`."""
        if source is not None:
            return JoinedPatches(source.model.vision_model, source.model.connector).eval()
        from transformers import AutoModel
        from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

        tower = AutoModel.from_config(config.vision_config)
        return JoinedPatches(tower, Idefics3Connector(config)).eval()

    def complete_processor(self, processor: Any, config: Any, saved: Mapping[str, Any]) -> None:
        """See `Family.complete_processor`."""
        if saved.get("image_seq_len") is None:
            processor.image_seq_len = self.visual_grid(config, None)[1]

    def picture_text(self, processor: Any) -> PictureText:
        """See `Family.picture_text`."""
        return TileRows(tile=processor.fake_image_token, whole=processor.global_image_tag)

    def within(self, budget: ImageSection, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Family.within`; what the processor has is the length of a picture's longer edge."""
        asked, steps = budget.max_tiles or 1, self.picture_steps(saved, IMAGE_FILE) if saved else ()
        edge = next((step.edge for step in steps if isinstance(step, CutTiles)), 0)
        side = math.isqrt(asked)
        problem = ""
        if not edge:
            problem = "is nothing for pictures that are not cut, as do_image_splitting is false"
        elif side * edge > MAX_SIDE:
            problem = f"{asked} tiles of {edge} pixels are too large: {(MAX_SIDE // edge) ** 2} are allowed"
        elif side**2 != asked:
            problem = (
                f"{asked} cannot be kept exactly: a picture's longer edge is a number of tiles, and a square "
                f"has as many rows; take {side**2} or {(side + 1) ** 2}"
            )
        if problem:
            raise ModelError([f"image.max_tiles: {problem}"])
        # Odd, a square's other edge would be rounded up beyond it.
        return {"size": {"longest_edge": side * edge - side * edge % 2}}

    def image_rows(
        self, processor: Any, sizes: Sequence[tuple[int, int]], facts: ModelFacts
    ) -> tuple[int, ...]:
        """See `Family.image_rows`.

        The processor's own count of tiles (`get_number_of_image_patches`) leaves out one of its roundings.
        """
        steps = self.picture_steps(values_of(processor.image_processor), IMAGE_FILE)
        counts = (tile_count(tile_grid(steps, height, width)) for height, width in sizes)
        return tuple(facts.tile_rows * count for count in counts)

    def tiles_made(self, encoded: Mapping[str, Any]) -> Any:
        """See `Family.tiles_made`; there is an axis of prompts in front."""
        pixels = super().tiles_made(encoded)
        return None if pixels is None else pixels[0]


def _scale_problems(scale: Any, where: str) -> list[str]:
    """Return a line if the side of the square of patches that become one visual token is none."""
    if type(scale) is int and scale >= 1:
        return []
    return [f"{where}: scale_factor: {scale!r} is not allowed; one number, 1 or more"]


class SmolVlmFamily(Idefics3Family):
    """`SmolVLMForConditionalGeneration` of transformers 5: the same under other names."""

    name = "smolvlm"
    model_types = ("smolvlm",)
    architecture = "SmolVLMForConditionalGeneration"
    image_processors = ("SmolVLMImageProcessor",)

    def processor_class(self) -> type:
        """See `Family.processor_class`."""
        from compressor.families.smolvlm.processor import PictureProcessor

        return PictureProcessor

    def picture_text(self, processor: Any) -> PictureText:
        """See `Family.picture_text`."""
        return TileRows(tile=processor.fake_image_token, whole=processor.global_image_token)
