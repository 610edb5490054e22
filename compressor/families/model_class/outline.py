"""Which stored tensors a model needs not have in memory: the large weights of its decoder."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from compressor.errors import ModelError
from compressor.families.checkpoint import headers, listed
from compressor.families.llama_text import EMBEDDING, HEAD
from compressor.families.model_class.stored import names_in_memory
from compressor.families.stand_ins import StoredTensor, is_large, is_stand_in


def decoder_weights(
    kind: Any,
    config: Any,
    folder: Path,
    prefix: str,
    unread: Callable[[str], bool],
    *,
    tied: bool,
) -> dict[str, StoredTensor]:
    """Return the large weights of a decoder, by their names in the files.

    Args:
        kind: transformers' class of the model.
        config: transformers' configuration.
        folder: of the model.
        prefix: of the names of the decoder's tensors in memory.
        unread: whether everything can be computed without a tensor of this name.
        tied: whether the token embedding is the head too.

    Raises:
        ModelError: transformers moves values of some when it loads them.
    """
    stored = headers(folder)
    _, read = names_in_memory(kind, config, folder, stored)
    twice = twice_stored(stored) if tied else ()
    found, moved = {}, []
    for name, header in stored.items():
        own = read[name]
        of_decoder = any(one.startswith(prefix) or one == HEAD for one in own.names)
        if not of_decoder or unread(name) or name in twice:
            continue
        if own.converted:
            moved.append(name)
        elif is_large(header.shape):
            found[name] = StoredTensor(header.path, name, header.shape)
    if moved:
        raise ModelError([_otherwise(folder, moved)])
    return found


def twice_stored(stored: Collection[str]) -> tuple[str, ...]:
    """Return the names of a head that is stored beside the embedding."""
    if not any(name.endswith(EMBEDDING) for name in stored):
        return ()
    return tuple(name for name in stored if name.endswith(HEAD))


def places_in_memory(
    tensors: Mapping[str, Tensor],
    stand_ins: Mapping[str, Tensor],
    places: Mapping[str, StoredTensor],
    folder: Path,
) -> dict[str, StoredTensor]:
    """Return where a decoder's tensors lie, by their names in memory.

    Args:
        tensors: of the decoder, as transformers loaded it.
        stand_ins: that it was given, by their names in the files.
        places: of the tensors that they stand for.
        folder: of the model.

    Raises:
        ModelError: a tensor was made of stand-ins, and is none, or a part of one.
    """
    given = {tensor.data_ptr(): name for name, tensor in stand_ins.items()}
    found, changed = {}, []
    for own, tensor in tensors.items():
        name = given.get(tensor.data_ptr())
        if name is not None and tuple(tensor.shape) == places[name].shape:
            found[own] = places[name]
        elif is_stand_in(tensor) or (tensor.is_floating_point() and tensor.isnan().any()):
            changed.append(own)
    lost = set(places) - {place.name for place in found.values()}
    if changed or lost:
        raise ModelError([_otherwise(folder, [*changed, *lost])])
    return found


def _otherwise(folder: Path, names: Collection[str]) -> str:
    return (
        f"{folder}: {listed(names)}: stored in another form than the model has them in, so that they cannot "
        "be streamed; leave `stream` out, or write the model with transformers' save_pretrained"
    )
