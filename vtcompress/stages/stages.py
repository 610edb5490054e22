"""The stages of the tool as functions; the command line is a thin layer over them.

Stages that take long have an argument `progress`: bars and stages on stderr where that is a terminal, nothing
elsewhere; an object of your own (`compressor.progress.Progress`) gets both, and `SILENT` of that module none.
"""

from vtcompress.shipped import load_recipe
from vtcompress.stages.bench import bench
from vtcompress.stages.calibrate import calibrate
from vtcompress.stages.compress import compress, load_compressed
from vtcompress.stages.export import export, predicted
from vtcompress.stages.gates.training import train_gates
from vtcompress.stages.inspect import inspect
from vtcompress.stages.plan import plan
from vtcompress.stages.validate import Validation, validate

__all__ = [
    "Validation",
    "bench",
    "calibrate",
    "compress",
    "export",
    "inspect",
    "load_compressed",
    "load_recipe",
    "plan",
    "predicted",
    "train_gates",
    "validate",
]
