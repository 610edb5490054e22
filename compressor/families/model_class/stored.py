"""Whether the files of a model folder hold the tensors of its class of transformers."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from compressor.errors import ModelError
from compressor.families.checkpoint import AGAIN, Header, check_complete, check_floating
from compressor.families.configuration import LAYERS
from compressor.families.folder import CONFIG
from compressor.families.guard import quiet, reading
from compressor.families.llama_text import EMBEDDING, HEAD

# Tables that transformers computes; older versions saved them.
COMPUTED = r"(rotary_emb\.inv_freq|position_ids)$"

# Of the decoder, and of towers, by their names in memory.
LAYER = re.compile(
    r"^model\.(?:(language_model|text_model)|vision_(?:tower|model|encoder)|visual)"
    r"(?:\.[a-z_]+)*?\.(?:layers?|blocks)\.(\d+)\."
)


class InMemory(NamedTuple):
    """What transformers makes of a stored tensor.

    Attributes:
        names: of the model's tensors; those of none: it is left over.
        converted: its values are moved, not its name alone.
    """

    names: tuple[str, ...]
    converted: bool = False


def check_stored(
    kind: Any,
    config: Any,
    folder: Path,
    stored: Mapping[str, Header],
    names: Iterable[str],
    *,
    unread: Callable[[str], bool],
    least: int,
    tower_layers: str,
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
        tower_layers: key of their number in all.

    Raises:
        ModelError: another number of layers, tensors that are missing, left over, of another shape or of
            whole numbers.
    """
    wanted, read = names_in_memory(kind, config, folder, names)
    found = {own for parts in read.values() for own in parts.names}
    if problems := _layer_problems(config, found, least, tower_layers, f"{folder / CONFIG}"):
        raise ModelError(problems)
    if not stored:
        return
    check_floating({name: header for name, header in stored.items() if not unread(name)})
    # The text section's flag alone ties nothing; where a class heeds it, transformers copies it to the top.
    tied = config.tie_word_embeddings
    pair = [name for name in wanted if name.endswith((HEAD, EMBEDDING))]
    alone = pair if tied and any(name in found for name in pair) else ()
    expected = {
        name: _joined([wanted[own] for own in parts.names])
        for name, parts in read.items()
        if wanted.keys() >= set(parts.names)
    }
    info = {
        "missing_keys": [own for own in wanted if own not in found and own not in alone],
        "unexpected_keys": [name for name in read if name not in expected],
        "mismatched_keys": [
            (" and ".join(read[name].names), stored[name].shape, shape)
            for name, shape in expected.items()
            if stored[name].shape != shape
        ],
    }
    check_complete(info, folder, unread)


def names_in_memory(
    kind: Any, config: Any, folder: Path, names: Iterable[str]
) -> tuple[dict[str, tuple[int, ...]], dict[str, InMemory]]:
    """Return the shapes of a model's tensors by name, and which of them each stored one becomes.

    Args:
        kind: as in `check_stored`.
        config: likewise.
        folder: likewise.
        names: of stored tensors.

    Raises:
        ModelError: transformers cannot make the model.
    """
    import torch
    from transformers import AutoConfig
    from transformers.conversion_mapping import get_model_conversion_mapping

    def build(copy: Path) -> None:
        with torch.device("meta"):
            kind(AutoConfig.from_pretrained(copy))

    with quiet(), reading(folder, CONFIG, build), torch.device("meta"):
        model = kind(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    rules = get_model_conversion_mapping(model)
    return shapes, {name: _read_as(name, rules, model, shapes) for name in names}


def _layer_problems(
    config: Any, names: Iterable[str], read: int, tower_layers: str, where: str
) -> list[str]:
    """A line for each part that has another number of layers in its files than in the configuration."""
    numbers: dict[bool, set[int]] = {}
    for name in names:
        if layer := LAYER.search(name):
            numbers.setdefault(bool(layer[1]), set()).add(int(layer[2]))
    decoder = config.text_config.num_hidden_layers
    tower = getattr(config.vision_config, tower_layers)
    problems = []
    for of_decoder, key, least, most in (
        (True, f"text_config.{LAYERS}", decoder, decoder),
        (False, f"vision_config.{tower_layers}", read, tower),
    ):
        has = max(numbers.get(of_decoder, {-1})) + 1
        # None at all is told with the tensors' names.
        if has and not least <= has <= most:
            problems.append(
                f"{where}: {key}: {most}, but the weights are those of {has} layers: correct the "
                f"number, or {AGAIN}"
            )
    return problems


def _read_as(name: str, rules: Sequence[Any], model: Any, own: dict[str, Any]) -> InMemory:
    """Return which tensors of a model transformers makes of a stored one."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    prefix = model.base_model_prefix
    found, pattern = rename_source_key(name, renamings, converters, prefix, own)
    if found not in own and name in own:
        return InMemory((name,))
    for rule in converters:
        if pattern in rule.source_patterns:
            first, *_ = rule.target_patterns
            names = (found.replace(first, target) for target in rule.target_patterns)
            return InMemory(tuple(names), converted=True)
    return InMemory((found,))


def _joined(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The shape of a stored tensor that tensors of these shapes are cut from, along its first axis."""
    if len(shapes) == 1:
        return shapes[0]
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])
