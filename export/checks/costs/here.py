"""What times are taken on here."""

from compressor.plan.measured_cost import MeasuredOn
from export.backends.backend import installed_version
from export.backends.checked_on import CHECKED_ON
from export.checks.bench import cpu_name


def measured_on(threads: int) -> MeasuredOn:
    """Return what times are taken on here, so many threads an operator."""
    version = next(filter(None, map(installed_version, CHECKED_ON.distributions)), "unknown")
    runtime = f"{CHECKED_ON.title} {version}"
    return MeasuredOn(processor=cpu_name(), runtime=runtime, threads=threads)
