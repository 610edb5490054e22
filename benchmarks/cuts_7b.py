"""What YOPO's cuts save of LLaVA-1.5-7B's prefill, predicted: 576 visual and 64 text rows.

    python -m benchmarks.cuts_7b

Nothing is run. `of visual work`: of the FLOPs that the picture adds to those of the text alone.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decoder_models import random_model
from compressor.facts import ModelFacts
from compressor.methods.yopo.method import Yopo
from compressor.plan.cost import predict
from compressor.plan.edits import leave
from compressor.plan.plan import Plan, Workload
from compressor.planner import make_plan

LAYERS, HEADS, HEAD_DIM, TEXT = 32, 32, 128, 64
KEPT_LAYERS = 2  # the first ones keep all heads, as published
CUTS: dict[str, dict[str, Any]] = {
    "window 5": {"window": 5},
    "half the heads": {"heads": 0.5},
    "MLP ratio 2": {"mlp_ratio": 2},
    "MLP ratio 4": {"mlp_ratio": 4},
    "off from layer 16": {"off_from": 16},
    "window 5, ratio 2, off from 16, half the heads": {
        "window": 5,
        "mlp_ratio": 2,
        "off_from": 16,
        "heads": 0.5,
    },
    "window 5, ratio 4, off from 16, a quarter of the heads": {
        "window": 5,
        "mlp_ratio": 4,
        "off_from": 16,
        "heads": 0.25,
    },
    "window 5, ratio 4, off from 8, a quarter of the heads": {
        "window": 5,
        "mlp_ratio": 4,
        "off_from": 8,
        "heads": 0.25,
    },
}


def facts() -> ModelFacts:
    """Return LLaVA-1.5-7B's true dimensions."""
    return random_model(
        LAYERS, HEADS * HEAD_DIM, HEADS, HEADS, 11008, 32064, visual=576, grid=(24, 24)
    )


def plan_of(cuts: dict[str, Any], scratch: Path) -> Plan:
    """Return the plan of some cuts; which heads stay does not matter to the figures."""
    entry = dict(cuts)
    if share := entry.pop("heads", None):
        keep = np.zeros((LAYERS, HEADS), bool)
        keep[:, : round(share * HEADS)] = True
        keep[:KEPT_LAYERS] = True
        np.save(scratch / "keep.npy", keep)
        entry["heads"] = {"mask": scratch / "keep.npy"}
    return make_plan(facts(), "none", [Yopo.model_validate(entry)], workload=Workload(text=TEXT))


def main() -> None:
    """Print the table."""
    print("| cuts | prefill FLOPs cut | of visual work | KV bytes left |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for title, cuts in CUTS.items():
            plan = plan_of(cuts, Path(name))
            before, after = predict(plan.naive()), predict(plan)
            # An exit at layer 1 leaves layer 0 alone with visual rows: 31 layers cost what text costs.
            text_alone = predict(leave(plan.naive(), 1, "visual_exit")).layer_flops[-1] * LAYERS
            text_alone += before.head_flops
            saved = before.flops - after.flops
            print(
                f"| {title} | {saved / before.flops:.1%} | {saved / (before.flops - text_alone):.1%} | "
                f"{after.kv_bytes('float16') / before.kv_bytes('float16'):.0%} |"
            )


if __name__ == "__main__":
    main()
