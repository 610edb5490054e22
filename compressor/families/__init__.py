"""Facts about each model family; nothing outside this package knows a model's name.

What is named here is imported when it is used: a runtime reads `pictures` without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compressor.families.base import Family, LoadedModel, VisionEncoder
    from compressor.families.known import family_of, supported
    from compressor.families.registry import describe, load, moved

_HOMES = {
    "Family": "compressor.families.base",
    "LoadedModel": "compressor.families.base",
    "VisionEncoder": "compressor.families.base",
    "describe": "compressor.families.registry",
    "family_of": "compressor.families.known",
    "load": "compressor.families.registry",
    "moved": "compressor.families.registry",
    "supported": "compressor.families.known",
}

__all__ = [
    "Family",
    "LoadedModel",
    "VisionEncoder",
    "describe",
    "family_of",
    "load",
    "moved",
    "supported",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'compressor.families' has no attribute {name!r}")
