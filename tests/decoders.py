"""Decoder graphs with random weights and no vision tower, written for what builds engines of them."""

from pathlib import Path

import torch

from compressor.decoder import Decoder, decoder_from
from compressor.decoder.weights import source_of
from compressor.methods import layer_scores, run_rules
from compressor.plan.edits import (
    freeze,
    grow_at,
    identity_plan,
    keep_at,
    keep_in_front,
    leave,
    leave_out,
    run_some,
)
from compressor.plan.growth import Growth
from compressor.plan.kept import Kept, Running
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Gates, Plan
from compressor.schema.sections import ExportSection
from export.graphs.limits import Limits
from export.graphs.spec import GraphSpec, decoder_graphs
from export.writer.weights import SharedWeights
from export.writer.write import save_graph
from tests.facts import dims, facts
from vtcompress.stages.exporting.torch_side import decoder_makers

FLOAT16 = ExportSection(dtype="float16")


def write_decoder(
    folder: Path, plan: Plan, limits: Limits | None = None, settings: ExportSection = FLOAT16
) -> tuple[GraphSpec, ...]:
    """Write a plan's decoder, seeded; with limits its caches are of fixed size."""
    decoder = seeded_decoder(plan).to(getattr(torch, settings.dtype))
    specs = decoder_graphs(plan, settings.dtype, "last", limits=limits)
    with SharedWeights(folder) as weights:
        for spec, make in zip(specs, decoder_makers(decoder, plan, settings), strict=True):
            save_graph(make(spec), folder / spec.file, weights)
    return specs


def seeded_decoder(plan: Plan) -> Decoder:
    """Return a plan's decoder with random weights, always the same."""
    torch.manual_seed(0)
    with torch.device("meta"):
        whole = {n: p.shape for n, p in Decoder(plan.naive()).named_parameters()}
        made = Decoder(plan, scores=layer_scores(plan), runs=run_rules(plan))
        gates = {
            n: p.shape for n, p in made.named_parameters() if n.startswith("gates") or "router" in n
        }
    tensors = {}
    for name, shape in (whole | gates).items():
        source, transposed = source_of(name)
        tensor = torch.randn(*shape) * 0.2
        tensors[source] = tensor.T if transposed else tensor
    return decoder_from(plan, tensors, scores=layer_scores(plan), runs=run_rules(plan))


def plan_of(kind: str) -> Plan:
    """Return one of the kinds of plans that engines are built of."""
    model = facts(
        dims(layers=3, hidden=64, heads=4, kv_heads=2, head_dim=16, intermediate=96, vocab=48),
        token_grid=(3, 4),
    )
    plan = identity_plan(model, "0" * 64)
    decoder = dims(
        **model.decoder.model_dump() | {"qk_norm": True, "rope_axes": (0, 1, 2) * 2 + (0, 0)}
    )
    turned = plan.model_copy(update={"model": model.model_copy(update={"decoder": decoder})})
    gates = Gates(candidates=(0, 1), mode="staged", width=16, digest="")
    kept = Kept(count=7, of=12, by="fastv")
    anew = Running(count=5, of=12, by="gamma_mod", outputs=2)
    scaled = Running(count=5, of=12, by="mod", within="tile")
    heads, neurons = {"groups": (1,)}, {"neurons": tuple(range(48))}
    dead = LayerPlan(index=2, visual="frozen", reason="dead", **heads)
    cut = [LayerPlan(index=0, **heads, **neurons), LayerPlan(index=1, groups=()), dead]
    near = [LayerPlan(index=0, window=3, **heads), LayerPlan(index=1, window=3, **neurons), dead]
    masked = [
        LayerPlan(index=0, masked=True, window=3, **heads, **neurons),
        LayerPlan(index=1, masked=True, groups=()),
        LayerPlan(index=2, visual="frozen", reason="dead", masked=True, off=True, groups=(0,)),
    ]
    return {
        "heads+neurons": plan.model_copy(update={"layers": tuple(cut)}),
        "window": plan.model_copy(update={"layers": tuple(near)}),
        "masked": plan.model_copy(update={"layers": tuple(masked)}),
        "heads+frozen+exit": leave(
            freeze(plan.model_copy(update={"layers": tuple(cut)}), (1,), "shortv"), 2, "visual_exit"
        ),
        "identity": plan,
        "goes without": leave_out(plan, {0: ("attention",), 1: ("mlp",)}, "skip"),
        "leaving": leave_out(
            keep_at(keep_at(plan, 1, kept), 2, kept), {0: ("attention",), 1: ("mlp",)}, "skip"
        ),
        "growing": leave_out(
            grow_at(
                keep_in_front(plan, 4, "pool", {"keep": 0.34}),
                1,
                Growth(count=12, of=4, by="wico_plus"),
            ),
            {0: ("attention",)},
            "skip",
        ),
        "some run": leave_out(run_some(plan, {0: scaled, 1: scaled}), {1: ("mlp",)}, "skip"),
        "some run anew": freeze(run_some(turned, {0: anew, 1: anew, 2: anew}), (1,), "shortv"),
        "some run, then leaving": run_some(keep_at(plan, 2, kept), {0: anew}),
        "frozen": freeze(plan, (0, 1), "shortv"),
        "exit": leave(plan, 1, "visual_exit"),
        "staged": plan.model_copy(update={"gates": gates}),
        "three axes": leave(freeze(turned, (0,), "shortv"), 2, "visual_exit"),
        "three axes, staged": turned.model_copy(update={"gates": gates}),
    }[kind]


KINDS = ("identity", "goes without", "leaving", "growing", "some run", "some run anew",
         "some run, then leaving", "frozen", "exit", "staged", "heads+neurons", "window", "masked",
         "heads+frozen+exit", "three axes", "three axes, staged")  # fmt: skip


def real_plan() -> Plan:
    """Return a plan with the widths of a model of half a billion weights, but for depth and vocabulary."""
    decoder = dims(
        layers=6,
        hidden=896,
        heads=14,
        kv_heads=2,
        head_dim=64,
        intermediate=4864,
        vocab=512,
        max_positions=4096,
    )
    model = facts(decoder, visual_tokens=729, token_grid=(27, 27))
    return freeze(identity_plan(model, "0" * 64), (2, 3, 4), "shortv")
