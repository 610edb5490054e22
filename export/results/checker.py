"""Outcome of the ONNX package's own checker."""

from export.results.verdict import Check


class CheckerReport(Check):
    """The outcome.

    Attributes:
        version: of the ONNX package.
        files: that were checked.
    """

    version: str
    files: tuple[str, ...]
