"""Facts about each model family; nothing outside this package knows a model's name."""

from compressor.families.base import Family, LoadedModel, VisionEncoder
from compressor.families.registry import describe, family_of, load, supported

__all__ = ["Family", "LoadedModel", "VisionEncoder", "describe", "family_of", "load", "supported"]
