"""Times the layers of a model's dimensions in the backend that artifacts are timed in."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from compressor.facts import ModelFacts
from compressor.plan.measured_cost import (
    MeasuredCall,
    MeasuredCosts,
    fitted,
    plan_terms,
)
from compressor.plan.plan import Plan
from compressor.progress import SILENT, Progress
from compressor.samples.layout import layout_around
from compressor.schema.sections import ExportSection
from export.backends.checked_on import OnnxSession
from export.checks.costs.here import measured_on
from export.checks.costs.layers import measured_plans, write_layers
from export.graphs.spec import GraphSpec
from export.session.feeds import CallRows, prompt_rows, text_rows

# How often sessions are loaded anew, and calls of each that count behind one that warms up: where weights
# come to lie, and what else the machine does, moves a time by some percent, so the least of all counts.
PASSES, ROUNDS = 3, 2

Clock = Callable[[], float]


def measure_costs(
    facts: ModelFacts,
    settings: ExportSection,
    *,
    text: int = 64,
    threads: int = 1,
    passes: int = PASSES,
    clock: Clock = time.perf_counter,
    progress: Progress = SILENT,
) -> MeasuredCosts:
    """Return what this machine takes for layers of a model's dimensions; its weights are not read.

    Args:
        facts: of the model.
        settings: of the export: dtype, and how matrices are stored.
        text: T of the calls; V is that of one picture, half and a quarter of it.
        threads: of one operator.
        passes: how often sessions are loaded anew.
        clock: seconds from any start on; that of the process counts what other work does not take from it.
        progress: shows graphs and passes.
    """
    plans = measured_plans(facts, text)
    with tempfile.TemporaryDirectory(prefix="vtcompress-costs-") as name:
        specs = write_layers(Path(name), plans, settings, progress)
        times = _times(Path(name), plans, specs, threads, passes, clock, progress)
    calls = tuple(
        MeasuredCall(
            graph=graph,
            visual=visual,
            text=text,
            seconds=seconds,
            terms=dict(plan_terms(plans[graph], visual)),
        )
        for (graph, visual), seconds in times.items()
    )
    return MeasuredCosts(
        model=facts.name,
        decoder=facts.decoder,
        dtype=settings.dtype,
        weights=settings.weights,
        block=settings.block_size,
        measured_on=measured_on(threads),
        rates=fitted(calls),
        calls=calls,
    )


def visual_rows_timed(plan: Plan, spec: GraphSpec) -> tuple[int, ...]:
    """Return the numbers of visual rows that a plan's decoder is timed with: all, and fewer where it can."""
    whole = plan.visual
    if spec.visual_multiple > 1:
        return (whole,)
    if plan.layers == plan.naive().layers:
        return tuple(dict.fromkeys((whole, whole // 2, whole // 4, 0)))
    return tuple(dict.fromkeys((whole, max(1, whole // 2))))


def call_rows(plan: Plan, visual: int) -> CallRows:
    """Return seeded rows of a prefill of V visual rows and the workload's text rows."""
    rng = np.random.default_rng(0)
    hidden, text = plan.model.decoder.hidden, plan.workload.text
    embeds = rng.standard_normal((1, text, hidden), dtype=np.float32)
    layout = layout_around(np.zeros(text, np.int64), (visual,) if visual else ())
    if not visual:
        return text_rows(layout, embeds)
    return prompt_rows(
        layout, embeds, (rng.standard_normal((1, visual, hidden), dtype=np.float32),)
    )


def _times(
    folder: Path,
    plans: Mapping[str, Plan],
    specs: Mapping[str, GraphSpec],
    threads: int,
    passes: int,
    clock: Clock,
    progress: Progress,
) -> dict[tuple[str, int], float]:
    """Return the least seconds of each graph's calls, by its name and V; one session at a time is loaded."""
    times: dict[tuple[str, int], float] = {}
    rounds = [(turn, name) for turn in range(passes) for name in plans]
    for _, name in progress.track(rounds, "timing layers", len(rounds)):
        spec = specs[name]
        session = OnnxSession(folder, [spec], decoder=spec.name, threads=threads)
        for visual in visual_rows_timed(plans[name], spec):
            least = min(_seconds(session, call_rows(plans[name], visual), clock))
            key = (name, visual)
            times[key] = min(least, times.get(key, least))
    return times


def _seconds(session: Any, rows: CallRows, clock: Clock) -> Iterator[float]:
    empty = session.empty_past(1)
    session.decode(rows, empty)
    for _ in range(ROUNDS):
        start = clock()
        session.decode(rows, empty)
        yield clock() - start
