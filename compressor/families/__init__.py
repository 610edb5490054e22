"""Facts about each model family; nothing outside this package knows a model's name.

What is named here is imported when it is used: a runtime reads `pictures` without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.families.base import Family, LoadedModel, VisionEncoder
    from compressor.families.devices.device_map import device_map_of
    from compressor.families.devices.moving import laid_out, moved
    from compressor.families.known import family_of, supported
    from compressor.families.registry import describe, load

_HOMES = {
    "Family": "compressor.families.base",
    "LoadedModel": "compressor.families.base",
    "VisionEncoder": "compressor.families.base",
    "describe": "compressor.families.registry",
    "device_map_of": "compressor.families.devices.device_map",
    "family_of": "compressor.families.known",
    "laid_out": "compressor.families.devices.moving",
    "load": "compressor.families.registry",
    "moved": "compressor.families.devices.moving",
    "supported": "compressor.families.known",
}

__all__ = [
    "Family",
    "LoadedModel",
    "VisionEncoder",
    "describe",
    "device_map_of",
    "family_of",
    "laid_out",
    "load",
    "moved",
    "supported",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'compressor.families' has no attribute {name!r}")
