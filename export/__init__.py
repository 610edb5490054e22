"""Graphs, artifacts and their runtime: from a compressed model to files that an edge box runs."""

DISTRIBUTION = "vtcompress"
"""Names the owner of this package; the front door checks it, because the name is a common one."""

__all__ = ["DISTRIBUTION"]
