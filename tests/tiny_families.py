"""Tiny seeded models of every family, made by transformers: what `tests.family_cases` puts through its cases.

A family gives a `TinyFamily`. What is common is here: a tokenizer of bytes, which splits and loses nothing, a
chat template that puts nothing around a turn, and weights that hide no fault.
"""

import json
import shutil
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from compressor.schema.sections import ImageSection

LAYERS, HIDDEN, HEADS, KV_HEADS, NEURONS = 6, 64, 4, 2, 96
VOCAB = 320  # 256 bytes, the family's special tokens, and rows that no token has
SIDE, PATCH = 32, 8
PAD, END = "<pad>", "</s>"
IMAGE = "<image>"


def _tiles(made: Any) -> Any:
    """Return pixels as most processors make them; some put an axis of prompts in front."""
    pixels = made["pixel_values"]
    return pixels.reshape(-1, *pixels.shape[-3:])


@dataclass(frozen=True)
class TinyFamily:
    """A family as its tests need it.

    Attributes:
        name: of the family.
        make: writes a model folder with its processor, by transformers alone.
        grid: rows and columns of the blocks that visual rows come in; None: they have no grid.
        layers: of the original's decoder, as the dotted name of their list.
        least: edge of the smallest pictures that its cases draw, in pixels.
        alone: whether one picture is read otherwise than each of several.
        pixels: [tiles, 3, H, W] of what the processor made of a picture.
        image: the recipe's budget for pictures.
    """

    name: str
    make: Callable[[Path], None]
    grid: tuple[int, int] | None
    layers: str = "model.language_model.layers"
    least: int = 1
    alone: bool = False
    pixels: Callable[[Any], Any] = _tiles
    image: ImageSection = field(default_factory=ImageSection)


def template_of(image: str) -> str:
    """Return a chat template in which a picture may be the first token, and the last but one."""
    return (
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ message['content'][0]['text'] }}\n{% else %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}>{% endif %}{% endfor %}"
    )


def byte_tokenizer(*special: str, names: Mapping[str, str] | None = None) -> Any:
    """Return a tokenizer with a token for each byte, and special ones behind them.

    Args:
        special: tokens of the family.
        names: attributes of the tokenizer that name some of them, such as `start_image_token`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = Tokenizer(models.BPE({c: i for i, c in enumerate(characters)}, []))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_alone,
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens=dict(names or {}),
    )
    tokenizer.add_tokens(list(special), special_tokens=True)
    return tokenizer


def text_section(**changes: Any) -> dict[str, Any]:
    """Return keys of a tiny decoder's configuration."""
    return {
        "hidden_size": HIDDEN,
        "intermediate_size": NEURONS,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": 257,
        "pad_token_id": 256,
    } | changes


def clip_section(layers: int = 3, **changes: Any) -> dict[str, Any]:
    """Return keys of a tiny CLIP or SigLIP tower's configuration."""
    return {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
    } | changes


def draw_weights(model: torch.nn.Module) -> None:
    """Draw weights with a standard deviation of 0.2: smaller ones hide faults.

    Norms and biases are away from 1 and 0, so that a forgotten one shows.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)


def changed_model(folder: Path, other: Path, **changes: Any) -> Path:
    """Return a copy of a model with keys of its configuration changed, of a section some alone."""
    shutil.copytree(folder, other)
    raw = json.loads((other / "config.json").read_text())
    for key, value in changes.items():
        raw[key] = {**raw[key], **value} if isinstance(value, dict) else value
    (other / "config.json").write_text(json.dumps(raw))
    return other


def write_model(kind: Any, config: Any, processor: Any, folder: Path, seed: int = 0) -> None:
    """Write a model with drawn weights and its processor.

    The model answers in small letters, none of which ends an answer: they
    are told to be the only tokens by its generation configuration, and a later turn spells them the same.
    """
    torch.manual_seed(seed)
    model = kind(config)
    draw_weights(model)
    letters = processor.tokenizer.convert_tokens_to_ids(list(string.ascii_lowercase))
    barred: Sequence[int] = sorted(set(range(VOCAB)) - set(letters))
    model.generation_config.suppress_tokens = list(barred)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def write_projector(
    folder: Path, width: int = 32, inner: int = 64, hidden: int = 64, patches: int = 4
) -> Path:
    """Write a drawn projector of WiCo with the names of the released code, and return its file.

    Args:
        folder: of it.
        width: of the tower.
        inner: of the layer's MLP.
        hidden: of the decoder.
        patches: of a window.
    """
    generator = torch.Generator().manual_seed(7)
    sizes: dict[str, tuple[int, ...]] = {
        f"self_att.0.self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")
    }
    sizes |= {"self_att.0.mlp.fc1": (inner, width), "self_att.0.mlp.fc2": (width, inner)}
    sizes |= {"window_proj": (hidden, patches * width), "patch_proj": (2 * hidden, width)}
    sizes |= {f"self_att.0.layer_norm{number}": (width,) for number in (1, 2)}
    tensors = {
        f"model.mm_projector.{name}.{kind}": torch.randn(shape, generator=generator) * 0.2 + add
        for name, size in sizes.items()
        for kind, shape, add in (("weight", size, float(len(size) == 1)), ("bias", size[:1], 0.0))
    }
    save_file(tensors, folder / "projector.safetensors")
    return folder / "projector.safetensors"
