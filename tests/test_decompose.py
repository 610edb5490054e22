"""Exports that leave work of torch's exporter out give the graphs that its own way gives."""

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import onnx_ir as ir
import pytest
import torch

from compressor.plan.plan import Gates, Plan
from compressor.schema.sections import ExportSection
from export.graphs.limits import Limits
from export.graphs.spec import decoder_graphs
from export.writer import decompose, write
from tests import cuts, decoders, traced
from tests.same_graph import contents
from tests.test_traced import torchs_own
from vtcompress.stages.exporting.torch_side import decoder_makers

LIMITS = Limits(max_batch=2, max_images=2, max_text=16, max_context=64, visual_tokens=12)
DECLARED = ("inputs", "initializers", "opsets")
HALF, FIXED = ExportSection(dtype="float16"), ExportSection(kv_cache="fixed")


def first(plan: Plan, layers: int) -> Plan:
    """Return the beginning of a plan, which takes less time to trace."""
    return plan.model_copy(update={"layers": plan.layers[:layers]})


GATES = Gates(candidates=(0,), mode="dynamic", width=16, digest="")
PLANS: dict[str, tuple[Callable[[], Plan], ExportSection]] = {
    "window, heads, neurons, then exit": (
        lambda: cuts.plan_of("everything, frozen, then exit", 2),
        ExportSection(),
    ),
    "growing": (lambda: first(cuts.plan_of("growing, frozen, then exit", 2), 2), ExportSection()),
    "three axes, float16": (lambda: decoders.plan_of("three axes"), HALF),
    "some run anew, fixed caches": (
        lambda: first(decoders.plan_of("some run anew"), 2),
        FIXED,
    ),
    "a stage of a gated decoder": (lambda: decoders.plan_of("staged"), HALF),
    "gates in one graph": (
        lambda: decoders.plan_of("staged").model_copy(update={"gates": GATES}),
        ExportSection(),
    ),
    "leaving": (lambda: first(cuts.plan_of("leaving", 2), 2), ExportSection()),
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return whether programs were decomposed node by node, in order."""
    own, found = decompose.decomposed, []

    def decomposed(*given: Any) -> Any:
        made = own(*given)
        found.append(made is not None)
        return made

    monkeypatch.setattr(decompose, "decomposed", decomposed)
    return found


def exported(plan: Plan, settings: ExportSection) -> ir.Model:
    """Export the plan's first graph; no export of another test is remembered."""
    decoder = decoders.seeded_decoder(plan).to(getattr(torch, settings.dtype))
    limits = LIMITS if settings.kv_cache == "fixed" else None
    specs = decoder_graphs(plan, settings.dtype, "last", limits=limits)
    with traced.unrecorded(), torchs_own():
        return decoder_makers(decoder, plan, settings)[0](specs[0])


def operators(told: dict[str, Any]) -> Counter[str]:
    """Return how often a graph has each operator."""
    return sum(
        (Counter({operator: count}) for (operator, _), count in told["nodes"].items()), Counter()
    )


def same(
    make: Callable[[], Plan], settings: ExportSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hold the graph to the one that torch's exporter gives by itself, without shortcuts.

    Torch may compute a size anew that is there already; then ours has some sums and products less.
    """
    found = contents(exported(make(), settings))
    monkeypatch.setattr(decompose, "decomposed", lambda *_: None)
    monkeypatch.setattr(write, "shortcuts", nullcontext)
    expected = contents(exported(make(), settings))
    mine, torchs = operators(found), operators(expected)
    if mine != torchs:
        assert mine < torchs
        assert set(torchs - mine) <= {"Add", "Mul"}
        assert {name: found[name] for name in DECLARED} == {
            name: expected[name] for name in DECLARED
        }
        return
    for part, told in expected.items():
        assert found[part] == told, part


@pytest.mark.parametrize("name", PLANS)
def test_a_decoders_graph_is_the_one_that_torchs_decomposition_gives(
    name: str, asked: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    same(*PLANS[name], monkeypatch)
    assert asked == [True]


@pytest.mark.parametrize("name", [name for name in cuts.CUTS if name not in PLANS])
def test_the_graph_of_every_cut_is_the_one_that_torchs_decomposition_gives(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    same(lambda: cuts.plan_of(name, 2), ExportSection(), monkeypatch)


class Small(torch.nn.Module):
    """Turns rows [N, 4] in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, rows: torch.Tensor) -> Any:
        """Return what the way makes of the rows."""
        if self.way == "writes":
            copy = rows.clone()
            copy.add_(1)  # nothing reads what this gives
            return copy
        if self.way == "branches":
            return torch.cond(rows.sum() > 0, torch.sin, torch.cos, (rows,))
        wide = rows.unflatten(-1, (2, -1)).transpose(0, 1)
        summed = torch.cat([wide.flatten(1), wide.reshape(2, -1)], dim=1).to(torch.float64)
        return summed, summed.to(torch.float64), torch.nn.functional.hardswish(rows).expand_as(rows)


def program_of(way: str) -> torch.export.ExportedProgram:
    axes = ({0: torch.export.Dim("rows", min=2)},)
    return torch.export.export(Small(way).eval(), (torch.rand(3, 4),), dynamic_shapes=axes)


def test_a_decomposed_program_computes_the_same_for_any_number_of_rows() -> None:
    hardswish = torch.ops.aten.hardswish.default
    table = {hardswish: lambda rows: rows * (rows + 3).clamp(0, 6) / 6}
    program, rows = program_of("views"), torch.randn(7, 4)
    assert decompose.decomposed(program, table) is program
    found = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.clamp.default" in found
    assert not {
        name for name in found if "flatten" in name or ".to." in name or "hardswish" in name
    }
    for mine, expected in zip(program.module()(rows), Small("views")(rows), strict=True):
        assert mine.dtype == expected.dtype
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("way", ["writes", "branches"])
def test_what_cannot_be_decomposed_node_by_node_is_left_as_it_is(way: str) -> None:
    program = program_of(way)
    before = str(program.graph)
    assert decompose.decomposed(program, {}) is None
    assert str(program.graph) == before


def test_torchs_way_is_back_behind_an_export() -> None:
    own = torch.export.ExportedProgram.run_decompositions
    with decompose.node_by_node():
        assert torch.export.ExportedProgram.run_decompositions is not own
    assert torch.export.ExportedProgram.run_decompositions is own
