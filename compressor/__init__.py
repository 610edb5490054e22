"""Recipes, plans, calibration and the compressed decoder: from a model to a smaller one."""

from compressor.version import __version__

DISTRIBUTION = "vtcompress"
"""Names the owner of this package; the front door checks it, because the name is a common one."""

__all__ = ["DISTRIBUTION", "__version__"]
