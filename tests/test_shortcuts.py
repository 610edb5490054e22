"""Shortcuts through torch's exporter: each leaves something out, changes nothing, and is gone behind it."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import onnx_ir as ir
import pytest
import torch
from onnxscript.rewriter import _matcher
from torch._dynamo import config
from torch.fx.experimental import proxy_tensor
from torch.onnx._internal.exporter._registration import ONNXRegistry
from torch.onnx._internal.fx.passes import type_promotion

from export.graphs.spec import decoder_graph
from export.writer import write
from export.writer.shortcuts import shortcuts
from tests import traced
from tests.cuts import decoder_of, plan_of, tensors_of
from tests.test_traced import torchs_own

REPLACED: dict[str, Callable[[], Any]] = {
    "cache of shapes": lambda: config.fake_tensor_cache_enabled,
    "order in memory": lambda: proxy_tensor._extract_tensor_metadata,
    "types": lambda: type_promotion._TypePromotionInterpreter.run_node,
    "registry": lambda: ONNXRegistry.from_torchlib,
    "patterns": lambda: _matcher.SimplePatternMatcher.match,
}


@pytest.mark.parametrize("name", REPLACED)
def test_a_shortcut_has_something_to_leave_out_and_nothing_of_it_stays_behind(name: str) -> None:
    own = REPLACED[name]()
    with shortcuts():
        assert REPLACED[name]() != own
    assert REPLACED[name]() == own
    with pytest.raises(ZeroDivisionError), shortcuts():
        _ = 1 / 0
    assert REPLACED[name]() == own


def test_exports_in_threads_wait_for_each_other_and_leave_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_once, most, before = [0], [0], {name: get() for name, get in REPLACED.items()}

    def export(*_: Any, **__: Any) -> None:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        time.sleep(0.05)
        at_once[0] -= 1  # what it gives is no program, which is an error

    monkeypatch.setattr("torch.onnx.export", export)
    plan = plan_of("heads", 2)
    decoder, spec = decoder_of(plan, tensors_of(plan)), decoder_graph(plan, "float32", "all")
    with ThreadPoolExecutor(4) as threads:
        made = [threads.submit(write.export_decoder, decoder, spec) for _ in range(4)]
        assert all(isinstance(one.exception(), RuntimeError) for one in made)
    assert most == [1]
    assert {name: get() for name, get in REPLACED.items()} == before


def test_the_exporters_table_of_operators_is_kept_and_is_the_one_that_it_reads_itself() -> None:
    def table(registry: ONNXRegistry) -> dict[Any, list[Any]]:
        return {
            target: [(entry.onnx_function, entry.fx_target, entry.is_complex) for entry in entries]
            for target, entries in registry.functions.items()
        }

    with shortcuts():
        kept = ONNXRegistry.from_torchlib(opset_version=23)
    with shortcuts():
        assert ONNXRegistry.from_torchlib(opset_version=23) is kept
        assert ONNXRegistry.from_torchlib(opset_version=24).opset_version == 24
    assert table(ONNXRegistry.from_torchlib(opset_version=23)) == table(kept)


def exported(name: str, dtype: str) -> bytes:
    """Return the graph of a plan's first layer, which torch itself exports."""
    plan = plan_of(name, 2)
    one = plan.model.decoder.model_copy(update={"layers": 1})
    facts = plan.model.model_copy(update={"decoder": one})
    plan = plan.model_copy(update={"model": facts, "layers": plan.layers[:1]})
    decoder = decoder_of(plan, tensors_of(plan)).to(getattr(torch, dtype))
    with traced.unrecorded(), torchs_own():
        graph = write.export_decoder(decoder, decoder_graph(plan, dtype, "all"))
    return bytes(ir.to_proto(graph).SerializeToString())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_graph_is_the_same_to_the_byte(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = exported("heads", dtype)
    monkeypatch.setattr(write, "shortcuts", nullcontext)
    assert exported("heads", dtype) == found


def test_patterns_that_are_passed_over_are_those_that_the_exporters_rewriter_gives_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An export of its own, in which every pattern that is passed over is tried after all."""
    own = _matcher.SimplePatternMatcher.match
    tried = {True: 0, False: 0}
    through: list[Any] = []

    def seen(matcher: Any, *given: Any, **options: Any) -> Any:
        through.append(matcher)
        return own(matcher, *given, **options)

    monkeypatch.setattr(_matcher.SimplePatternMatcher, "match", seen)
    with shortcuts():
        quick: Any = _matcher.SimplePatternMatcher.match

    def match(matcher: Any, *given: Any, **options: Any) -> Any:
        through.clear()
        found = quick(matcher, *given, **options)
        tried[bool(through)] += 1
        if not through:
            assert not found
            assert not own(matcher, *given, **options)
        return found

    monkeypatch.setattr(_matcher.SimplePatternMatcher, "match", match)
    monkeypatch.setattr(write, "shortcuts", nullcontext)
    exported("window and heads", "float32")
    assert tried[False] > 10 * tried[True] > 0


class Mixed(torch.nn.Module):
    """Adds and multiplies numbers of different types, of as many rows as there are or as a tensor says."""

    def __init__(self, told: bool) -> None:
        super().__init__()
        self.told = told

    def forward(self, wide: torch.Tensor, narrow: torch.Tensor, whole: torch.Tensor) -> Any:
        count = whole.sum().item() if self.told else wide.shape[0]
        torch._check(count >= 0)
        torch._check(count <= wide.shape[0])
        first = wide.narrow(0, 0, count)
        return wide * narrow + whole, narrow * whole**2 + 2.5, first * count + narrow[:1] / 3


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.filterwarnings("ignore:.*The axis name")
def test_types_are_promoted_as_where_every_node_is_computed_anew(told: bool) -> None:
    axes = {0: torch.export.Dim("rows", min=2), 1: torch.export.Dim("columns", min=2)}
    given = (torch.rand(3, 5), torch.rand(3, 5).half(), torch.zeros(3, 5, dtype=torch.int64))

    def graph() -> tuple[bytes, int]:
        with traced.unrecorded(), torchs_own(), torch.inference_mode():
            program = torch.onnx.export(
                Mixed(told).eval(), given, dynamo=True, dynamic_shapes=(axes,) * 3, verbose=False
            )
        assert program is not None
        casts = sum(node.op_type == "Cast" for node in program.model.graph)
        return ir.to_proto(program.model).SerializeToString(deterministic=True), casts

    with shortcuts():
        found, casts = graph()
    assert casts > 4
    assert graph() == (found, casts)
