"""What the session remembers of `torch.onnx.export` is what torch gives, and any other call is another."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest
import torch

from compressor.decoder import Decoder, Stage, decoder_from
from compressor.plan.plan import Plan
from export.graphs.spec import decoder_graph
from export.writer.weights import SharedWeights
from export.writer.write import export_decoder, save_graph
from tests import cuts, traced

# What stands in a test's file is traced anew each time: these are of a library, as transformers' towers are.
LIBRARY = """
import torch

class Small(torch.nn.Module):
    def __init__(self, seed, table="read"):
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3, bias=False)
        self.table, self.idle = torch.nn.Embedding(4, 3), torch.nn.Parameter(torch.rand(5))
        self.how = table
        self.register_buffer("rows", torch.arange(4))

    def forward(self, given):
        table = self.table(self.rows)
        if self.how != "computed alone":
            given = given * table
        if self.how.startswith("computed"):
            table = torch.exp(table)
        return self.second(self.first(given)) + table[None]

def hook_of(key):
    def keep(module, args, output):
        key
    return keep
"""


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a module of Python with a small module of torch, one of whose parameters nothing reads."""
    found = ModuleType("library")
    monkeypatch.setitem(sys.modules, "library", found)
    exec(LIBRARY, vars(found))
    return found


def decoder_of(plan: Plan, **changed: torch.Tensor) -> Decoder:
    return decoder_from(plan, cuts.tensors_of(plan) | changed)


def first_layers(name: str, count: int) -> Plan:
    """Return the beginning of a plan, which takes less time to trace."""
    plan = cuts.plan_of(name, 2)
    return plan.model_copy(update={"layers": plan.layers[:count]})


def written(plan: Plan, folder: Path, **changed: torch.Tensor) -> dict[str, bytes]:
    folder.mkdir()
    spec = decoder_graph(plan, "float32", "last")
    with SharedWeights(folder) as weights:
        graph = export_decoder(decoder_of(plan, **changed), spec)
        save_graph(graph, folder / spec.file, weights)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def graph_of(module: torch.nn.Module) -> bytes:
    """Return the graph that `torch.onnx.export` gives of a module, as bytes."""
    program = torch.onnx.export(module.eval(), (torch.ones(1, 4, 3),), verbose=False)
    return ir.to_proto(program.model).SerializeToString(deterministic=True)


@contextlib.contextmanager
def torchs_own() -> Iterator[None]:
    """Let torch export everything meanwhile."""
    remembered = torch.onnx.export
    torch.onnx.export = remembered.__wrapped__  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.onnx.export = remembered


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Begin with nothing remembered; return the modules that torch itself exports from now on."""
    own = getattr(torch.onnx.export, "__wrapped__", torch.onnx.export)
    modules: list[Any] = []

    def export(module: Any, *args: Any, **options: Any) -> Any:
        modules.append(module)
        return own(module, *args, **options)

    monkeypatch.setattr("torch.onnx.export", traced.once(export, tmp_path / "traced"))
    return modules


def test_a_remembered_decoder_is_written_byte_for_byte_as_torchs_own(
    counted: list[Any], tmp_path: Path
) -> None:
    plan = first_layers("window and heads", 2)
    first = written(plan, tmp_path / "first")
    assert len(counted) == 1
    assert written(plan, tmp_path / "second") == first
    assert len(counted) == 1
    assert len(first) == 2
    # All weights are others.
    changed = {name: weight * 1.5 for name, weight in cuts.tensors_of(plan).items()}
    third = written(plan, tmp_path / "third", **changed)
    assert len(counted) == 1
    with torchs_own():
        assert written(plan, tmp_path / "fourth", **changed) == third != first


def test_a_graph_is_kept_without_weights_that_stand_in_it_as_they_are_or_turned(
    counted: list[Any], library: Any
) -> None:
    first, other = (graph_of(library.Small(seed)) for seed in (0, 1))
    assert len(counted) == 1
    assert first != other
    with torchs_own():
        assert graph_of(library.Small(1)) == other


@pytest.mark.parametrize(
    "change",
    ["computed", "computed alone", "equal to another", "one number", "symmetric", "shared"],
)
def test_weights_that_a_graph_may_depend_on_are_part_of_the_call(
    change: str, counted: list[Any], library: Any
) -> None:
    first, other = (library.Small(seed, change) for seed in (0, 1))
    with torch.no_grad():
        if change == "equal to another":
            other.second.weight.copy_(other.first.weight)
        elif change == "one number":
            other.first.bias.fill_(1.0)
        elif change == "symmetric":
            for module in (first, other):
                module.second.weight.copy_(module.second.weight + module.second.weight.T)
        elif change == "shared":
            other.second.weight = other.first.weight
    found = [graph_of(module) for module in (first, other)]
    assert len(counted) == 2
    assert [graph_of(module) for module in (first, other)] == found
    assert len(counted) == 2
    with torchs_own():
        assert graph_of(other) == found[1]


def test_a_module_that_ran_in_transformers_before_is_the_same_call(library: Any) -> None:
    """Its hooks have numbers that count all hooks of a process."""

    def name_of(key: str, hooks_before: int) -> traced.Call | None:
        module = library.Small(0)
        for _ in range(hooks_before):
            module.first.register_forward_hook(print).remove()
        module.first.register_forward_hook(library.hook_of(key))
        return traced.call_of(module)

    name = name_of("states", 0)
    assert name is not None
    assert name_of("states", 3) == name
    assert name_of("others", 0) not in (name, None)
    own = library.Small(0)
    own.first.register_forward_hook(lambda *_: None)  # a test's own code
    assert traced.call_of(own) is None


def test_torch_exports_anew_what_differs_or_cannot_be_told(tmp_path: Path) -> None:
    made: list[Any] = []

    def export(*call: Any, **options: Any) -> Any:
        made.append((call, options))
        program = SimpleNamespace(graph=SimpleNamespace(nodes=[]))
        graph = ir.Graph([], [], nodes=[], name="g", opset_imports={"": 23})
        return SimpleNamespace(model=ir.Model(graph, ir_version=10), exported_program=program)

    remembered = traced.once(export, tmp_path / "traced")
    plan = cuts.plan_of("heads", 2)
    name, weight = next(iter(cuts.tensors_of(plan).items()))
    rows = (torch.ones(2, 3),)
    axis: Any = torch.export.Dim
    calls: list[tuple[Any, Any, dict[str, Any]]] = [
        (decoder_of(plan), rows, {}),
        (decoder_of(plan, **{name: weight + 1e-6}), rows, {}),
        (decoder_of(cuts.plan_of("neurons", 2)), rows, {}),
        (decoder_of(plan), (torch.ones(3, 3),), {}),
        (decoder_of(plan), (torch.ones(2, 3).double(),), {}),
        (decoder_of(plan), rows, {"opset_version": 24}),
        (decoder_of(plan), rows, {"dynamic_shapes": ({0: axis("visual", min=0)},)}),
        (decoder_of(plan), rows, {"dynamic_shapes": ({0: axis("visual", min=1)},)}),
        (decoder_of(plan), rows, {"dynamic_shapes": ({0: 12 * axis("visual", min=0)},)}),
        (decoder_of(plan), rows, {"dynamic_shapes": ({0: 6 * axis("visual", min=0)},)}),
    ]
    for count, (module, args, options) in enumerate(calls, 1):
        remembered(module, args, **options)
        assert len(made) == count, options
    for module, args, options in calls:
        remembered(module, args, **options)
    assert len(made) == len(calls)
    unknown = decoder_of(plan)
    unknown.told = lambda: None  # type: ignore[assignment]
    for count in (1, 2):
        remembered(unknown, rows)
        assert len(made) == len(calls) + count


def test_a_decoder_of_a_plan_in_other_words_is_the_same_call_for_nothing_reads_the_plan(
    counted: list[Any], tmp_path: Path
) -> None:
    plan = cuts.plan_of("heads", 2).model_copy(update={"layers": (cuts.cut(0), cuts.frozen(1))})
    other = plan.model_copy(
        update={
            "model": plan.model.model_copy(update={"name": "another"}),
            "model_digest": "1" * 64,
            "layers": (cuts.cut(0), cuts.dead(1)),
            "notes": ("a note",),
        }
    )
    first = written(plan, tmp_path / "first")
    assert written(other, tmp_path / "second") == first
    assert len(counted) == 1
    assert counted[0].plan == plan
    reads = traced.once(lambda module, _: module.plan, tmp_path / "none")
    for module in (decoder_of(plan), Stage(decoder_of(plan), 0)):
        with pytest.raises(AttributeError, match="no attribute 'plan'"):
            reads(module, ())
        assert module.plan == plan


def test_code_that_a_test_put_in_place_of_what_is_traced_is_traced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder, rows = decoder_of(cuts.plan_of("heads", 2)), (torch.ones(1, 2),)
    before = traced.call_of(decoder, rows)
    assert before is not None
    with monkeypatch.context() as patched:
        patched.setattr("compressor.decoder.ops.LEAST", -1.0)
        assert traced.call_of(decoder, rows) not in (before, None)
    with monkeypatch.context() as patched:
        patched.setattr(Decoder, "forward", lambda *rows: rows)
        assert traced.call_of(decoder, rows) is None
    assert traced.call_of(decoder, rows) == before
