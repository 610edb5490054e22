"""Predicted time of a plan's prefill: its FLOPs, corrected by what was measured of one machine's backend.

A microbenchmark times calls of decoders of a few layers, which have the model's own dimensions and do what
words of plans say. These times are taken apart into

    seconds = call + sum over layers of (layer + forms + rows * row + sum over products of FLOPs * product)

`call` is what a prefill costs beside its layers, head included; `layer` what each layer costs however few
rows it has (its weights are read once, and its nodes started); a form is what a layer of that kind costs more
or less than that: `frozen`, `exited`, `without_attention`, `without_mlp`, fewer `heads`, fewer `neurons`.
Products are `projections`, `attention`, `bands` (attention in windows) and `mlp`: a FLOP of each takes a time
of its own. All of these are fitted to the calls' times so that squares of relative errors are least.

What was not measured and is taken for nothing: choosing rows that go on at a layer, grow or run layers alone;
a router's and a gate's FLOPs count as those of projections. The masked semantics count as what they compute.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from compressor.disk.files import read_json, write_text
from compressor.disk.mistaken import mistaken
from compressor.errors import PlanError
from compressor.facts import DecoderDims, Facts, ModelFacts, Positive
from compressor.plan.cost import (
    BAND_OVERHEAD,
    gate_flops,
    gates_asked,
    in_bands,
    layer_work,
    shares_of_exits,
)
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan
from compressor.schema.sections import ExportSection

Terms = Mapping[str, float]
"""How often each of the measured numbers counts, by its name."""

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]

PRODUCTS = ("projections", "attention", "bands", "mlp")
# What takes time of its own; a form may also save some.
NOT_NEGATIVE = (*PRODUCTS, "row", "layer", "call")
REMEDY = "measure it anew with `vtcompress costs`"


class MeasuredOn(Facts):
    """What times were taken on; those of something else are other times.

    Attributes:
        processor: its name, as the system tells it.
        runtime: what ran the graphs, with its version.
        threads: of one operator.
    """

    processor: str
    runtime: str
    threads: Positive

    @property
    def words(self) -> str:
        """Return all of it in words."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.processor}, {self.runtime}, {threads}"


class MeasuredCall(Facts):
    """One prefill that was timed.

    Attributes:
        graph: what was called, in words.
        visual: V.
        text: T.
        seconds: the least of all rounds.
        terms: what it is made of.
    """

    graph: str
    visual: Annotated[int, Field(ge=0)]
    text: Positive
    seconds: Seconds
    terms: dict[str, float]


class MeasuredCosts(Facts):
    """What a machine's backend takes for the layers of one model.

    Attributes:
        costs_format: version of this file's format.
        model: name of the model.
        decoder: whose dimensions were measured.
        dtype: of the graphs.
        weights: how matrices are stored, as `export.weights` says.
        block: of weights in whole numbers; None: they are floats.
        measured_on: machine and runtime.
        rates: seconds by the names of the module's formula.
        calls: that the rates were fitted to.
    """

    costs_format: Literal[1] = 1
    model: str
    decoder: DecoderDims
    dtype: Literal["float32", "float16", "bfloat16"]
    weights: Literal["float", "int8", "int4"]
    block: Positive | None = None
    measured_on: MeasuredOn
    rates: dict[str, float]
    calls: tuple[MeasuredCall, ...]

    @model_validator(mode="after")
    def _tells_times(self) -> "MeasuredCosts":
        told = [self._in_seconds(call.terms) for call in self.calls]
        if not told or not all(isfinite(seconds) and seconds > 0 for seconds in told):
            raise ValueError("the rates give no times for the calls that they were fitted to")
        return self

    def seconds(self, plan: Plan) -> float:
        """Return the predicted time of the plan's prefill; where gates decide, the mean over the exits."""
        return self.call_seconds + sum(self.seconds_of_layers(plan))

    @property
    def call_seconds(self) -> float:
        """What a prefill takes beside its layers."""
        return self.rates.get("call", 0.0)

    def seconds_of_layers(self, plan: Plan) -> tuple[float, ...]:
        """Return the predicted time of each layer in the plan's prefill, gates behind layers included."""
        if plan.gates is None:
            return tuple(map(self._in_seconds, terms_of_layers(plan)))
        gates = plan.gates
        gate = self._in_seconds({"projections": gate_flops(plan.model.decoder, gates)})
        found = [0.0] * len(plan.layers)
        for fired, share in shares_of_exits(gates):
            asked = gates_asked(gates, fired)
            for i, seconds in enumerate(self.seconds_of_layers(plan.fired_after(fired))):
                found[i] += share * (seconds + (gate if i in asked else 0.0))
        return tuple(found)

    def layer_seconds(
        self, layer: LayerPlan, visual: int, text: int, grid: tuple[int, int] | None = None
    ) -> float:
        """Return the predicted time of one layer; see `layer_terms`."""
        return self._in_seconds(layer_terms(self.decoder, layer, visual, text, grid))

    def speedup(self, plan: Plan) -> float:
        """Return the predicted time of the naive original's prefill divided by that of the plan's."""
        return self.seconds(plan.naive()) / self.seconds(plan)

    @property
    def misfit(self) -> float:
        """The largest relative difference of a call's predicted time from its measured one."""
        return max(abs(self._in_seconds(call.terms) / call.seconds - 1) for call in self.calls)

    def _in_seconds(self, terms: Terms) -> float:
        return sum(count * self.rates.get(name, 0.0) for name, count in terms.items())

    def why_not(self, model: ModelFacts, settings: ExportSection) -> str:
        """Return why these times say nothing of an export of a model; empty: they do."""
        if self.decoder != model.decoder:
            return f"holds times of {self.model}, which are not those of {model.name}"
        mine = (self.dtype, self.weights, self.block)
        asked = (settings.dtype, settings.weights, settings.block_size)
        if mine != asked:
            return f"holds times of {_stored(*mine)}, and the recipe exports {_stored(*asked)}"
        return ""

    def check_fits(self, model: ModelFacts, settings: ExportSection, what: str) -> None:
        """Refuse to speak of another model, or of graphs in another dtype.

        Args:
            model: whose plans are asked about.
            settings: of their export.
            what: starts the problem.

        Raises:
            PlanError: these are the times of something else.
        """
        if why := self.why_not(model, settings):
            raise PlanError([f"{what}: {why}; {REMEDY}"])

    def save(self, path: Path) -> None:
        """Write the costs as JSON, atomically."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "MeasuredCosts":
        """Read measured costs.

        Raises:
            PlanError: the file is missing, no JSON, of a newer format or inconsistent.
        """
        if (problem := mistaken(path, "costs")) is not None:
            raise PlanError([problem])
        return read_json(path, cls, PlanError, "costs", REMEDY)


def plan_terms(plan: Plan, visual: int | None = None) -> Terms:
    """Return what a prefill is made of, gates aside; arguments as `terms_of_layers`."""
    found: dict[str, float] = {"call": 1}
    for terms in terms_of_layers(plan, visual):
        for name, count in terms.items():
            found[name] = found.get(name, 0) + count
    return found


def terms_of_layers(plan: Plan, visual: int | None = None) -> list[Terms]:
    """Return what each layer of a prefill is made of, gates aside.

    Args:
        plan: what is done; T is its workload's.
        visual: V that enter; None: those of the workload.
    """
    entering = plan.visual if visual is None else visual
    dims, text, grid = plan.model.decoder, plan.workload.text, plan.model.token_grid
    rows = zip(plan.layers, plan.rows_of_layers(entering), strict=True)
    return [layer_terms(dims, layer, count, text, grid) for layer, count in rows]


def layer_terms(
    dims: DecoderDims,
    layer: LayerPlan,
    visual: int,
    text: int,
    grid: tuple[int, int] | None = None,
) -> Terms:
    """Return what one layer is made of on V visual rows that come to it and T text rows.

    Args:
        dims: of the decoder.
        layer: what visual rows do.
        visual: V.
        text: T.
        grid: of one image's visual tokens; needed for a window.
    """
    work = layer_work(dims, layer, visual, text, grid)
    forms = {
        "frozen": layer.frozen,
        "exited": layer.exited,
        "without_attention": layer.without == "attention",
        "without_mlp": layer.without == "mlp",
        "heads": layer.split,
        "neurons": layer.neurons is not None,
    }
    return {
        "layer": 1,
        "row": text if layer.exited else visual + text,
        "projections": work.projections + work.router,
        "bands" if in_bands(layer) else "attention": work.attention,
        "mlp": work.mlp,
        **{name: 1 for name, is_so in forms.items() if is_so},
    }


def fitted(calls: Sequence[MeasuredCall]) -> dict[str, float]:
    """Return the seconds of each term by which calls' predicted times come closest to the measured ones.

    Squares of relative differences are least; no time but a form's is negative. Where no window was measured,
    a FLOP in bands takes `BAND_OVERHEAD` times one of full attention.
    """
    names = list(dict.fromkeys(name for call in calls for name in call.terms))
    while True:
        matrix = np.array([[c.terms.get(n, 0.0) / c.seconds for n in names] for c in calls])
        scale = np.abs(matrix).max(axis=0)
        found = np.linalg.lstsq(matrix / scale, np.ones(len(calls)), rcond=None)[0] / scale
        below = [
            (v * s, n) for v, s, n in zip(found, scale, names, strict=True) if n in NOT_NEGATIVE
        ]
        least, name = min(below)
        if least >= 0:
            break
        names.remove(name)
    rates = {name: float(value) for name, value in zip(names, found, strict=True)}
    if "attention" in rates:
        rates.setdefault("bands", BAND_OVERHEAD * rates["attention"])
    return rates


def _stored(dtype: str, weights: str, block: int | None) -> str:
    return dtype if block is None else f"{dtype} with {weights} weights in blocks of {block}"
