"""OpenVINO on the CPU reads the same ONNX files; the compiled vision tower is cached for the user.

OpenVINO's own cache is not used: it loads a damaged file and computes wrong answers, and it goes by where a
model lies and when it was written, not by what was verified. What is cached here begins with its sha256.

Limitations:
    - The decoder is compiled anew on every load: OpenVINO 2026.4.1 gives wrong keys from the first layer on
      when it loads this graph from its own cache (`export_model` then `import_model` does it too; values
      are right, so it is the rotary positions). `tests/test_backends.py` tells when that is mended.
    - Caches of later calls are arrays in this process's memory: each call copies them out once.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache as remembered
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from compressor.disk.files import write_bytes
from compressor.errors import ArtifactError, BackendError, MissingExtraError, VtcompressError
from export.backends.backend import Backend, Options, Said
from export.backends.probing import Probed, ProbeFacts
from export.backends.rotations import check_apart, keep_apart
from export.backends.unreported import unreported
from export.graphs.spec import GraphSpec
from export.session.interruptible import check_ending, rows_run
from export.session.session import GraphSession

if TYPE_CHECKING:
    from export.artifact.artifact import Artifact

DEVICE = "CPU"
# How long a signal waits that comes in a call of several rows.
HEARS_MILLISECONDS = 50
# Graphs that OpenVINO loads from its cache with the numbers that it compiled; see Limitations.
CACHED = ("vision",)
DIGEST_BYTES = 32
# Names what is made of a graph before it is compiled: another text, another cache.
REWRITE = "rotations apart"


class CompiledPlace(NamedTuple):
    """Where a compiled graph is cached.

    Attributes:
        place: its file.
        check: raises where the graph that was compiled is not the one that was verified.
    """

    place: Path
    check: Callable[[], None]


class OpenVinoGraph:
    """One compiled graph.

    Args:
        core: `openvino.Core`.
        file: the ONNX file.
        spec: its declaration.
        options: of the compilation.
        cached: where the compiled graph is cached; None: nowhere.
        more: names of values that it gives besides its own outputs.

    Raises:
        ArtifactError: OpenVINO cannot read or compile it, or it lacks an output that is declared.
    """

    def __init__(
        self,
        core: Any,
        file: Path,
        spec: GraphSpec,
        options: dict[str, Any],
        cached: "CompiledPlace | None" = None,
        more: Sequence[str] = (),
    ) -> None:
        self.spec, self._file = spec, file
        with self._reading("load"):
            if more:
                read = core.read_model(str(file))
                read.add_outputs([*more])
                self._model = core.compile_model(read, DEVICE, options)
            else:
                self._model = _compiled(core, file, options, cached)
        there = {name for port in self._model.outputs for name in port.names}
        lacking = [tensor.name for tensor in spec.outputs if tensor.name not in there]
        if lacking:
            problem = f"{file}: has no output {', '.join(lacking)}; do not use this artifact"
            raise ArtifactError([problem])
        # A request holds the numbers of one call: a thread takes one that is free, or makes one.
        self._free: list[Any] = []

    def __call__(self, feeds: Sequence[Any]) -> list[Any]:
        """Run on arrays in declared order; outputs are copies, so that a cache outlives later calls."""
        values = {
            spec.name: np.ascontiguousarray(feed, spec.numpy)
            for spec, feed in zip(self.spec.inputs, feeds, strict=True)
        }
        with self._reading("run"):
            found = self._found(values, long=rows_run(self.spec, feeds) > 1)
        # OpenVINO hands out bfloat16 as bytes of another type of that size.
        return [
            found[spec.name].view(spec.numpy) if spec.dtype == "bfloat16" else found[spec.name]
            for spec in self.spec.outputs
        ]

    def _found(self, values: dict[str, Any], *, long: bool) -> Any:
        """Return the outputs by name; a call that may be long is one that a signal ends."""
        try:
            request = self._free.pop()
        except IndexError:
            request = self._model.create_infer_request()
        if long:
            _run_until_a_signal(request, values)
            found = {spec.name: np.array(request.results[spec.name]) for spec in self.spec.outputs}
        else:
            found = request.infer(values, share_inputs=True, share_outputs=False)
        self._free.append(request)
        return found

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Turn OpenVINO's errors into ours, which name the file; its reason stands last of its lines."""
        try:
            yield
        except RuntimeError as failure:
            lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
            reason = lines[-1] if lines else "no reason given"
            raise ArtifactError([f"{self._file}: OpenVINO cannot {what} it: {reason}"]) from failure


def _run_until_a_signal(request: Any, values: dict[str, Any]) -> None:
    """Run a request; a signal or an `Ending` ends it. `cancel` ends no call of `infer` (2026.4.1)."""
    request.start_async(values, share_inputs=True)
    try:
        while not request.wait_for(HEARS_MILLISECONDS):
            check_ending()
    except BaseException:
        request.cancel()
        with contextlib.suppress(RuntimeError):  # that it was cancelled
            request.wait()
        raise


class OpenVinoSession(GraphSession[OpenVinoGraph]):
    """An artifact in OpenVINO.

    Args:
        folder: the artifact.
        graphs: see `GraphSession`.
        precision: `f32`, or `bf16` where the processor has it.
        threads: of one call; None lets OpenVINO choose.
        cache: folder for compiled models, of this artifact alone; None caches nothing.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        BackendError: the processor cannot run this precision.
    """

    def __init__(
        self,
        folder: Path,
        graphs: Sequence[GraphSpec],
        *,
        precision: str = "f32",
        threads: int | None = None,
        cache: Path | None = None,
    ) -> None:
        core, options = opened_core(precision, threads)

        def open_graph(spec: GraphSpec) -> OpenVinoGraph:
            cached = None
            if cache is not None and spec.name in CACHED:
                place = cache / f"{spec.name}-{_compiler(core, options)}.compiled"
                cached = CompiledPlace(place, self.check_loaded)
            return OpenVinoGraph(core, folder / spec.file, spec, options, cached)

        super().__init__(graphs, open_graph)


def opened_core(precision: str, threads: int | None) -> tuple[Any, dict[str, Any]]:
    """Return OpenVINO and the options that graphs are compiled with.

    Args:
        precision: `f32`, or `bf16` where the processor has it.
        threads: of one call; None lets OpenVINO choose.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        BackendError: the processor cannot run this precision.
    """
    try:
        with unreported():
            import openvino  # noqa: F401
    except ImportError:
        raise MissingExtraError("running an artifact in OpenVINO", "openvino") from None
    core = shared_core()
    check_precision(precision, core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"))
    # Without a hint OpenVINO takes bf16 wherever the processor has it.
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision}
    if precision == "f32":
        # Else what whole numbers are multiplied with is rounded to 8 bits, in blocks, whatever the hint.
        options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    return core, options


def _compiler(core: Any, options: dict[str, Any]) -> str:
    """Return a digest of what decides besides a graph what is compiled: OpenVINO, processor, options, us."""
    import openvino

    asked = ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")
    processor = [core.get_property(DEVICE, name) for name in asked]
    decides = repr((openvino.get_version(), processor, sorted(options.items()), REWRITE))
    return hashlib.sha256(decides.encode()).hexdigest()[:16]


def _compiled(core: Any, file: Path, options: dict[str, Any], cached: CompiledPlace | None) -> Any:
    """Return a compiled graph: the cached one if its digest is right, else a new one, which is cached."""
    if cached is None:
        return _compiled_anew(core, file, options)
    place = cached.place
    with contextlib.suppress(OSError, RuntimeError):
        if place.is_symlink():  # what it points to is not ours to write
            place.unlink()
        held = place.read_bytes()
        digest, model = held[:DIGEST_BYTES], held[DIGEST_BYTES:]
        if hashlib.sha256(model).digest() == digest:
            return core.import_model(model, DEVICE, options)
    compiled = _compiled_anew(core, file, options)
    cached.check()
    with contextlib.suppress(VtcompressError):  # a full disk, a home that is not writable
        model = compiled.export_model().getvalue()
        write_bytes(place, hashlib.sha256(model).digest() + model)
    return compiled


def _compiled_anew(core: Any, file: Path, options: dict[str, Any]) -> Any:
    """Return a compiled graph whose rotations check the shapes that they get."""
    model = core.read_model(str(file))
    keep_apart(model)
    compiled = core.compile_model(model, DEVICE, options)
    check_apart(compiled, file)
    return compiled


@remembered
def shared_core() -> Any:
    """Return this process's only `openvino.Core`, which is never freed.

    The CPU plugin of every Core (2026.4.1) sets a signal stack and, when freed, brings back the one it
    found. Cores that are not freed in the reverse order of their making leave a stack that is freed
    memory, and the next signal, Ctrl-C among them, ends the process with SIGSEGV.
    """
    import openvino

    return openvino.Core()


def check_precision(precision: str, capabilities: Sequence[str]) -> None:
    """Refuse bf16 where the processor has no instructions for it.

    Args:
        precision: that is asked for.
        capabilities: what OpenVINO says of the processor.

    Raises:
        BackendError: it has none; OpenVINO would only imitate them, slower than f32.
    """
    if precision == "bf16" and "BF16" not in capabilities:
        raise BackendError(
            "openvino: this processor has no bf16 instructions (OpenVINO names "
            f"{', '.join(sorted(capabilities))}); use the precision f32"
        )


def cache_folder(key: str) -> Path:
    """Return where compiled models of one artifact are cached: XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vtcompress" / "openvino" / key


class OpenVino(Backend):
    """OpenVINO on the CPU."""

    name = "openvino"
    title = "OpenVINO"
    package = "openvino"
    extra = "openvino"
    distributions = ("openvino",)
    precisions = ("f32", "bf16")
    answers = "devices"

    def open(self, artifact: "Artifact", options: Options) -> GraphSession[Any]:
        """See `Backend.open`."""
        return OpenVinoSession(
            artifact.folder,
            artifact.manifest.graphs,
            precision=options.precision,
            threads=options.threads,
            # What was not verified is not to be what the verified artifact finds later.
            cache=cache_folder(_digest(artifact)) if artifact.verified else None,
        )

    def watch(
        self, artifact: "Artifact", options: Options, spec: GraphSpec, names: Sequence[str]
    ) -> OpenVinoGraph:
        """See `Backend.watch`."""
        core, settings = opened_core(options.precision, options.threads)
        return OpenVinoGraph(core, artifact.folder / spec.file, spec, settings, more=names)

    @staticmethod
    def probe() -> Iterator[ProbeFacts]:
        """Tell the version and the devices."""
        yield {"step": "importing openvino"}
        with unreported():
            library = import_module("openvino")
        yield {"version": library.__version__, "step": "asking for devices"}
        yield {"devices": list(library.Core().available_devices)}

    def finding(self, probed: Probed) -> Said:
        """See `Backend.finding`."""
        return Said(f"{probed.facts['version']}, devices {', '.join(probed.facts['devices'])}")


def _digest(artifact: "Artifact") -> str:
    """Of all files: OpenVINO alone would not notice that only the weight file changed."""
    entries = sorted((name, entry.sha256) for name, entry in artifact.manifest.files.items())
    return hashlib.sha256(repr(entries).encode()).hexdigest()[:16]
