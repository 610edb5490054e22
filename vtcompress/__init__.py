"""vtcompress: makes the savings on visual tokens of multimodal LLMs physical.

The public API: one function a stage, each from values or files of the stage before it. Importing this
package imports neither torch nor transformers; a stage imports what it needs when it runs.

Example:
    >>> import vtcompress
    >>> recipe = vtcompress.load_recipe("shortv")
    >>> recipe = recipe.override({"model.id": "my-llava", "calibrate.data": "calibration.jsonl"})
    >>> manifest = vtcompress.export(recipe, "my-llava-shortv")  # doctest: +SKIP
    >>> runtime = vtcompress.Runtime.load("my-llava-shortv")  # doctest: +SKIP
    >>> print("".join(runtime.generate("What is this?", "photo.jpg")))  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vtcompress.ownership import check_ownership

if TYPE_CHECKING:
    from compressor.calibration.profile import Profile
    from compressor.errors import VtcompressError
    from compressor.plan import Plan
    from compressor.recipe import Recipe
    from compressor.version import __version__
    from export.artifact import Artifact
    from export.manifest import Manifest
    from export.runtime import Runtime
    from vtcompress.backend_check import validate_backend
    from vtcompress.stages import (
        bench,
        calibrate,
        compress,
        export,
        inspect,
        load_compressed,
        load_recipe,
        plan,
        train_gates,
        validate,
    )

# Before anything of the packages that it looks at is imported: nothing of another's file may run.
check_ownership()
# Its import stops what reports: now, as a program may import onnxruntime next, before a stage is asked for.
import_module("compressor")

_HOMES = {
    "Artifact": "export.artifact",
    "Manifest": "export.manifest",
    "Plan": "compressor.plan",
    "Profile": "compressor.calibration.profile",
    "Recipe": "compressor.recipe",
    "Runtime": "export.runtime",
    "VtcompressError": "compressor.errors",
    "__version__": "compressor.version",
    "bench": "vtcompress.stages",
    "calibrate": "vtcompress.stages",
    "compress": "vtcompress.stages",
    "export": "vtcompress.stages",
    "inspect": "vtcompress.stages",
    "load_compressed": "vtcompress.stages",
    "load_recipe": "vtcompress.stages",
    "plan": "vtcompress.stages",
    "train_gates": "vtcompress.stages",
    "validate": "vtcompress.stages",
    "validate_backend": "vtcompress.backend_check",
}

__all__ = [
    "Artifact",
    "Manifest",
    "Plan",
    "Profile",
    "Recipe",
    "Runtime",
    "VtcompressError",
    "__version__",
    "bench",
    "calibrate",
    "compress",
    "export",
    "inspect",
    "load_compressed",
    "load_recipe",
    "plan",
    "train_gates",
    "validate",
    "validate_backend",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vtcompress' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
