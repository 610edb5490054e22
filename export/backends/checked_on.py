"""What artifacts are checked, timed and measured in; the only file that says which backend that is."""

from export.backends.backend import Backend
from export.backends.onnxruntime import OnnxGraph, OnnxRuntime, OnnxSession, has_kernels

CHECKED_ON: Backend = OnnxRuntime()
"""It also runs artifacts unless another is asked for."""

__all__ = ["CHECKED_ON", "OnnxGraph", "OnnxSession", "has_kernels"]
