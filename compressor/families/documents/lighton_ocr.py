"""LightOnOCR: Pixtral's tower, four patches to a visual token, and a Llama-like decoder.

Limitations: pictures of whole visual tokens, as the published image processor makes them; no windows of
visual tokens, whose grid differs from picture to picture.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compressor.errors import ModelError
from compressor.facts import ModelFacts
from compressor.families.base import VisionEncoder
from compressor.families.configuration import section_problems
from compressor.families.model_class.own_size import OwnSizeFamily
from compressor.families.model_class.patches import head_width_problems, rotations, squares
from compressor.families.model_class.stored import COMPUTED
from compressor.families.model_class.tower import CHANNELS, activation_problems
from compressor.families.told import IMAGE_FILE
from compressor.schema.sections import ImageSection

TOWER = "pixtral"
COUNTS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    "patch_size",
)
HEADS = ("hidden_size", "num_attention_heads")
MERGE = "spatial_merge_size"


class PixtralGrid(VisionEncoder):
    """The tower on whole pictures of one size, which the batch axis keeps apart, and the projector.

    transformers' own lays all pictures side by side under a mask, with lengths that cannot be traced.
    """

    def __init__(self, config: Any, tower: Any, projector: Any) -> None:
        super().__init__()
        self.vision_encoder, self.vision_projection = tower, projector
        self.merge = config.spatial_merge_size
        vision = config.vision_config
        # Frequencies of a head are the row's and the column's by turns.
        theta, size = vision.rope_parameters["rope_theta"], vision.head_dim
        self.down, self.right = (
            tuple(theta ** (-i / size) for i in range(first, size, 4)) for first in (0, 2)
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Map pixels [I, 3, H, W] to visual embeddings [I, N, D]."""
        patches = self.vision_encoder.patch_conv(pixel_values)  # [I, C, h, w]
        high, wide = patches.shape[2:]
        rows = self.vision_encoder.ln_pre(patches.flatten(2).transpose(1, 2))  # [I, h * w, C]
        turns = rotations((high, wide), self.down, self.right, rows)
        whole = tuple(torch.cat([part, part], dim=-1) for part in turns)
        for layer in self.vision_encoder.transformer.layers:
            rows = layer(rows, None, position_embeddings=whole)
        cells = squares(self.vision_projection.norm(rows).unflatten(1, (high, wide)), self.merge)
        # Of the patches of a visual token, all first values stand first.
        joined = cells.permute(0, 1, 2, 5, 3, 4).flatten(3).flatten(1, 2)
        merged = self.vision_projection.patch_merger.merging_layer(joined)
        embeds: Tensor = self.vision_projection.linear_2(
            self.vision_projection.act(self.vision_projection.linear_1(merged))
        )
        return embeds


class LightOnOcrFamily(OwnSizeFamily):
    """`LightOnOcrForConditionalGeneration` of transformers 5."""

    name = "lighton_ocr"
    model_types = ("lighton_ocr",)
    architecture = "LightOnOcrForConditionalGeneration"
    decoders = ("qwen3", "qwen2", "llama", "mistral")
    budget_keys = ("height", "width")
    image_processors = ("PixtralImageProcessor",)
    token_keys = ("patch_size", MERGE)

    def problems(self, raw: Mapping[str, Any], where: str) -> list[str]:
        """See `Family.problems`."""
        found = super().problems(raw, where)
        if (merge := raw.get(MERGE)) is not None and (type(merge) is not int or merge < 1):
            found.append(f"{where}: {MERGE}: {merge!r} is not allowed; one number, 1 or more")
        return found

    def tower_problems(self, section: Mapping[str, Any], where: str) -> list[str]:
        """See `ModelClassFamily.tower_problems`."""
        kind, channels = section.get("model_type", TOWER), section.get("num_channels", CHANNELS)
        if kind != TOWER:
            return [f"{where}.model_type: {kind!r} is not supported; supported towers: {TOWER}"]
        found = section_problems(section, where, counts=COUNTS, eps="layer_norm_eps")
        if channels != CHANNELS:
            found.append(
                f"{where}.num_channels: {channels!r} is not supported; pictures have {CHANNELS}"
            )
        found = found or head_width_problems(section, where, *HEADS)
        own, (width, heads) = section.get("head_dim"), (section.get(key) for key in HEADS)
        if not found and own is not None and width and heads and own != width // heads:
            found = [
                f"{where}.head_dim: {own!r:.60} is not allowed; {width // heads}, as {heads} heads have a "
                f"width of {width}"
            ]
        return found

    def vision_problems(self, config: Any, image_size: int | None, where: str) -> list[str]:
        """See `ModelClassFamily.vision_problems`."""
        acts = {"vision_config.hidden_act": config.vision_config.hidden_act}
        own = super().vision_problems(config, image_size, where)
        return activation_problems(acts, where) + own

    def cell(self, config: Any) -> int:
        """See `OwnSizeFamily.cell`."""
        return int(config.vision_config.patch_size * config.spatial_merge_size)

    def unread(self, config: Any) -> Callable[[str], bool]:
        """See `ModelClassFamily.unread`."""
        unread = re.compile(rf"{COMPUTED}|patch_positional_embedding\.inv_freq$")
        return lambda name: bool(unread.search(name))

    def vision(self, config: Any, *, image_size: int, source: Any = None) -> VisionEncoder:
        """See `Family.vision`."""
        if source is not None:
            tower, projector = source.model.vision_encoder, source.model.vision_projection
        else:
            from transformers import AutoModel
            from transformers.models.lighton_ocr.modeling_lighton_ocr import (
                LightOnOcrMultiModalProjector,
            )

            tower = AutoModel.from_config(config.vision_config)
            projector = LightOnOcrMultiModalProjector(config)
        return PixtralGrid(config, tower, projector).eval()

    def complete_processor(self, processor: Any, config: Any, saved: Mapping[str, Any]) -> None:
        """See `Family.complete_processor`.

        Raises:
            ModelError: its pictures are not of whole visual tokens.
        """
        of_model = {
            "patch_size": config.vision_config.patch_size,
            MERGE: config.spatial_merge_size,
            "effective_patch_size": self.cell(config),
        }
        for key, value in of_model.items():
            if saved.get(key) is None:
                setattr(processor, key, value)
        problems = [
            f"processor_config.json: {key}: {found!r}, but config.json has {value}: correct it"
            for key, value in of_model.items()
            if (found := getattr(processor, key)) != value
        ]
        found, cell = processor.image_processor.patch_size, self.cell(config)
        sides = set(dict(found).values()) if isinstance(found, Mapping) else {found}
        if sides != {cell}:
            problems.append(
                f"{IMAGE_FILE}: patch_size: {found!r}, but a visual token shows {cell} x {cell} pixels, of "
                f"which pictures must be made: correct it to {cell}"
            )
        if problems:
            raise ModelError(problems)

    def within(self, budget: ImageSection, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Family.within`."""
        return {"size": {"height": budget.height, "width": budget.width}}

    def image_rows(
        self, processor: Any, sizes: Sequence[tuple[int, int]], facts: ModelFacts
    ) -> tuple[int, ...]:
        """See `Family.image_rows`."""
        from transformers.models.pixtral.image_processing_pil_pixtral import (
            get_resize_output_image_size,
        )

        images, cell = processor.image_processor, processor.effective_patch_size
        edge = images.size.get("longest_edge")
        box = (edge, edge) if edge else (images.size["height"], images.size["width"])
        made = (
            get_resize_output_image_size(torch.empty(3, *size, device="meta"), box, cell)
            for size in sizes
        )
        return tuple((high // cell) * (wide // cell) for high, wide in made)

    def image_pixels(
        self, encoded: Mapping[str, Any], rows: Sequence[int], facts: ModelFacts
    ) -> tuple[Tensor, ...]:
        """See `Family.image_pixels`; the processor fills them up to the largest."""
        pixels: Tensor | None = encoded.get("pixel_values")
        if pixels is None:
            return ()
        return tuple(
            picture[None, :, :high, :wide]
            for picture, (high, wide) in zip(pixels, encoded["image_sizes"].tolist(), strict=True)
        )
