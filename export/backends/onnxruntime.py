"""ONNX Runtime on the CPU."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.disk.opening import read_bytes
from compressor.errors import ArtifactError, MissingExtraError, first_line
from compressor.installing import how_to_install
from export.artifact.onnx_header import MAX_GRAPH_BYTES, more_outputs
from export.backends.backend import Backend, Gap, Options, Said, installed_version
from export.backends.probing import Probed, ProbeFacts
from export.graphs.spec import GraphSpec, TensorSpec
from export.session.arrays import Array
from export.session.fixed_cache import BLOCK
from export.session.interruptible import Interruptible, Returned, rows_run
from export.session.session import GraphSession

if TYPE_CHECKING:
    from export.artifact.artifact import Artifact

CPU = "CPUExecutionProvider"
# A graph that returns its input, [1] float32: what the ONNX package would write, here without it.
IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a00100d"
)
NO_BFLOAT16 = "its CPU has no bfloat16 MatMul or Attention, and it passes no bfloat16 arrays"
# They all install one and the same package folder.
ONE_OF = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
# ONNX Runtime's option for graphs that come from memory.
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
# How exactly products with whole numbers are computed; 1: in float32, as a graph's operators say.
MATMUL_BITS_ACCURACY = "session.qdq_matmulnbits_accuracy_level"
# And that by which a session tells where its nodes run.
RECORD_PLACES = "session.record_ep_graph_assignment_info"


class OnnxGraph:
    """One graph in ONNX Runtime, by default on the CPU.

    Weights are mapped from the artifact's weight file. ONNX Runtime then packs those of matrix products
    for its kernels into memory of its own and drops the mapping, unless it is told to leave them there.

    Args:
        folder: the artifact.
        spec: the graph's declaration.
        threads: of one operator; None lets ONNX Runtime choose.
        provider: ONNX Runtime's name of what runs it.
        provider_options: of the provider, such as the number of its device.
        mapped: do not pack: weights stay pages of the file, which processes share and the system may drop.
        content: the graph itself where it is not that of the file; its weights are still the folder's.
        optimized: let ONNX Runtime fold and join nodes.
        exact: compute with weights in whole numbers as the graph says. ONNX Runtime's own choice is to round
            what they are multiplied with to 8 bits, too, in blocks: that is what makes int8 and int4 fast.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        ArtifactError: the graph cannot be loaded.
    """

    def __init__(
        self,
        folder: Path,
        spec: GraphSpec,
        threads: int | None = None,
        provider: str = CPU,
        *,
        mapped: bool = False,
        content: bytes | None = None,
        optimized: bool = True,
        exact: bool = False,
        provider_options: dict[str, Any] | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtraError("running an artifact", "cpu") from None
        self.spec = spec
        self._values, self._run_options = onnxruntime.OrtValue, onnxruntime.RunOptions
        self._calls, self._file = Interruptible(), folder / spec.file
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.load_model_format", "ONNX")
        if threads is not None:
            options.intra_op_num_threads = threads
        if mapped:
            options.add_session_config_entry("session.disable_prepacking", "1")
        if not optimized:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            # The default order runs all casts of weights first, and then holds all that they made.
            options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        if exact:
            options.add_session_config_entry(MATMUL_BITS_ACCURACY, "1")
        if provider != CPU:
            options.add_session_config_entry(RECORD_PLACES, "1")
        if content is not None:
            options.add_session_config_entry(WEIGHTS_FOLDER, str(folder))
        try:
            self.session = onnxruntime.InferenceSession(
                content or str(folder / spec.file),
                options,
                providers=[(provider, provider_options or {})],
            )
        except Exception as failure:
            # ONNX Runtime raises classes of its own that share no documented base but Exception.
            reason = first_line(failure)
            raise ArtifactError(
                [f"{self._file}: ONNX Runtime cannot load it: {reason}"]
            ) from failure

    def __call__(self, feeds: Sequence[Any]) -> list[Any]:
        """Run on inputs in declared order (arrays, or values that an earlier call returned)."""
        return self.run(feeds)

    def run(self, feeds: Sequence[Any], more: Sequence[str] = ()) -> list[Any]:
        """Run as a call does; outputs that are not declared come behind the others."""
        values = {
            spec.name: self._value(spec, feed)
            for spec, feed in zip(self.spec.inputs, feeds, strict=True)
        }
        names = [*(spec.name for spec in self.spec.outputs), *more]
        return list(
            self.ending(feeds, lambda o: self.session.run_with_ort_values(names, values, o))
        )

    def ending(self, feeds: Sequence[Any], call: Callable[[Any], Returned]) -> Returned:
        """Run a call with run options, by which a signal ends it where it may be long.

        Raises:
            ArtifactError: ONNX Runtime fails in the graph.
        """
        options = self._run_options()

        def stop() -> None:
            options.terminate = True

        try:
            return self._calls.run(rows_run(self.spec, feeds), lambda: call(options), stop)
        except Exception as failure:  # classes of its own, as above
            raise ArtifactError(
                [f"{self._file}: ONNX Runtime cannot run it: {first_line(failure)}"]
            ) from failure

    def bound(self, buffers: Mapping[str, Array]) -> Callable[[Sequence[Any]], list[Any]]:
        """Return what runs a graph with fixed caches in these buffers.

        Input and output of a cache are one memory, so that new rows are written in place. Buffers
        stay bound; a call binds its rows, and outputs of its own.

        Args:
            buffers: by the names of the inputs.
        """
        cached = self.spec.cached
        binding, found = self.session.io_binding(), self.spec.outputs[: -len(cached)]
        for spec in found:
            binding.bind_output(spec.name)
        for given, left in zip(cached, self.spec.outputs[len(found) :], strict=True):
            value = self._value(given, buffers[given.name])
            binding.bind_ortvalue_input(given.name, value)
            binding.bind_ortvalue_output(left.name, value)
        names = {spec.name for spec in cached}
        fed = [spec for spec in self.spec.inputs if spec.name not in names]

        def run(feeds: Sequence[Any]) -> list[Any]:
            for spec, feed in zip(fed, feeds, strict=True):
                binding.bind_ortvalue_input(spec.name, self._value(spec, feed))
            for spec in found:
                binding.bind_output(spec.name)
            self.ending(feeds, lambda o: self.session.run_with_iobinding(binding, o))
            return list(binding.get_outputs()[: len(found)])

        return run

    def _value(self, spec: TensorSpec, feed: Any) -> Any:
        """Return what ONNX Runtime takes: for an array a value on the same memory if it is fit."""
        if not isinstance(feed, np.ndarray):
            return feed
        return self._values.ortvalue_from_numpy(np.ascontiguousarray(feed, spec.numpy))


class OnnxSession(GraphSession[OnnxGraph]):
    """An artifact in ONNX Runtime on the CPU.

    Args:
        folder: the artifact.
        graphs: see `GraphSession`.
        decoder: see `GraphSession`.
        threads: of one operator; None lets ONNX Runtime choose.
        mapped, optimized, exact: see `OnnxGraph`.
        block: see `GraphSession`.
    """

    def __init__(
        self,
        folder: Path,
        graphs: Sequence[GraphSpec],
        *,
        decoder: str = "decoder",
        threads: int | None = None,
        mapped: bool = False,
        optimized: bool = True,
        exact: bool = False,
        block: int = BLOCK,
    ) -> None:
        def open_graph(spec: GraphSpec) -> OnnxGraph:
            return OnnxGraph(folder, spec, threads, mapped=mapped, optimized=optimized, exact=exact)

        super().__init__(graphs, open_graph, decoder, block)
        self._folder = folder

    def declared(self, spec: GraphSpec) -> tuple[Sequence[Any], Sequence[Any]]:
        """Return the inputs and outputs that a graph file has, each with `name`, `shape` and `type`."""
        if spec.name in self.runs:
            loaded = self.graph(spec.name)
        else:  # only looked at: its weights need not be made ready for kernels, in memory of their own
            loaded = OnnxGraph(self._folder, spec, mapped=True, optimized=False)
        return loaded.session.get_inputs(), loaded.session.get_outputs()


class OnnxRuntime(Backend):
    """ONNX Runtime on the CPU."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    package = "onnxruntime"
    extra = "cpu"
    distributions = ("onnxruntime", "onnxruntime-gpu")
    maps_weights = True
    fixed_caches = True
    answers = "active"

    def open(self, artifact: "Artifact", options: Options) -> GraphSession[Any]:
        """See `Backend.open`."""
        if importlib.util.find_spec(self.package) is None:
            raise MissingExtraError("running an artifact", self.extra)
        manifest = artifact.manifest
        # Weights in float16 would be folded to float32, all of them in memory of their own.
        folded = options.mapped and manifest.dtype == "float16"
        return OnnxSession(
            artifact.folder,
            manifest.graphs,
            threads=options.threads,
            mapped=options.mapped,
            optimized=not folded,
        )

    def watch(
        self, artifact: "Artifact", options: Options, spec: GraphSpec, names: Sequence[str]
    ) -> OnnxGraph:
        """See `Backend.watch`."""
        content = read_bytes(artifact.folder / spec.file, MAX_GRAPH_BYTES) + more_outputs(names)
        return OnnxGraph(artifact.folder, spec, options.threads, content=content)

    @staticmethod
    def probe() -> Iterator[ProbeFacts]:
        """Tell which build is active, and which providers a session really gets."""
        return probe_provider(CPU, "the CPU")

    def finding(self, probed: Probed) -> Said:
        """See `Backend.finding`."""
        return Said(f"{probed.facts['package']} {probed.facts['version']}")

    def lacks(self, dtype: str) -> str:
        """See `Backend.lacks`."""
        return NO_BFLOAT16 if dtype == "bfloat16" else ""

    def gaps(self, probed: Probed) -> Iterator[Gap]:
        """Yield that several builds are installed, which overwrite each other."""
        there = [name for name in ONE_OF if installed_version(name)]
        if len(there) > 1:
            active = probed.facts.get("package")
            active = f"active is {active}" if active else "none of them can be imported"
            yield Gap(
                problem=f"{' and '.join(there)} are installed and overwrite each other; {active}",
                remedy=f"pip uninstall -y {' '.join(there)}, then install the one that you want: "
                f"{how_to_install('gpu')} with an NVIDIA GPU, otherwise with cpu for gpu",
            )


def probe_provider(provider: str, place: str) -> Iterator[ProbeFacts]:
    """Tell version and build, the providers that are offered, and those that a session for one gets."""
    yield {"step": "importing onnxruntime"}
    library = import_module("onnxruntime")
    built = import_module("onnxruntime.capi.build_and_package_info")
    yield {"version": library.__version__, "package": built.package_name}
    offered = library.get_available_providers()
    yield {"offered": offered, "step": f"creating a session on {place}"}
    if provider in (CPU, *offered):
        options = library.SessionOptions()
        options.log_severity_level = 4
        session = library.InferenceSession(IDENTITY, options, providers=[provider])
        yield {"active": session.get_providers()}


def has_kernels(content: bytes) -> bool:
    """Return whether the CPU has a kernel for every node of a graph, found by loading it."""
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernelError

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(content, options, providers=[CPU])
    except NoKernelError:
        return False
    return True
