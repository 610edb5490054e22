"""What no vision tower has, whatever its class, by its section of the configuration."""

from collections.abc import Iterable, Mapping
from typing import Any

from compressor.families.configuration import section_problems

COUNTS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
)
CHANNELS = 3


def square_tower_problems(
    section: Mapping[str, Any], where: str, more: Iterable[str] = ()
) -> list[str]:
    """Return a line for each thing in a `vision_config`, as it is written, that no tower of squares has.

    Args:
        section: of `config.json`.
        where: file and section.
        more: keys of numbers from 1 on that this kind of tower has beside those of all.
    """
    found = section_problems(section, where, counts=(*COUNTS, *more), eps="layer_norm_eps")
    channels = section.get("num_channels", CHANNELS)
    if channels != CHANNELS:
        found.append(
            f"{where}.num_channels: {channels!r} is not supported; pictures have {CHANNELS}"
        )
    return found or head_problems(section, where)


def head_problems(section: Mapping[str, Any], where: str) -> list[str]:
    """Return a line if the heads of a section whose counts are counts do not divide its width."""
    width, heads = section.get("hidden_size"), section.get("num_attention_heads")
    if width and heads and width % heads:
        return [f"{where}.num_attention_heads: {heads} do not divide the hidden_size {width}"]
    return []


def activation_problems(asked: Mapping[str, Any], where: str) -> list[str]:
    """Return a line for each key whose value is no activation that transformers knows."""
    from transformers.activations import ACT2FN

    return [
        f"{where}: {key}: {value!r} is no activation that transformers knows; correct it"
        for key, value in asked.items()
        if value not in ACT2FN
    ]
