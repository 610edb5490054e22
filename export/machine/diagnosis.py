"""What `vtcompress doctor` found on a machine."""

from compressor.errors import BackendError
from compressor.facts import Facts
from export.backends.registry import Backend


class Package(Facts):
    """An installed distribution; `version` is None where there is none."""

    name: str
    version: str | None
    words: str = ""


class Gpu(Facts):
    """One GPU; `capability` such as `SM86`, empty if nobody told it."""

    name: str
    capability: str


class Ability(Facts):
    """What can be done with one backend here.

    Attributes:
        backend: its name.
        builds: whether it can build engines here; None: it needs none.
        runs: whether it can run here.
        words: what was found.
        remedy: of what is missing; empty if nothing is.
    """

    backend: Backend
    builds: bool | None
    runs: bool
    words: str
    remedy: str = ""


class Gap(Facts):
    """Something that is missing or wrong, and what to do."""

    problem: str
    remedy: str


class Diagnosis(Facts):
    """Everything that was found.

    Attributes:
        python: version.
        system: operating system and processor.
        packages: of `PACKAGES`, installed or not.
        driver: version of NVIDIA's; None: not found.
        gpus: NVIDIA's.
        providers: of ONNX Runtime: those that it lists.
        active: of ONNX Runtime: those that sessions really got.
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
