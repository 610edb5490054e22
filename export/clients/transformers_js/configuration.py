"""The configuration files that transformers.js reads, from the facts of an artifact."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from compressor.facts import ModelFacts
from compressor.families.pictures.steps import (
    Crop,
    Normalise,
    PictureStep,
    Rescale,
    Resize,
    ResizeShorter,
)
from export.artifact.manifest import Manifest

EMBED, VISION, DECODER = "embed_tokens", "vision_encoder", "decoder_model_merged"
"""The client's sessions, and the stems of their files."""
# The only text decoder that the client is told of: it reads the number of caches from it and nothing else.
TEXT_TYPE = "llama"
ORDER: tuple[type, ...] = (Resize, ResizeShorter, Crop, Rescale, Normalise)
"""The picture steps that the client has, in the order in which it runs them."""


def picture_problem(steps: Sequence[PictureStep] | None) -> str | None:
    """Return why the client cannot run these picture steps; None: it can."""
    if steps is None:
        return (
            "needs picture steps in the manifest, and this artifact is older: export the model anew"
        )
    if unknown := [step.step for step in steps if not isinstance(step, ORDER)]:
        return (
            f"has no picture step {', '.join(unknown)}; run the artifact with `vtcompress generate`"
        )
    places = [ORDER.index(type(step)) for step in steps]
    if places != sorted(set(places)) or {0, 1} <= set(places):
        told = ", ".join(step.step for step in steps)
        return f"runs picture steps in an order of its own, and this model's are {told}"
    return None


def preprocessor(steps: Sequence[PictureStep]) -> dict[str, Any]:
    """Return `preprocessor_config.json` of picture steps that `picture_problem` finds nothing in."""
    found: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": True,
        "do_resize": False,
        "do_center_crop": False,
        "do_rescale": False,
        "do_normalize": False,
    }
    for step in steps:
        match step:
            case Resize():
                size = dict(zip(("height", "width"), step.size, strict=True))
                found |= {"do_resize": True, "size": size, "resample": _filter(step.resample)}
            case ResizeShorter():
                size = {"shortest_edge": step.edge}
                found |= {"do_resize": True, "size": size, "resample": _filter(step.resample)}
            case Crop():
                size = dict(zip(("height", "width"), step.size, strict=True))
                found |= {"do_center_crop": True, "crop_size": size}
            case Rescale():
                found |= {"do_rescale": True, "rescale_factor": step.factor}
            case Normalise():
                mean, std = list(step.mean), list(step.std)
                found |= {"do_normalize": True, "image_mean": mean, "image_std": std}
            case _:
                raise RuntimeError(f"{step.step}: picture_problem has let it pass")
    return found


def processor(facts: ModelFacts, image_token: str) -> dict[str, Any]:
    """Return `processor_config.json`: the client adds up image tokens from a patch size and what is added.

    It never takes a class token off again, so what is added is what makes the sum right.
    """
    height, width = facts.largest_picture
    patch = facts.tower.work.patch if facts.tower and facts.tower.work else facts.image_size
    return {
        "processor_class": "LlavaProcessor",
        "image_token": image_token,
        "patch_size": patch,
        "num_additional_image_tokens": facts.tile_rows - (height // patch) * (width // patch),
    }


def tokenizer(own: Mapping[str, Any], template: str) -> dict[str, Any]:
    """Return `tokenizer_config.json` with the chat template in it, and of a class that the client knows."""
    return dict(own) | {"tokenizer_class": "PreTrainedTokenizer", "chat_template": template}


def generation(own: Mapping[str, Any], facts: ModelFacts) -> dict[str, Any]:
    """Return `generation_config.json`: the model's own, with the tokens that end an answer."""
    return dict(own) | {"eos_token_id": list(facts.eos_token_ids)}


def model(manifest: Manifest, layers: int, parts: Mapping[str, int]) -> dict[str, Any]:
    """Return `config.json`.

    Args:
        manifest: of the artifact.
        layers: numbers that caches use.
        parts: how many files of weights each session has.
    """
    facts = manifest.model
    dims = facts.decoder
    dtypes = session_dtypes(manifest)
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": facts.image_token_id,
        "eos_token_id": list(facts.eos_token_ids),
        "text_config": {
            "model_type": TEXT_TYPE,
            "hidden_size": dims.hidden,
            "num_attention_heads": dims.heads,
            "num_key_value_heads": dims.kv_heads,
            "head_dim": dims.head_dim,
            "num_hidden_layers": layers,
            "vocab_size": dims.vocab,
            "max_position_embeddings": dims.max_positions,
        },
        "vision_config": {"image_size": facts.image_size},
        "transformers.js_config": {
            "dtype": dtypes,
            "use_external_data_format": {
                f"{name}{SUFFIXES[dtypes[name]]}.onnx": count for name, count in parts.items()
            },
        },
    }


SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_int8", "q4": "_q4", "q4f16": "_q4f16"}
"""Of the client's file names, by its name of a dtype."""


def session_dtypes(manifest: Manifest) -> dict[str, str]:
    """Return the client's name for the dtype of each session's file."""
    plain = {"float32": "fp32", "float16": "fp16"}[manifest.dtype]
    decoder = plain
    if manifest.quantization is not None:
        four = {"fp32": "q4", "fp16": "q4f16"}[plain]
        # It has no name for whole numbers of 8 bits beside float16.
        eight = {"fp32": "int8"}.get(plain, plain)
        decoder = four if manifest.quantization.weights == "int4" else eight
    return {EMBED: plain, VISION: plain, DECODER: decoder}


def _filter(name: str) -> int:
    return int(Image.Resampling[name.upper()])
