"""Small made-up values for tests: a decoder, a model, plans, and what a manifest holds."""

from collections.abc import Iterable, Sequence
from typing import Any

from compressor.calibration.resume import Task
from compressor.facts import DecoderDims, ModelFacts
from compressor.plan.layer import LayerPlan, Reason
from compressor.plan.measured_cost import MeasuredCall, MeasuredCosts, MeasuredOn
from compressor.plan.plan import Gates, Plan, Workload
from compressor.profile import Profile, SampleScore
from compressor.samples.questions import Sample
from export.artifact.manifest import Predicted
from export.graphs.spec import decoder_graph, embed_graph, vision_graph
from export.results.bench import BenchReport, Timing
from export.results.fidelity import Difference, FidelityLimits, FidelityReport
from export.results.loss_report import LossFigures, LossLimits, LossReport

DIGEST = "0123456789abcdef" * 4
# Bytes of one row in one layer's cache: K and V, two heads of four numbers, float32.
CACHE_ROW = 2 * 2 * 4 * 4
DATA_DIGEST = "fedcba9876543210" * 4


def dims(**changes: Any) -> DecoderDims:
    values: dict[str, Any] = {
        "layers": 6,
        "hidden": 16,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 4,
        "intermediate": 24,
        "vocab": 40,
        "rms_norm_eps": 1e-5,
        "max_positions": 512,
    } | changes
    half = values["head_dim"] // 2
    values.setdefault("rope_inv_freq", tuple(10000.0 ** (-i / max(half, 1)) for i in range(half)))
    return DecoderDims(**values)


def facts(decoder: DecoderDims | None = None, **changes: Any) -> ModelFacts:
    values: dict[str, Any] = {
        "name": "owner/little-model",
        "family": "made-up",
        "architecture": "MadeUpForConditionalGeneration (tower, decoder)",
        "decoder": decoder or dims(),
        "visual_tokens": 12,
        "image_size": 4,
        "image_token_id": 3,
        "eos_token_ids": (2,),
        "dtype": "float32",
    } | changes
    return ModelFacts(**values)


def plan(
    frozen: Iterable[int] = (),
    *,
    dead: Iterable[int] = (),
    exit_layer: int | None = None,
    reason: Reason = "visual_exit",
    gates: Gates | None = None,
    model: ModelFacts | None = None,
    images: int = 1,
    text: int = 64,
) -> Plan:
    """Return a plan with just these layers frozen or exited; nothing is marked by itself."""
    model = model or facts()
    frozen, dead = set(frozen), set(dead)

    def layer(index: int) -> LayerPlan:
        if exit_layer is not None and index >= exit_layer:
            return LayerPlan(index=index, visual="exited", reason=reason)
        if index in dead:
            return LayerPlan(index=index, visual="frozen", reason="dead")
        if index in frozen:
            return LayerPlan(index=index, visual="frozen", reason="shortv")
        return LayerPlan(index=index)

    return Plan(
        model=model,
        model_digest=DIGEST,
        layers=tuple(layer(i) for i in range(model.decoder.layers)),
        gates=gates,
        workload=Workload(images=images, text=text),
    )


def gates(fired: Sequence[int] = (6, 3), unfired: int = 1, **changes: Any) -> Gates:
    """Return gates behind layers 1 and 3, counted on ten calibration prompts."""
    values: dict[str, Any] = {
        "candidates": (1, 3),
        "mode": "dynamic",
        "width": 8,
        "digest": DIGEST,
        "fired": tuple(fired),
        "unfired": unfired,
    } | changes
    return Gates(**values)


def costs(**changes: Any) -> MeasuredCosts:
    """Return measured costs of the model, made up: each product a time of its own, and some forms."""
    model = facts()
    rates = {
        "call": 1e-4, "layer": 2e-5, "row": 1e-7, "projections": 1e-11, "attention": 3e-11,
        "bands": 6e-11, "mlp": 2e-11, "frozen": 3e-6, "exited": -1e-6, "without_attention": 1e-6,
        "without_mlp": 2e-6, "heads": 4e-6, "neurons": 5e-6,
    }  # fmt: skip
    # Made of whatever has a rate, so that any rates give it a time.
    terms = dict.fromkeys(changes.get("rates", rates), 1)
    call = MeasuredCall(graph="all rows", visual=12, text=64, seconds=1e-4, terms=terms)
    values: dict[str, Any] = {
        "model": model.name,
        "decoder": model.decoder,
        "dtype": "float32",
        "weights": "float",
        "measured_on": MeasuredOn(processor="made up", runtime="none 1", threads=1),
        "rates": rates,
        "calls": (call,),
    } | changes
    return MeasuredCosts(**values)


def profile(
    contributions: Sequence[Sequence[float]],
    *,
    text: Sequence[int] | None = None,
    total: int | None = None,
    layers: int | None = None,
) -> Profile:
    """Return a profile; one row of layer contributions and one T a sample."""
    rows = text or [10] * len(contributions)
    return Profile(
        model="owner/little-model",
        model_digest=DIGEST,
        data="calibration.jsonl",
        data_digest=DATA_DIGEST,
        layers=layers or len(contributions[0]),
        total=total or len(contributions),
        samples=tuple(
            SampleScore(visual=12, text=t, layer_contribution=tuple(row))
            for t, row in zip(rows, contributions, strict=True)
        ),
    )


def task(
    model: Any,
    samples: Sequence[Sample],
    measures: tuple[str, ...] = ("layer_contribution",),
    *,
    data: str = "q",
    **others: Any,
) -> Task:
    """Return what a calibration of a loaded model measures."""
    return Task.of(model.facts, model.digest, samples, data, measures, **others)


def fidelity(failures: Sequence[str] = ()) -> FidelityReport:
    def difference(call: str) -> Difference:
        return Difference(call=call, max_abs=3e-6, max_relative=2e-6, cosine=0.9999999)

    return FidelityReport(
        calls=7,
        limits=FidelityLimits(max_abs=1e-3, max_relative=1e-3, min_cosine=0.99999),
        worst_abs=difference("1 images, T=9: prefill"),
        worst_relative=difference("2 images, T=5: decode step 3"),
        worst_cosine=difference("0 images, T=9: later turn"),
        failures=tuple(failures),
    )


def figures(kind: str = "all", **changes: Any) -> LossFigures:
    values: dict[str, Any] = {
        "kind": kind,
        "samples": 8,
        "kl": 0.0123,
        "kl_worst": 0.4,
        "agreement": 0.875,
        "common_prefix": 0.9,
        "answered": 8,
        "exact_match_original": 1.0,
        "exact_match": 0.75,
        "equal_answers": 6,
        "right_to_wrong": 2,
        "wrong_to_right": 0,
    } | changes
    return LossFigures(**values)


def loss(
    failures: Sequence[str] = (), kinds: Sequence[LossFigures] = (), **limits: float
) -> LossReport:
    return LossReport(
        data="heldout.jsonl",
        data_digest=DATA_DIGEST,
        overall=figures(),
        kinds=tuple(kinds),
        limits=LossLimits(**limits),
        failures=tuple(failures),
    )


def measured(exit_layer: int | None = None, *, layers: int = 6) -> BenchReport:
    """Return times and caches of a prompt of 12 visual and 64 text rows in the decoder of `dims`."""

    def timing(ratio: float) -> Timing:
        return Timing(
            original_ms=20.0,
            compressed_ms=20.0 / ratio,
            ratio=ratio,
            ratio_low=ratio - 0.05,
            ratio_high=ratio + 0.05,
        )

    rows = tuple(76 if exit_layer is None or i < exit_layer else 64 for i in range(layers))
    return BenchReport(
        images=1,
        visual=12,
        text=64,
        rounds=5,
        threads=1,
        processor="a processor, 2 cores",
        statistic="middle round",
        kv_bytes_original=CACHE_ROW * 76 * layers,
        kv_bytes=CACHE_ROW * sum(rows),
        kv_layers=rows,
        prefill=timing(1.6),
        decode_step=timing(1.0),
        first_token=timing(1.4),
    )


def manifest_fields(of: Plan | None = None, **changes: Any) -> dict[str, Any]:
    """Return what `write_manifest` takes besides the folder; the figures are made up."""
    of = of or plan(frozen=(1, 4), dead=(5,))
    fields: dict[str, Any] = {
        "tools": {"vtcompress": "0.0.1", "python": "3.11.7"},
        "model": of.model,
        "model_digest": of.model_digest,
        "image_token": "<image>",
        "dtype": "float32",
        "logits": "last",
        "graphs": (
            vision_graph(of.model, "float32", of.front),
            embed_graph(of.model, "float32"),
            decoder_graph(of, "float32", "last"),
        ),
        "predicted": Predicted(
            images=1,
            visual=12,
            text=64,
            flops_original=2000,
            flops=1000,
            speedup=2.0,
            kv_bytes_original=4096,
            kv_bytes=4096,
        ),
        "peak_memory_bytes": 300 * 2**20,
    }
    return fields | changes
