"""One call for every backend: vision, embedding and decoder on numpy arrays, caches kept by the backend."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compressor.errors import ArtifactError, MissingExtraError
from export.graphs import GraphSpec

Array = NDArray[Any]
Past = Any
"""Keys and values in the backend's own form; passed back to the session that returned them."""


class Session(Protocol):
    """A model that runs; B batch, I images, V visual rows, T text rows, P past."""

    def vision(self, pixel_values: Array) -> Array:
        """Pixels [I, 3, S, S] float32 to visual embeddings [I, N, D]."""
        ...

    def embed(self, input_ids: Array) -> Array:
        """Token ids [B, T] to text embeddings [B, T, D]."""
        ...

    def decode(
        self, visual: Array, text: Array, visual_index: Array, text_index: Array, past: Past
    ) -> tuple[Array, Past]:
        """Run the decoder on V visual and T text rows; return logits [B, 1 or T, vocab] and the new past."""
        ...

    def empty_past(self, batch: int) -> Past:
        """Return the cache before the first call."""
        ...

    def past_shapes(self, past: Past) -> tuple[tuple[int, ...], ...]:
        """Return the shape of every cached tensor, in the order of the decoder's inputs."""
        ...


def no_visual(text: Array) -> tuple[Array, Array]:
    """Return empty visual embeddings and indices for a call on text rows alone."""
    batch, _, hidden = text.shape
    return np.zeros((batch, 0, hidden), text.dtype), np.zeros((batch, 0), np.int64)


class OnnxGraph:
    """One graph in ONNX Runtime on the CPU.

    Args:
        folder: the artifact.
        spec: the graph's declaration.
        threads: of one operator; None lets ONNX Runtime choose.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        ArtifactError: the graph cannot be loaded.
    """

    def __init__(self, folder: Path, spec: GraphSpec, threads: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtraError("running an artifact", "cpu") from None
        self.spec = spec
        self._values = onnxruntime.OrtValue
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self.session = onnxruntime.InferenceSession(
                str(folder / spec.file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as failure:
            # ONNX Runtime raises classes of its own that share no documented base but Exception.
            reason = str(failure).strip().splitlines()[0]
            raise ArtifactError(
                [f"{folder / spec.file}: ONNX Runtime cannot load it: {reason}"]
            ) from failure

    def __call__(self, feeds: Sequence[Any]) -> list[Any]:
        """Run on inputs in declared order (arrays, or values that an earlier call returned)."""
        values = {
            spec.name: self._values.ortvalue_from_numpy(np.ascontiguousarray(feed, spec.numpy))
            if isinstance(feed, np.ndarray)
            else feed
            for spec, feed in zip(self.spec.inputs, feeds, strict=True)
        }
        names = [spec.name for spec in self.spec.outputs]
        return list(self.session.run_with_ort_values(names, values))


class OnnxSession:
    """An artifact in ONNX Runtime; graphs are loaded when first used.

    Args:
        folder: the artifact.
        graphs: declarations by name; needs `vision`, `embed` and the decoder.
        decoder: name of the decoder graph, `decoder` or `baseline_decoder`.
        threads: of one operator; None lets ONNX Runtime choose.
    """

    def __init__(
        self,
        folder: Path,
        graphs: Sequence[GraphSpec],
        *,
        decoder: str = "decoder",
        threads: int | None = None,
    ) -> None:
        self._folder = folder
        self._specs = {spec.name: spec for spec in graphs}
        self._decoder = decoder
        self._threads = threads
        self._loaded: dict[str, OnnxGraph] = {}

    def graph(self, name: str) -> OnnxGraph:
        """Return a loaded graph."""
        if name not in self._loaded:
            self._loaded[name] = OnnxGraph(self._folder, self._specs[name], self._threads)
        return self._loaded[name]

    def load(self) -> None:
        """Load all graphs now, so that the first call is not slower than the next."""
        for name in ("vision", "embed", self._decoder):
            self.graph(name)

    def vision(self, pixel_values: Array) -> Array:
        """See `Session.vision`."""
        features: Array = self.graph("vision")([pixel_values])[0].numpy()
        return features

    def embed(self, input_ids: Array) -> Array:
        """See `Session.embed`."""
        embeds: Array = self.graph("embed")([input_ids])[0].numpy()
        return embeds

    def decode(
        self, visual: Array, text: Array, visual_index: Array, text_index: Array, past: Past
    ) -> tuple[Array, Past]:
        """See `Session.decode`."""
        logits, *present = self.graph(self._decoder)(
            [visual, text, visual_index, text_index, *past]
        )
        return logits.numpy(), present

    def empty_past(self, batch: int) -> Past:
        """See `Session.empty_past`."""
        sizes = {"batch": batch, "past": 0}
        caches = self._specs[self._decoder].inputs[4:]
        return [np.zeros(spec.shape(sizes), spec.numpy) for spec in caches]

    def past_shapes(self, past: Past) -> tuple[tuple[int, ...], ...]:
        """See `Session.past_shapes`."""
        return tuple(tuple(v.shape if isinstance(v, np.ndarray) else v.shape()) for v in past)
