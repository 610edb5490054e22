"""The compressed decoder away from the CPU: every tensor that it makes lies beside its weights."""

import json
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from compressor.decoder import Decoder, decoder_from
from compressor.methods import MEASURES
from tests.cuts import decoder_of, plan_of, tensors_of
from tests.fake_gpu import PLANS, weights_of

TIMED = tuple(f"timed {name}" for name in ("original", "shortv", "vtw", "yopo"))
MEASURED = tuple(f"measured {name}" for name in MEASURES)


@pytest.fixture(scope="module")
def found() -> dict[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fake_gpu"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes: dict[str, str] = json.loads(done.stdout)
    return outcomes


@pytest.mark.parametrize("name", [*PLANS, "stages", *TIMED, *MEASURED])
def test_a_decoder_on_weights_of_another_device_runs_there_alone(
    found: dict[str, str], name: str
) -> None:
    assert found[name] == "runs"


def test_a_tensor_left_on_the_cpu_would_be_found(found: dict[str, str]) -> None:
    assert found["mixed"].startswith("FakeTensorDeviceMismatchError")


@pytest.mark.parametrize("name", PLANS)
def test_no_module_keeps_a_tensor_that_a_move_would_forget(name: str) -> None:
    moved = decoder_of(PLANS[name], weights_of(PLANS[name])).to("meta")
    tensors = [*moved.parameters(), *moved.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    plain = [value for module in moved.modules() for value in vars(module).values()]
    assert not [value for value in plain if isinstance(value, Tensor)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounding_the_weights_leaves_rotary_frequencies_exact_and_out_of_the_saved_state(
    dtype: torch.dtype,
) -> None:
    plan = plan_of("masked", 2)
    decoder = decoder_from(plan, tensors_of(plan)).to(dtype)
    assert decoder.norm.weight.dtype == dtype
    exact = torch.tensor(plan.model.decoder.rope_inv_freq, dtype=torch.float32)
    assert decoder.rotary.inv_freq.dtype == torch.float32
    assert torch.equal(decoder.rotary.inv_freq, exact)
    assert {name for name, _ in decoder.named_parameters()} == set(decoder.state_dict())


def test_parts_that_lie_together_are_views_of_the_originals_weights() -> None:
    plan = plan_of("everything, frozen, then exit", 2)  # the first half of the neurons
    tensors = tensors_of(plan)
    decoder: Decoder = decoder_from(plan, tensors)
    whole, mlp = tensors["layers.0.mlp.up_proj.weight"], decoder.layers[0].mlp
    parts = [mlp.first.up.weight, mlp.rest.up.weight]
    start = whole.untyped_storage().data_ptr()
    assert [part.untyped_storage().data_ptr() for part in parts] == [start, start]
    assert torch.equal(torch.cat(parts, dim=1), whole.T)
