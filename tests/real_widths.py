"""Published models of every family, a few layers deep: what their configurations and image processors say.

Widths, heads, activations, rotations and tiles are the published ones; the numbers of layers are not, and
vocabularies end at `MOST_VOCAB`. Weights are drawn where they are needed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor.facts import ModelFacts
from compressor.families import describe
from compressor.families.registry import read_config
from compressor.schema.sections import ImageSection
from tests.width_table import OWN_SIZES, TILES

# The head alone grows with it: one matrix, of 1 GiB in the largest of these models. SmolVLM has so many.
MOST_VOCAB = 49_280
DECODER_LAYERS = 3

Keys = Mapping[str, Any]


@dataclass(frozen=True)
class RealModel:
    """A published model of a family; the smallest one, or the one that its family is known for.

    Attributes:
        family: name of the family.
        name: of the model.
        top: keys of `config.json` beside its sections.
        vision: keys of the section of the tower, which has two layers that are read, or as many as it takes.
        text: keys of the section of the decoder.
        images: keys of the image processor.
        budgets: of pictures, by how the page calls them.
    """

    family: str
    name: str
    top: Keys
    vision: Keys
    text: Keys
    images: Keys
    budgets: Mapping[str, ImageSection] = field(default_factory=lambda: {TILES: ImageSection()})

    def write(self, folder: Path) -> Path:
        """Write a model folder without weights: both configurations."""
        folder.mkdir(parents=True, exist_ok=True)
        text = {**self.text, "num_hidden_layers": DECODER_LAYERS}
        text["vocab_size"] = min(text["vocab_size"], MOST_VOCAB)
        config = {
            "model_type": self.family,
            "dtype": "float16",
            **self.top,
            "vision_config": self.vision,
            "text_config": text,
        }
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "preprocessor_config.json").write_text(json.dumps(self.images))
        return folder

    def read(self, folder: Path, pictures: str) -> tuple[Any, Any, ModelFacts]:
        """Return family, configuration and facts, as this tool reads them of a folder of a user."""
        family, config = read_config(self.write(folder))
        return family, config, describe(str(folder), budget=self.budgets[pictures])


def llama(hidden: int, heads: int, kv_heads: int, neurons: int, vocab: int, **more: Any) -> Keys:
    """Return keys of a decoder's section; that of Llama, unless another type is among `more`."""
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": neurons,
        "vocab_size": vocab,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        **more,
    }


def qwen(
    kind: str, hidden: int, heads: int, kv_heads: int, neurons: int, vocab: int, **more: Any
) -> Keys:
    """Return keys of a section of Qwen's decoders; newer ones have heads of 128 whatever their width."""
    theta = {"rope_theta": 1e6, "rope_type": "default"}
    common = {"model_type": kind, "rms_norm_eps": 1e-6, "max_position_embeddings": 32768}
    if kind == "qwen3" or kind.startswith("qwen3_"):
        common["head_dim"] = 128
    more["rope_parameters"] = theta | more.get("rope_parameters", {})
    return llama(hidden, heads, kv_heads, neurons, vocab, **{**common, **more})


def clip(layers: int) -> Keys:
    """Return keys of CLIP's large tower with 336 pixels."""
    return {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": layers,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    }


def so400m(kind: str, size: int) -> Keys:
    """Return keys of SigLIP's tower of 400M parameters."""
    return {
        "model_type": kind,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 2,
        "image_size": size,
        "patch_size": 14,
    }


def vit_300m(kind: str) -> Keys:
    """Return keys of InternVL's small tower."""
    return {
        "model_type": kind,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 2,
        "image_size": [448, 448],
        "patch_size": [14, 14],
        "attention_bias": True,
    }


def images(kind: str, **more: Any) -> Keys:
    """Return keys of an image processor."""
    return {"image_processor_type": f"{kind}ImageProcessor", **more}


SQUARE = {
    "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336},
}
TILE_448 = {
    "size": {"height": 448, "width": 448},
    "crop_to_patches": True,
    "min_patches": 1,
    "max_patches": 12,
    "resample": 3,
}


def cut(edge: int) -> Keys:
    """Return keys of what cuts pictures into at most 4 x 4 tiles."""
    return {"size": {"longest_edge": 4 * edge}, "max_image_size": {"longest_edge": edge}}


# 1,280 visual tokens of 28 x 28 pixels: what is published is no limit for an engine.
CELL = 28
OF_1280 = {OWN_SIZES: ImageSection(max_pixels=1280 * CELL**2)}
ONE_SIZE = {"one of 364 x 504 pixels": ImageSection(height=13 * CELL, width=18 * CELL)}
CHUNKED = {"rope_parameters": {"mrope_section": [16, 24, 24]}}
SECTIONS = {"rope_parameters": {"mrope_section": [24, 20, 20], "rope_theta": 5e6}}
VICUNA = llama(4096, 32, 32, 11008, 32064)

MODELS = (
    RealModel(
        "llava", "llava-1.5-7b-hf", {"image_token_index": 32000, "vision_feature_layer": -2},
        clip(3), VICUNA, images("CLIP", **SQUARE),
    ),
    # Its features are those of five layers, the last but ten among them.
    RealModel(
        "vipllava", "vip-llava-7b-hf",
        {"image_token_index": 32000, "vision_feature_layers": [-2, -5, -8, -11, 6]},
        clip(11), VICUNA, images("CLIP", **SQUARE),
    ),
    RealModel(
        "llava_next", "llava-v1.6-mistral-7b-hf",
        {
            "image_token_index": 32000,
            "vision_feature_layer": -2,
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        },
        clip(3),
        llama(
            4096, 32, 8, 14336, 32064, model_type="mistral", max_position_embeddings=32768,
            sliding_window=None, rope_parameters={"rope_theta": 1e6, "rope_type": "default"},
        ),
        images("LlavaNext", **SQUARE),
    ),
    RealModel(
        "llava_onevision", "llava-onevision-qwen2-0.5b-ov-hf",
        {
            "image_token_index": 151646,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
            "tie_word_embeddings": True,
            "image_grid_pinpoints": [[384 * y, 384 * x] for y in range(1, 7) for x in range(1, 7)],
        },
        so400m("siglip_vision_model", 384) | {"vision_use_head": False},
        qwen("qwen2", 896, 14, 2, 4864, 152000), images("LlavaOnevision"),
    ),
    RealModel(
        "internvl", "InternVL3-1B-hf", {"image_token_id": 151667}, vit_300m("internvl_vision"),
        qwen("qwen2", 896, 14, 2, 4864, 151674), images("GotOcr2", **TILE_448),
    ),
    RealModel(
        "internvl", "InternVL3_5-2B-HF", {"image_token_id": 151671}, vit_300m("internvl_vision"),
        qwen("qwen3", 2048, 16, 8, 6144, 151936), images("GotOcr2", **TILE_448),
    ),
    RealModel(
        "qianfan_ocr", "Qianfan-OCR", {"image_token_id": 151667}, vit_300m("qianfan_ocr_vision"),
        qwen("qwen3", 2560, 32, 8, 9728, 153678, rope_parameters={"rope_theta": 5e6}),
        images("GotOcr2", **TILE_448),
    ),
    RealModel(
        "idefics3", "Idefics3-8B-Llama3", {"image_token_id": 128257, "scale_factor": 2},
        so400m("idefics3_vision", 364),
        llama(
            4096, 32, 8, 14336, 128259, max_position_embeddings=10240,
            rope_parameters={"rope_theta": 5e5, "rope_type": "default"},
        ),
        images("Idefics3", **cut(364)),
    ),
    RealModel(
        "smolvlm", "SmolVLM2-256M-Video-Instruct",
        {"image_token_id": 49190, "scale_factor": 4, "tie_word_embeddings": True},
        {
            "model_type": "smolvlm_vision",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_hidden_layers": 2,
            "image_size": 512,
            "patch_size": 16,
        },
        llama(
            576, 9, 3, 1536, 49280, max_position_embeddings=8192,
            rope_parameters={"rope_theta": 1e5, "rope_type": "default"},
        ),
        images("SmolVLM", **cut(512)),
    ),
    RealModel(
        "qwen2_vl", "Qwen2-VL-2B-Instruct", {"image_token_id": 151655, "tie_word_embeddings": True},
        {
            "model_type": "qwen2_vl_vision",
            "depth": 2,
            "embed_dim": 1280,
            "hidden_size": 1536,
            "num_heads": 16,
            "mlp_ratio": 4,
            "patch_size": 14,
        },
        qwen("qwen2_vl_text", 1536, 12, 2, 8960, 151936, **CHUNKED),
        images("Qwen2VL"), OF_1280 | ONE_SIZE,
    ),
    RealModel(
        "qwen2_5_vl", "Qwen2.5-VL-3B-Instruct",
        {"image_token_id": 151655, "tie_word_embeddings": True},
        {
            "model_type": "qwen2_5_vl_vision",
            "depth": 2,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "out_hidden_size": 2048,
            "num_heads": 16,
            "window_size": 112,
            "fullatt_block_indexes": [1],
            "patch_size": 14,
        },
        qwen("qwen2_5_vl_text", 2048, 16, 2, 11008, 151936, **CHUNKED),
        images("Qwen2VL"), OF_1280 | ONE_SIZE,
    ),
    # Three layers: it gives rows of as many to the decoder.
    RealModel(
        "qwen3_vl", "Qwen3-VL-2B-Instruct", {"image_token_id": 151655, "tie_word_embeddings": True},
        {
            "model_type": "qwen3_vl_vision",
            "depth": 3,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "out_hidden_size": 2048,
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "patch_size": 16,
            "deepstack_visual_indexes": [0, 1, 2],
        },
        qwen("qwen3_vl_text", 2048, 16, 8, 6144, 151936, **SECTIONS),
        images("Qwen2VL", patch_size=16, size={"shortest_edge": 65536, "longest_edge": 16777216}),
        {OWN_SIZES: ImageSection(max_pixels=1280 * 32**2)},
    ),
    RealModel(
        "lighton_ocr", "LightOnOCR-1B-1025", {"image_token_id": 151655, "spatial_merge_size": 2},
        {
            "model_type": "pixtral",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 2,
            "image_size": 1540,
            "patch_size": 14,
            "head_dim": 64,
            "hidden_act": "silu",
        },
        qwen("qwen3", 1024, 16, 8, 3072, 151936, max_position_embeddings=8192),
        images("Pixtral", patch_size=CELL, size={"longest_edge": 1540}),
        {OWN_SIZES: ImageSection()},
    ),
    RealModel(
        "paddleocr_vl", "PaddleOCR-VL", {"image_token_id": 100295, "tie_word_embeddings": True},
        so400m("paddleocr_vl_vision", 384) | {"spatial_merge_size": 2},
        llama(
            1024, 16, 2, 3072, 103424, model_type="paddleocr_vl_text", head_dim=128, use_bias=False,
            max_position_embeddings=131072,
            rope_parameters={
                "rope_theta": 5e5,
                "rope_type": "default",
                "mrope_section": [16, 24, 24],
            },
        ),
        images("PaddleOCRVL"), OF_1280,
    ),
)  # fmt: skip

LINES = tuple(
    (model.family, model.name, pictures) for model in MODELS for pictures in model.budgets
)
"""What rows of docs/families.md are about, in their order."""
