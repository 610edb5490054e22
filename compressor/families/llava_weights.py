"""Which tensors LLaVA's graphs read of a model folder."""

import re
from collections.abc import Callable
from typing import Any

from compressor.families.llava_config import TOWERS, feature_layers

# Tables that transformers computes; older versions saved them.
COMPUTED = r"(rotary_emb\.inv_freq|position_ids)$"
TOWER_TENSOR = r"(?:^|\.)vision_tower\.(?:vision_model\.)?"


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
        return bool(modules.search(name) or (layer and int(layer[1]) >= last))

    return unread
