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
    from compressor.errors import VtcompressError
    from compressor.plan.plan import Plan
    from compressor.profile import Profile
    from compressor.recipe import Recipe
    from compressor.version import __version__
    from export.artifact.artifact import Artifact
    from export.artifact.manifest import Manifest
    from export.runtime.runtime import Runtime
    from vtcompress.shipped import load_recipe
    from vtcompress.stages.bench import bench
    from vtcompress.stages.calibrate import calibrate, merge_profiles
    from vtcompress.stages.compress import compress, load_compressed
    from vtcompress.stages.export import export
    from vtcompress.stages.gates.training import train_gates
    from vtcompress.stages.healing.training import heal
    from vtcompress.stages.inspect import inspect
    from vtcompress.stages.models import models
    from vtcompress.stages.packing.pack import pack
    from vtcompress.stages.parts.training import train_parts
    from vtcompress.stages.plan import costs, plan
    from vtcompress.stages.searching.run import search
    from vtcompress.stages.selftest.run import selftest
    from vtcompress.stages.sweep import sweep
    from vtcompress.stages.validate import validate
    from vtcompress.stages.validate_backend import validate_backend

# Before anything of the packages that it looks at is imported: nothing of another's file may run.
check_ownership()
# Its import stops what reports: now, as a program may import onnxruntime next, before a stage is asked for.
import_module("compressor")

_HOMES = {
    "Artifact": "export.artifact.artifact",
    "Manifest": "export.artifact.manifest",
    "Plan": "compressor.plan.plan",
    "Profile": "compressor.profile",
    "Recipe": "compressor.recipe",
    "Runtime": "export.runtime.runtime",
    "VtcompressError": "compressor.errors",
    "__version__": "compressor.version",
    "bench": "vtcompress.stages.bench",
    "calibrate": "vtcompress.stages.calibrate",
    "compress": "vtcompress.stages.compress",
    "costs": "vtcompress.stages.plan",
    "export": "vtcompress.stages.export",
    "heal": "vtcompress.stages.healing.training",
    "inspect": "vtcompress.stages.inspect",
    "load_compressed": "vtcompress.stages.compress",
    "load_recipe": "vtcompress.shipped",
    "merge_profiles": "vtcompress.stages.calibrate",
    "models": "vtcompress.stages.models",
    "pack": "vtcompress.stages.packing.pack",
    "plan": "vtcompress.stages.plan",
    "search": "vtcompress.stages.searching.run",
    "selftest": "vtcompress.stages.selftest.run",
    "sweep": "vtcompress.stages.sweep",
    "train_gates": "vtcompress.stages.gates.training",
    "train_parts": "vtcompress.stages.parts.training",
    "validate": "vtcompress.stages.validate",
    "validate_backend": "vtcompress.stages.validate_backend",
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
    "costs",
    "export",
    "heal",
    "inspect",
    "load_compressed",
    "load_recipe",
    "merge_profiles",
    "models",
    "pack",
    "plan",
    "search",
    "selftest",
    "sweep",
    "train_gates",
    "train_parts",
    "validate",
    "validate_backend",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vtcompress' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
