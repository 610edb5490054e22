"""Times the decoders of a sweep beside the original's, in graphs that share a folder and a weight file."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from compressor.progress import Progress
from export.checks import bench as timing
from export.graphs.spec import (
    BASELINE,
    BASELINE_VISION,
    GraphSpec,
    decoder_graph,
    decoder_graphs,
    embed_graph,
    vision_graph,
)
from export.results.bench import BenchReport
from vtcompress.stages.exporting.torch_side import decoder_makers

if TYPE_CHECKING:
    from compressor.compressed import CompressedModel
    from export.writer.weights import SharedWeights

DTYPE: Final = "float32"
"""Of graphs that are timed, whatever the recipe exports: ONNX Runtime's CPU has kernels for it."""


class Timer:
    """Times one point after the other; the original's graphs are exported once.

    Args:
        whole: the original, nothing cut.
        folder: takes the graphs.
        weights: of the folder.
        rounds: how often each call is timed.
        threads: of one operator.
        progress: shows exports and rounds.
    """

    def __init__(
        self,
        whole: "CompressedModel",
        folder: Path,
        weights: "SharedWeights",
        rounds: int,
        threads: int,
        progress: Progress,
    ) -> None:
        self.whole, self.folder, self.weights = whole, folder, weights
        self.rounds, self.threads, self.progress = rounds, threads, progress
        self.of_original: tuple[GraphSpec, ...] = ()
        self.written = ""

    def time(self, small: "CompressedModel") -> BenchReport:
        """Return the times of a compressed model beside the original's."""
        from export.writer.write import export_vision

        plan = small.plan
        seen = vision_graph(plan.model, DTYPE, plan.front)
        specs = decoder_graphs(plan, DTYPE, "last")
        jobs = self._of_original()
        # A choice in front of the decoder is none of its graph's: points often share one.
        decoder = plan.model_dump_json(include={"layers", "gates"})
        if decoder != self.written:
            makers = decoder_makers(small.decoder, plan)
            jobs += zip(specs, makers, strict=True)
            self.written = decoder
        if plan.front is not None:
            jobs.append((seen, partial(export_vision, small)))
        self._write(jobs)
        if plan.front is None:
            shutil.copyfile(self.folder / f"{BASELINE_VISION}.onnx", self.folder / seen.file)
        return timing.bench(
            self.folder,
            (seen, *specs, *self.of_original),
            plan.model,
            text=plan.workload.text,
            rounds=self.rounds,
            threads=self.threads,
            progress=self.progress,
        )

    def _of_original(self) -> list[tuple[GraphSpec, Any]]:
        """Return what exports the original's graphs, once."""
        if self.of_original:
            return []
        from export.writer.write import export_decoder, export_embed, export_vision

        plan = self.whole.plan
        specs = (
            vision_graph(plan.model, DTYPE, name=BASELINE_VISION),
            embed_graph(plan.model, DTYPE),
            decoder_graph(plan, DTYPE, "last", name=BASELINE),
        )
        self.of_original = specs
        makers = (
            partial(export_vision, self.whole),
            partial(export_embed, self.whole),
            partial(export_decoder, self.whole.decoder),
        )
        return list(zip(specs, makers, strict=True))

    def _write(self, jobs: list[tuple[GraphSpec, Any]]) -> None:
        from export.writer.write import save_graph

        for spec, make in self.progress.track(jobs, "exporting graphs", len(jobs)):
            save_graph(make(spec), self.folder / spec.file, self.weights)
        self.weights.flush()


@contextmanager
def timer(
    whole: "CompressedModel", folder: Path, rounds: int, threads: int, progress: Progress
) -> Iterator[Timer]:
    """Give what times points in a folder; see `Timer`."""
    from export.writer.weights import SharedWeights

    with SharedWeights(folder) as weights:
        yield Timer(whole, folder, weights, rounds, threads, progress)
