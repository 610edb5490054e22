"""What a backend is: a name, what it needs, what it runs, how it is asked and how it opens a session."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

from compressor.errors import BackendError
from compressor.facts import Facts
from compressor.installing import how_to_install
from export.backends.gpus import INSTALL_DRIVER, Gpu, find_gpu
from export.backends.probing import Probed, ProbeFacts

if TYPE_CHECKING:
    from export.artifact.artifact import Artifact
    from export.artifact.engine_set import OpenedSet
    from export.graphs.spec import GraphSpec
    from export.session.session import Graph, GraphSession

DRIVER_LIBRARIES = ("libcuda.so", "nvcuda.dll", "libnvcuda", "libnvidia-ml")
SHARED_LIBRARY = re.compile(r"[\w.+-]+\.(?:so[\w.]*|dll|dylib)")


class Said(NamedTuple):
    """What was found, and the remedy if it is a gap."""

    words: str
    remedy: str = ""


class Ability(Facts):
    """What can be done with one backend here.

    Attributes:
        backend: its name.
        builds: whether it can build engines here; None: it needs none.
        runs: whether it can run here.
        words: what was found.
        remedy: of what is missing; empty if nothing is.
    """

    backend: str
    builds: bool | None
    runs: bool
    words: str
    remedy: str = ""


class Gap(Facts):
    """Something that is missing or wrong, and what to do."""

    problem: str
    remedy: str


@dataclass(frozen=True)
class Options:
    """How a session is opened; a backend that does not offer an option is never handed another than these.

    Attributes:
        precision: one of the backend's; `f32` runs the graphs as they are.
        threads: of one operator; None lets the backend choose.
        mapped: leave weights in the mapped file.
        gpu: its number.
    """

    precision: str = "f32"
    threads: int | None = None
    mapped: bool = False
    gpu: int = 0


class Backend(ABC):
    """Something that runs an artifact's graphs; a file of `export.backends` each, and a line in `registry`.

    Its library is imported in `open` and `probe` alone, and `probe` runs in a child: it may crash.

    Attributes:
        name: on the command line, in manifests and reports.
        title: for people.
        package: what pip installs anew where the library is broken; its module has the same name.
        extra: of this distribution, which installs it.
        distributions: whose versions `vtcompress doctor` shows.
        precisions: that it runs graphs in.
        on_gpu: it runs on a GPU, which is chosen by a number.
        takes_threads: it runs on the processor, in as many threads as are asked for.
        maps_weights: it can leave weights in the mapped file.
        fixed_caches: it runs graphs that write into caches of fixed size.
        answers: what its probe tells last: it runs if that was told.
        proofs: where it runs engines: the checks that they have passed by being there, lowest first, and what
            each proves and does not.
        ahead: its engines are built ahead of time, without a GPU.
    """

    name: str
    title: str
    package: str
    extra: str
    distributions: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("f32",)
    on_gpu: bool = False
    takes_threads: bool = True
    maps_weights: bool = False
    fixed_caches: bool = False
    answers: str = "version"
    proofs: tuple[tuple[str, str], ...] = ()
    ahead: bool = False

    @abstractmethod
    def open(self, artifact: "Artifact", options: Options) -> "GraphSession[Any]":
        """Return a session on an artifact.

        Raises:
            MissingExtraError: the library is not installed.
            BackendError: it is, and cannot run here, or not in this precision.
            ArtifactError: what it runs is not there, or must not be loaded.
        """

    def watch(
        self,
        artifact: "Artifact",  # noqa: ARG002 - as of those that can
        options: Options,  # noqa: ARG002
        spec: "GraphSpec",  # noqa: ARG002
        names: "Sequence[str]",  # noqa: ARG002
    ) -> "Graph":
        """Return a graph of an artifact that gives some of its values too.

        Args:
            artifact: has the graph.
            options: as of `open`.
            spec: its declaration, those values in front of its outputs.
            names: of the values.

        Raises:
            BackendError: this backend cannot.
            ArtifactError: the graph cannot be loaded.
        """
        raise BackendError(
            f"{self.name}: gives nothing of what is within its graphs; a backend that runs on the CPU does"
        )

    @staticmethod
    @abstractmethod
    def probe() -> Iterator[ProbeFacts]:
        """Tell `version`, and what else `finding` reads; see `export.backends.probing.Probe`."""

    def finding(self, probed: Probed) -> Said:
        """Say what the probe of a library that answered has shown; with a remedy if it cannot run."""
        return Said(str(probed.facts["version"]))

    def ability(self, probed: Probed, gpus: Sequence[Gpu]) -> Ability:  # noqa: ARG002 - for engines
        """Judge what a probe said.

        Args:
            probed: what `probe` told.
            gpus: of this machine.
        """
        said = self.failed(probed)
        if said is None and (reason := probed.unfinished(self.answers)):
            said = Said(reason, self.repair)
        said = said or self.finding(probed)
        return Ability(backend=self.name, builds=None, runs=not said.remedy, **said._asdict())

    def gaps(self, probed: Probed) -> Iterator[Gap]:  # noqa: ARG002 - most have none
        """Yield what is wrong with the installation and concerns other backends too."""
        yield from ()

    def lacks(self, dtype: str) -> str:  # noqa: ARG002 - most run all
        """Return why it cannot run graphs of a dtype; empty: it can."""
        return ""

    def engines(self, session: Any) -> "OpenedSet | None":  # noqa: ARG002 - most have none
        """Return the engines that a session of this backend runs; None: it runs the graphs themselves."""
        return None

    def device_name(self, gpu: int) -> str:
        """Return the name of the GPU that it runs on; empty: it runs on none.

        Raises:
            BackendError: there is no GPU of this number.
        """
        return find_gpu(gpu).name if self.on_gpu else ""

    @property
    def repair(self) -> str:
        """What mends a broken library."""
        return f"pip install --force-reinstall {self.package}"

    def failed(self, probed: Probed) -> Said | None:
        """Return why the library cannot be imported, and the remedy; None if it was imported."""
        facts = probed.facts
        words = str(facts.get("words", ""))
        if probed.cut_short and "version" not in facts:
            return Said(f"{self.title} is installed and {probed.cut_short}", self.repair)
        if "error" not in facts or "version" in facts:
            return None
        if facts["error"] == "missing" and facts["missing"] == self.package.replace("-", "_"):
            return Said("not installed", how_to_install(self.extra))
        if facts["error"] == "missing":
            return Said(
                f"{self.title} is installed without a part of it: no module {facts['missing']}",
                self.repair,
            )
        library = SHARED_LIBRARY.search(words)
        if library and library[0].startswith(DRIVER_LIBRARIES):
            return Said(
                f"{self.title} is installed, NVIDIA's driver is not: no {library[0]}",
                INSTALL_DRIVER,
            )
        if library:
            return Said(
                f"{self.title}'s Python bindings are installed without its libraries, or they do not fit: "
                f"{words}",
                f"{self.repair}; libraries of the system must be on LD_LIBRARY_PATH",
            )
        return Said(f"{self.title} is installed and cannot be imported: {words}", self.repair)


def installed_version(name: str) -> str | None:
    """Return a distribution's version; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
