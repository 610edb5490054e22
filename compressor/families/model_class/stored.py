"""Whether the files of a model folder hold the tensors of its class of transformers."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from compressor.errors import ModelError
from compressor.families.checkpoint import AGAIN, Header, check_complete, check_floating
from compressor.families.configuration import LAYERS
from compressor.families.folder import CONFIG
from compressor.families.guard import quiet, reading

# Tables that transformers computes; older versions saved them.
COMPUTED = r"(rotary_emb\.inv_freq|position_ids)$"
TOWERS = ("vision_tower.encoder", "visual")
TIED = ("lm_head.weight", "language_model.embed_tokens.weight")

# Layouts that transformers saved and reads, each as the same name; the rest is as it was.
LAYOUTS = (
    (re.compile(r"^(?:model\.)+"), ""),
    (re.compile(r"^language_model\.(?:model\.)+"), "language_model."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^text_model\."), "language_model."),
    (re.compile(r"^vision_model\."), "vision_tower."),
    (re.compile(r"^vision_tower\.vision_model\."), "vision_tower."),
    (re.compile(r"^(?=(?:layers|embed_tokens|norm)\.)"), "language_model."),
)
LAYER = re.compile(r"^(language_model|vision_tower\.encoder|visual)\.(?:layers?|blocks)\.(\d+)\.")


def check_stored(
    kind: Any,
    config: Any,
    folder: Path,
    stored: Mapping[str, Header],
    names: Iterable[str],
    *,
    unread: Callable[[str], bool],
    least: int,
) -> None:
    """Refuse files whose tensors are not those of the configuration; no values are read.

    Args:
        kind: transformers' class of the model.
        config: transformers' configuration, of a supported tower and decoder.
        folder: of the model.
        stored: headers of its files; empty: they are not here.
        names: of the tensors in them, at least as an index tells.
        unread: whether everything can be computed without a tensor of this name.
        least: layers of the tower that are read.

    Raises:
        ModelError: another number of layers, tensors that are missing, left over, of another shape or of
            whole numbers.
    """
    found = {_common(name): name for name in names}
    if problems := _layer_problems(config, found, least, f"{folder / CONFIG}"):
        raise ModelError(problems)
    if not stored:
        return
    check_floating({name: header for name, header in stored.items() if not unread(name)})
    wanted = _wanted(kind, config, folder)
    # The text section's flag alone ties nothing; where a class heeds it, transformers copies it to the top.
    tied = config.tie_word_embeddings
    alone = TIED if tied and any(name in found for name in TIED) else ()
    info = {
        "missing_keys": [
            own for n, (own, _) in wanted.items() if n not in found and n not in alone
        ],
        "unexpected_keys": [own for name, own in found.items() if name not in wanted],
        "mismatched_keys": [
            (own, stored[found[name]].shape, shape)
            for name, (own, shape) in wanted.items()
            if name in found and stored[found[name]].shape != shape
        ],
    }
    check_complete(info, folder, unread)


def _common(name: str) -> str:
    """A tensor's name without what differs between layouts."""
    for pattern, replacement in LAYOUTS:
        name = pattern.sub(replacement, name)
    return name


def _layer_problems(config: Any, names: Iterable[str], read: int, where: str) -> list[str]:
    """A line for each part that has another number of layers in its files than in the configuration."""
    numbers: dict[str, set[int]] = {}
    for name in names:
        if layer := LAYER.search(name):
            numbers.setdefault(layer[1], set()).add(int(layer[2]))
    decoder, tower = config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers
    problems = []
    for part, key, least, most in (
        ("language_model", "text_config", decoder, decoder),
        *((part, "vision_config", read, tower) for part in TOWERS),
    ):
        has = max(numbers.get(part, {-1})) + 1
        # None at all is told with the tensors' names.
        if has and not least <= has <= most:
            problems.append(
                f"{where}: {key}.{LAYERS}: {most}, but the weights are those of {has} layers: correct the "
                f"number, or {AGAIN}"
            )
    return problems


def _wanted(kind: Any, config: Any, folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor that transformers would read, by its name in every layout."""
    import torch

    with quiet(), reading(folder, CONFIG), torch.device("meta"):
        model = kind(config)
    return {
        _common(name): (name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()
    }
