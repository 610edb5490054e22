"""Moves a loaded original to a device, or lays it over several."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import nn

from compressor.families.base import LoadedModel
from compressor.families.devices.device_map import DeviceMap, around
from compressor.families.known import family_that_read
from compressor.families.stand_ins import HeldTensor, is_large, stand_in


def moved(model: LoadedModel, device: str) -> LoadedModel:
    """Return a loaded model with its weights on another device of torch; the one given is there too then."""
    _gather(model.original)
    original = model.original.to(device)
    tensors = family_that_read(model.facts).tensors(original)
    vision = model.vision.to(device)
    return replace(model, original=original, vision=vision, tensors=tensors, stored={})


def laid_out(model: LoadedModel, places: DeviceMap) -> LoadedModel:
    """Return a loaded model with its weights where a device map says; the one given is there too then.

    The original runs as before: hooks of accelerate send states to where the next weights lie, and those in
    the CPU's memory to the first device each time they run. Of `tensors` what lies elsewhere than on the
    first device has stand-ins there.

    Args:
        model: on the CPU, all weights in memory.
        places: that `device_map_of` made of it.
    """
    family, original, first = family_that_read(model.facts), model.original, places.first
    before = family.tensors(original)
    _dispatch(original, places)
    # Where the map says CPU, accelerate leaves nothing but shapes in the modules.
    held = {n: before[n] if t.is_meta else t for n, t in family.tensors(original).items()}
    stored = {
        name: HeldTensor(name, tensor)
        for name, tensor in held.items()
        if str(tensor.device) != first and is_large(tuple(tensor.shape))
    }
    tensors = {
        name: stand_in(tuple(tensor.shape), tensor.dtype, first)
        if name in stored
        else tensor.to(first)
        for name, tensor in held.items()
    }
    return replace(model, vision=model.vision.to(first), tensors=tensors, stored=stored)


def _dispatch(original: Any, places: DeviceMap) -> None:
    from accelerate import dispatch_model

    for module, _ in around(original, places.list_of_layers):
        for tensor in _own_tensors(module):  # of them accelerate's map of modules has nothing
            tensor.data = tensor.data.to(places.first)
    with _without_warnings():
        dispatch_model(
            original,
            dict(places.modules),
            main_device=places.first,
            skip_keys=getattr(original, "_skip_keys_device_placement", None),
        )


def _gather(original: Any) -> None:
    """Take accelerate's hooks from an original, if it has any: all of its weights are in memory then."""
    if not hasattr(original, "hf_device_map"):
        return
    from accelerate.hooks import remove_hook_from_submodules

    remove_hook_from_submodules(original)
    del original.hf_device_map
    # Where there was a hook, the class's own method is left as a value.
    for module in original.modules():
        vars(module).pop("forward", None)


def _own_tensors(module: nn.Module) -> Iterator[Any]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Keep accelerate from warning of what is meant: weights that the CPU holds, tensors beside modules."""
    log = logging.getLogger("accelerate.big_modeling")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
