"""What `vtcompress doctor` found on a machine."""

from compressor.errors import BackendError
from compressor.facts import Facts
from export.backends.backend import Ability, Gap
from export.backends.gpus import Gpu


class Package(Facts):
    """An installed distribution; `version` is None where there is none."""

    name: str
    version: str | None
    words: str = ""


class Diagnosis(Facts):
    """Everything that was found.

    Attributes:
        python: version.
        system: operating system and processor.
        packages: that the tool can use, installed or not.
        driver: version of NVIDIA's; None: not found.
        gpus: NVIDIA's.
        providers: of the reference: those that it lists.
        active: of the reference: those that sessions really got.
        abilities: one for each backend.
        gaps: that concern no single backend.
    """

    python: str
    system: str
    packages: tuple[Package, ...]
    driver: str | None
    gpus: tuple[Gpu, ...]
    providers: tuple[str, ...]
    active: tuple[str, ...]
    abilities: tuple[Ability, ...]
    gaps: tuple[Gap, ...]

    def ability(self, backend: str) -> Ability:
        """Return what was found of a backend."""
        return next(a for a in self.abilities if a.backend == backend)

    def require(self, backend: str) -> None:
        """Refuse a backend that cannot run here.

        Raises:
            BackendError: says why, and what to do.
        """
        found = self.ability(backend)
        if not found.runs:
            raise BackendError(f"{backend}: {found.words}; {found.remedy}")
