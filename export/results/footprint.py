"""Resident memory of a process that runs an artifact."""

from compressor.facts import Facts


class Footprint(Facts):
    """Resident memory of a process that runs an artifact in ONNX Runtime on the CPU.

    Attributes:
        empty_bytes: before the graphs are loaded: Python and its packages.
        loaded_bytes: after all graphs are loaded; mapped pages count once they were read.
        answered_bytes: after one picture and `tokens` decoding steps.
        tokens: how many.
    """

    empty_bytes: int
    loaded_bytes: int
    answered_bytes: int
    tokens: int
