"""Runs decoders on a device that is not there and prints, as JSON, what became of each plan.

    python -m tests.fake_gpu

torch's fake tensors carry a device, refuse to mix two, and compute nothing. Torch's own placeholder for other
makers' devices stands for the GPU, because a build without CUDA cannot index a tensor of a CUDA device. It is
registered for the whole process, hence a process of its own.
"""

import json
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from compressor.decoder import Decoder, Stage, decoder_from
from compressor.decoder.full_pass import FullPass, full_pass
from compressor.decoder.weights import GATES_SOURCE
from compressor.methods import MEASURES
from compressor.methods.cls_knee import knees
from compressor.plan.cost import predict
from compressor.plan.plan import Plan
from tests import facts
from tests.cuts import CUTS, decoder_of, plan_of, tensors_of
from tests.gpu.decoders import Prompt, plans, scale, weights

GPU = "gpu:0"
# They read what a vision tower made, and no decoder.
OF_TOWERS = ("class_knee",)
V, T, HIDDEN = 24, 5, 32
GATED = facts.plan(gates=facts.gates(), model=facts.facts(facts.dims(hidden=HIDDEN)))
PLANS: dict[str, Plan] = {
    "frozen": facts.plan((1, 4), dead=(5,), model=GATED.model),
    "exit": facts.plan(exit_layer=3, model=GATED.model),
    "gates": GATED,
    **{name: plan_of(name, 2) for name in CUTS},
}
Rows = tuple[Tensor, Tensor, Tensor, Tensor]


def weights_of(plan: Plan) -> dict[str, Tensor]:
    """Return weights of a plan's decoder, gates included."""
    weights = tensors_of(plan)
    width = plan.gates.width if plan.gates else 0
    for layer in plan.gates.candidates if plan.gates else ():
        weights[f"{GATES_SOURCE}.{layer}.w1.weight"] = torch.zeros(width, 2 * HIDDEN)
        weights[f"{GATES_SOURCE}.{layer}.w2.weight"] = torch.zeros(2, width)
    return weights


def prompt(visual: int, text: int, start: int = 0) -> Rows:
    seen, read = (torch.empty(1, count, HIDDEN, device=GPU) for count in (visual, text))
    places = torch.arange(start, start + visual + text, device=GPU)[None]
    return seen, read, places[:, :visual], places[:, visual:]


def stays(found: object) -> None:
    elsewhere = {
        str(leaf.device) for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)
    } - {GPU}
    if elsewhere:
        raise AssertionError(f"came back on {elsewhere}")


def runs(plan: Plan, decoder: Decoder) -> None:
    logits, past = decoder(*prompt(V, T), decoder.empty_past(1))
    stays((logits, past))
    if plan.gates is None:  # behind gates a cache has a symbol for its length
        stays(decoder(*prompt(0, 1, V + T), past))
    stays(decoder(*prompt(0, 1), decoder.empty_past(1)))


def stages_run(_: Plan, decoder: Decoder) -> None:
    visual, text, *places = prompt(V, T)
    past = decoder.empty_past(1)
    for number, segment in enumerate(decoder.segments):
        mine = [pair for pair, c in zip(past, decoder.caches, strict=True) if c.layer in segment]
        found = Stage(decoder, number)(visual, text, *places, mine)
        stays(found)
        visual, text = found[:2]


def outcome(plan: Plan, work: Callable[[Plan, Decoder], None]) -> str:
    weights = weights_of(plan)
    # Sizes that are computed (behind gates) become symbols, as while exporting.
    with FakeTensorMode(shape_env=ShapeEnv()) as mode, torch.inference_mode():
        try:
            work(plan, decoder_of(plan, on_gpu(weights, mode)))
        except Exception as failure:  # noqa: BLE001 - it is what is asked for
            return f"{type(failure).__name__}: {failure}".splitlines()[0]
    return "runs"


def on_gpu(tensors: Mapping[str, Tensor], mode: FakeTensorMode) -> dict[str, Tensor]:
    fake = (t if isinstance(t, FakeTensor) else mode.from_tensor(t) for t in tensors.values())
    return {name: tensor.to(GPU) for name, tensor in zip(tensors, fake, strict=True)}


def timed(images: int) -> dict[str, str]:
    """What the GPU script times, in float16; caches of the predicted size."""
    of, found = scale("tiny"), {}
    for name, plan in plans(of, images).items():
        with FakeTensorMode() as mode, torch.inference_mode():
            tensors = weights(of.facts, torch.device("cpu"), torch.float16)
            try:
                prompt = Prompt(decoder_from(plan, on_gpu(tensors, mode)), plan.visual)
                stays((prompt.past, prompt.step()))  # its logits are brought back
            except Exception as failure:  # noqa: BLE001 - as above
                found[f"timed {name}"] = f"{type(failure).__name__}: {failure}".splitlines()[0]
                continue
            right = prompt.kv_bytes == predict(plan).kv_bytes("float16")
            found[f"timed {name}"] = "runs" if right else f"holds {prompt.kv_bytes} bytes"
    return found


def measured() -> dict[str, str]:
    """What calibration measures on the original's decoder, gates included."""
    found = {}
    for name, measure in MEASURES.items():

        def work(_: Plan, decoder: Decoder, of: Callable[[FullPass], object] = measure.of) -> None:
            stays(of(full_pass(decoder, *prompt(V, T))))

        if name in OF_TOWERS:
            work = knees_stay
        found[f"measured {name}"] = outcome(GATED, work)
    return found


def knees_stay(_: Plan, __: Decoder) -> None:
    stays(knees(torch.empty(2, V, device=GPU)))


def mixes(_: Plan, decoder: Decoder) -> None:
    """What must be refused, or these checks would find nothing."""
    decoder.rotary.inv_freq = decoder.rotary.inv_freq.to("cpu")
    runs(_, decoder)


def main() -> None:
    _setup_privateuseone_for_python_backend("gpu")
    found = {name: outcome(plan, runs) for name, plan in PLANS.items()}
    found["stages"] = outcome(GATED, stages_run)
    found["mixed"] = outcome(PLANS["frozen"], mixes)
    print(json.dumps(found | timed(2) | measured()))


if __name__ == "__main__":
    main()
