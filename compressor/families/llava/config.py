"""What LLaVA's configuration says of its vision tower, and what of it cannot be read."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compressor.families.model_class.stored import COMPUTED
from compressor.families.model_class.tower import activation_problems, square_tower_problems


@dataclass(frozen=True)
class Tower:
    """What a kind of vision tower is like.

    Attributes:
        class_token: whether it has one state more than patches, in front of them.
        unread: modules that no feature layer runs through, as its tensors' names begin.
    """

    class_token: bool
    unread: tuple[str, ...]


TOWERS: Mapping[str, Tower] = {
    "clip_vision_model": Tower(class_token=True, unread=("post_layernorm",)),
    "siglip_vision_model": Tower(class_token=False, unread=("post_layernorm", "head")),
}


TOWER_TENSOR = r"(?:^|\.)vision_tower\.(?:vision_model\.)?"


def has_class_token(vision: Any) -> bool:
    """Whether a tower has one state more than patches, in front of them."""
    return TOWERS[vision.model_type].class_token


def feature_layers(config: Any) -> tuple[int, ...]:
    """The hidden states whose features are taken, as configured."""
    layers = config.vision_feature_layer
    return (layers,) if isinstance(layers, int) else tuple(layers)


def tower_problems(section: Mapping[str, Any], where: str) -> list[str]:
    """Return a line for each thing in a `vision_config`, as it is written, that no tower has.

    Args:
        section: of `config.json`.
        where: file and section.
    """
    kind = section.get("model_type", next(iter(TOWERS)))
    if not isinstance(kind, str) or kind not in TOWERS:
        return [_unknown_type(kind, where)]
    return square_tower_problems(section, where)


def _unknown_type(kind: Any, where: str) -> str:
    whole = f"{kind}_vision_model" in TOWERS
    remedy = "; it is a model of pictures and text: put its own vision_config here"
    return (
        f"{where}.model_type: {kind!r} is not supported; supported towers: {', '.join(TOWERS)}"
        f"{remedy if whole else ''}"
    )


def vision_problems(config: Any, image_size: int | None, where: str) -> list[str]:
    """Return a line for each thing about the tower that cannot be read.

    Args:
        config: transformers' configuration of the whole model.
        image_size: that is asked for; None: the tower's own.
        where: the file.
    """
    vision = config.vision_config
    acts = {
        "vision_config.hidden_act": vision.hidden_act,
        "projector_hidden_act": config.projector_hidden_act,
    }
    problems = activation_problems(acts, where)
    size, patch, states = vision.image_size, vision.patch_size, vision.num_hidden_layers + 1
    if image_size not in (None, size) and image_size % patch:
        problems.append(
            f"{where}: an image size of {image_size} is no multiple of the tower's patch size "
            f"{patch}; the tower's own size is {size}"
        )
    elif size < patch:
        problems.append(
            f"{where}: vision_config.image_size: {size} is less than one patch of {patch}"
        )
    layers = feature_layers(config)
    # A layer 0 by itself, the embeddings, is taken by transformers for none being asked for.
    if not layers or layers == (0,) or any(not -states <= layer < states for layer in layers):
        problems.append(
            f"{where}: vision_feature_layer: {config.vision_feature_layer!r} is not allowed; the tower "
            f"has {vision.num_hidden_layers} layers: 1 to {states - 1}, or {-states} to -1"
        )
    return problems


def unread_of(config: Any) -> Callable[[str], bool]:
    """Return whether the features, the projector and the decoder can be computed without a tensor."""
    vision = config.vision_config
    states = vision.num_hidden_layers + 1
    last = max(layer % states for layer in feature_layers(config))
    behind = "|".join(TOWERS[vision.model_type].unread)
    modules = re.compile(rf"{COMPUTED}|{TOWER_TENSOR}({behind})\.")
    layers = re.compile(rf"{TOWER_TENSOR}encoder\.layers\.(\d+)\.")

    def unread(name: str) -> bool:
        layer = layers.search(name)
        # A layer that the configuration does not have may be the one that was to be read.
        return bool(modules.search(name) or (layer and last <= int(layer[1]) < states - 1))

    return unread
