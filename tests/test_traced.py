"""What the session remembers of `torch.onnx.export` is what torch gives, and any other call is another."""

from pathlib import Path
from types import SimpleNamespace
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


def decoder_of(plan: Plan, **changed: torch.Tensor) -> Decoder:
    return decoder_from(plan, cuts.tensors_of(plan) | changed)


def first_layers(name: str, count: int) -> Plan:
    """Return the beginning of a plan, which takes less time to trace."""
    plan = cuts.plan_of(name, 2)
    return plan.model_copy(update={"layers": plan.layers[:count]})


def written(plan: Plan, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    spec = decoder_graph(plan, "float32", "last")
    with SharedWeights(folder) as weights:
        save_graph(export_decoder(decoder_of(plan), spec), folder / spec.file, weights)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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


def test_the_exporters_table_of_operators_is_kept_and_is_the_one_that_it_reads_itself(
    counted: list[Any], tmp_path: Path
) -> None:
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    def table(registry: ONNXRegistry) -> dict[Any, list[Any]]:
        return {
            target: [(entry.onnx_function, entry.fx_target, entry.is_complex) for entry in entries]
            for target, entries in registry.functions.items()
        }

    written(first_layers("heads", 1), tmp_path / "first")  # the table is kept from here on
    assert len(counted) == 1
    kept = ONNXRegistry.from_torchlib(opset_version=23)
    assert ONNXRegistry.from_torchlib(opset_version=23) is kept
    assert ONNXRegistry.from_torchlib(opset_version=24).opset_version == 24
    own: Any = ONNXRegistry.from_torchlib
    assert table(own.__wrapped__(opset_version=23)) == table(kept)


def test_patterns_that_end_in_another_operator_are_those_that_the_exporters_rewriter_gives_up(
    counted: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export of its own, in which every pattern that is passed over is tried after all."""
    from onnxscript.rewriter import _matcher, _rewrite_rule

    plan = first_layers("window and heads", 1)
    traced.match_by_operator_first()
    quick: Any = _rewrite_rule.Pattern.match
    tried = {True: 0, False: 0}
    through: list[Any] = []
    slowly = _matcher.SimplePatternMatcher.match

    def seen(matcher: Any, *given: Any, **options: Any) -> Any:
        through.append(matcher)
        return slowly(matcher, *given, **options)

    def match(rule: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        through.clear()
        found = quick(rule, model, graph, node, **options)
        tried[bool(through)] += 1
        if not through:
            assert not slowly(rule._matcher, model, graph, node, verbose=0)
        return found

    monkeypatch.setattr(_matcher.SimplePatternMatcher, "match", seen)
    monkeypatch.setattr(_rewrite_rule.Pattern, "match", match)
    written(plan, tmp_path / "first")
    assert len(counted) == 1
    assert tried[False] > 10 * tried[True] > 0


def test_code_that_a_test_put_in_place_of_what_is_traced_is_traced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder, rows = decoder_of(cuts.plan_of("heads", 2)), (torch.ones(1, 2),)
    before = traced.key_of(decoder, rows)
    assert before is not None
    with monkeypatch.context() as patched:
        patched.setattr("compressor.decoder.ops.LEAST", -1.0)
        assert traced.key_of(decoder, rows) not in (before, None)
    with monkeypatch.context() as patched:
        patched.setattr(Decoder, "forward", lambda *rows: rows)
        assert traced.key_of(decoder, rows) is None
    assert traced.key_of(decoder, rows) == before
