"""Times ONNX graphs of compressed decoders of LLaVA-1.5-7B's shape, beside the naive original's.

    python -m tests.gpu.graphs FOLDER                  # writes the graphs: minutes, no GPU, under a gigabyte

A decoder's matrices are views of single numbers while it is exported, so that neither memory nor time is
spent on 13 GB; graphs of all plans share one weight file, in which equal matrices lie once. `fill` writes
random numbers there, for times of constant matrices flatter a GPU: those of one shape are the same in all
layers, and each layer has a copy of its own in the GPU's memory.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compressor.decoder import decoder_from
from compressor.facts import ModelFacts
from compressor.methods import layer_scores, run_rules
from compressor.plan.plan import Plan
from compressor.samples.layout import layout_around
from export.backends.onnxruntime import OnnxGraph
from export.backends.onnxruntime_cuda import CudaGraph
from export.graphs.spec import WEIGHTS_FILE, GraphSpec, decoder_graph
from export.session.feeds import prompt_rows, text_rows
from export.session.session import GraphSession
from tests.gpu.decoders import TEXT, Row, Scale, plans, scale, shapes, timed

BACKENDS: Mapping[str, Callable[[Path, GraphSpec], OnnxGraph]] = {
    "onnxruntime": OnnxGraph,
    "onnxruntime-cuda": CudaGraph,
}
BLOCK = 1 << 20


def write(of: Scale, folder: Path, dtype: str) -> None:
    """Write the graph of every plan into a folder that there is not yet.

    Args:
        of: whose plans.
        folder: gets one graph a plan, and their weight file.
        dtype: of weights and states, `float16` or `float32`.
    """
    from export.writer.weights import SharedWeights
    from export.writer.write import export_decoder, save_graph

    folder.mkdir(parents=True)
    tensors = _numbers_as_matrices(of.facts, getattr(torch, dtype))
    with SharedWeights(folder) as weights:
        for name, plan in plans(of, 1).items():
            decoder = decoder_from(
                plan, tensors, logits="last", scores=layer_scores(plan), runs=run_rules(plan)
            )
            spec = spec_of(name, plan, dtype)
            save_graph(export_decoder(decoder, spec), folder / spec.file, weights)
            print(f"{folder / spec.file}", flush=True)


def spec_of(name: str, plan: Plan, dtype: str) -> GraphSpec:
    """Return the declaration of a plan's graph."""
    return decoder_graph(plan, dtype, "last", name=name)  # type: ignore[arg-type]


def _numbers_as_matrices(facts: ModelFacts, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return weights that are single numbers in memory, expanded to their shapes."""
    return {
        name: torch.full((1,) * len(shape), 0.01, dtype=dtype).expand(shape)
        for name, shape in shapes(facts.decoder).items()
    }


def fill(folder: Path, std: float = 0.02) -> None:
    """Write random numbers in place of all matrices of the graphs of a folder, and ones for gains of norms.

    Args:
        folder: see `write`.
        std: of the numbers.
    """
    import onnx_ir as ir

    generator, done = np.random.default_rng(0), set()
    with (folder / WEIGHTS_FILE).open("r+b") as stream:
        for file in sorted(folder.glob("*.onnx")):
            for value in ir.load(file).graph.initializers.values():
                tensor = value.const_value
                if not isinstance(tensor, ir.ExternalTensor) or tensor.offset in done:
                    continue
                if not tensor.dtype.is_floating_point():  # masks of windows
                    continue
                done.add(tensor.offset)
                count, numbers = int(np.prod(tuple(tensor.shape))), np.ones(1)
                if len(tensor.shape) > 1:
                    numbers = generator.standard_normal(min(count, BLOCK)) * std
                stream.seek(tensor.offset or 0)
                stream.write(np.resize(numbers, count).astype(tensor.dtype.numpy()).tobytes())


class GraphPrompt:
    """A prefill of images between two pieces of text, and the decode step behind it, in one graph.

    Args:
        graph: of the decoder, loaded.
        visual: V.
        hidden: D.
        place: puts an array where the graph wants it; a call then copies nothing.
    """

    def __init__(
        self, graph: OnnxGraph, visual: int, hidden: int, place: Callable[[np.ndarray], Any]
    ) -> None:
        rng, dtype = np.random.default_rng(0), graph.spec.inputs[0].numpy
        features, embeds = (
            rng.standard_normal((1, rows, hidden), np.float32).astype(dtype)
            for rows in (visual, TEXT)
        )
        layout = layout_around(np.zeros(TEXT, np.int64), (visual,), 1)
        rows, step = (
            prompt_rows(layout, embeds, (features,)),
            text_rows(layout.behind(0), embeds[:, :1]),
        )
        self._session: GraphSession[Any] = GraphSession(
            [graph.spec], lambda _: graph, graph.spec.name
        )
        self._rows = rows._replace(visual=place(rows.visual), text=place(rows.text))
        self._step = step._replace(visual=place(step.visual), text=place(step.text))
        self._empty = [place(array) for array in self._session.empty_past(1)]
        self.logits = self.prefill()

    def prefill(self) -> np.ndarray:
        """Run the prompt and keep its caches; return the logits."""
        logits, self.past = self._session.decode(self._rows, self._empty)
        return logits

    def step(self) -> np.ndarray:
        """Run one decode step on the prompt's caches; return the logits."""
        return self._session.decode(self._step, self.past)[0]

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values behind the prompt."""
        return self._session.past_bytes(self.past)


def measure(
    of: Scale, folder: Path, backend: str, rounds: int, seconds: float
) -> tuple[list[Row], dict[str, dict[str, int]]]:
    """Time every plan's graph on every prompt.

    Args:
        of: what is timed.
        folder: of its graphs, filled.
        backend: one of `BACKENDS`.
        rounds: of each call at most.
        seconds: of the rounds of one kind of call and one prompt.

    Returns:
        The rows, and of each plan how many nodes of which kind ONNX Runtime left to its CPU kernels.
    """
    import onnxruntime

    dtype = "float32" if backend == "onnxruntime" else "float16"
    graphs = {
        name: BACKENDS[backend](folder, spec_of(name, plan, dtype))
        for name, plan in plans(of, 1).items()
    }

    def place(array: np.ndarray) -> Any:
        if backend == "onnxruntime":
            return array
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), "cuda", 0)

    rows = []
    for images in of.images:
        made = plans(of, images)
        prompts = {
            name: GraphPrompt(graph, made[name].visual, of.facts.decoder.hidden, place)
            for name, graph in graphs.items()
        }
        # A call ends when its outputs are there: the clock serves on a GPU as well.
        rows += timed(made, prompts, torch.device("cpu"), rounds, seconds, dtype)
    left = {n: graph.on_cpu() for n, graph in graphs.items() if isinstance(graph, CudaGraph)}
    return rows, left


def main() -> None:
    """Write the graphs."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.graphs", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", choices=("7b", "tiny"), default="7b")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    options = parser.parse_args()
    write(scale(options.scale), options.folder, options.dtype)


if __name__ == "__main__":
    main()
