"""Recipes, plans, calibration and the compressed decoder: from a model to a smaller one."""

from compressor.telemetry import switch_off
from compressor.version import __version__

switch_off()  # here, because no module of ours is imported before

DISTRIBUTION = "vtcompress"
"""Names the owner of this package; the front door checks it, because the name is a common one."""

__all__ = ["DISTRIBUTION", "__version__"]
