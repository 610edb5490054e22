"""What export fidelity found, beside its limits."""

from compressor.facts import Facts
from export.results.verdict import Check


class FidelityLimits(Facts):
    """What every compared output must satisfy."""

    max_abs: float
    max_relative: float
    min_cosine: float


class Difference(Facts):
    """Two recordings of one output compared.

    Attributes:
        call: e.g. `2 images, T=9: decode step 3`.
        max_abs: largest absolute difference.
        max_relative: the same, divided by the reference's largest absolute value.
        cosine: least cosine similarity over the rows.
    """

    call: str
    max_abs: float
    max_relative: float
    cosine: float


class FidelityReport(Check):
    """The outcome: the worst of each measure, and every failure in words; its limits are always set."""

    calls: int
    limits: FidelityLimits
    worst_abs: Difference
    worst_relative: Difference
    worst_cosine: Difference
