"""Tells lmms-eval of its model `vtcompress`; the entry point of the group `lmms_eval.models`."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> "ModelManifest":
    """Return what lmms-eval (0.7) registers; the class is imported when it is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("vtcompress", chat_class_path="export.evaluation.lmms.CompressedLmm")
