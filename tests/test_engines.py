"""The float16 decoder graphs stay within what TensorRT-RTX accepts; engines are built ahead of time."""

import sys
import threading
import types
from pathlib import Path

import onnx
import pytest

from compressor.errors import BackendError, MissingExtraError, VtcompressError
from compressor.plan.edits import identity_plan
from compressor.plan.plan import Plan
from export.backends.tensorrt import maker as engines
from export.backends.tensorrt.maker import Maker, blamed_nodes, check_buildable
from export.backends.tensorrt.targets import TARGETS, capabilities, check_capabilities, load_package
from export.graphs.limits import Limits
from export.graphs.profiles import profiles_of
from export.graphs.spec import GraphSpec, decoder_graph
from tests.decoders import KINDS, plan_of, real_plan, write_decoder
from tests.facts import dims, facts

RTX = TARGETS["tensorrt-rtx"]

rtx = pytest.mark.usefixtures("rtx_package")


@pytest.fixture
def rtx_package() -> object:
    return pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")


def limits_for(plan: Plan, text: int = 64, context: int = 256) -> Limits:
    return Limits(
        max_batch=1,
        max_images=2,
        max_text=text,
        max_context=context,
        visual_tokens=plan.model.visual_tokens,
    )


def build(folder: Path, spec: GraphSpec, limits: Limits, *capabilities: str) -> tuple[Path, float]:
    output = folder / f"{spec.name}-{'-'.join(capabilities)}.engine"
    maker = Maker.of(RTX, capabilities)
    seconds, timings = maker.build_engine(
        folder / spec.file, profiles_of(spec, limits), spec, output, b""
    )
    assert timings == b""  # TensorRT-RTX has none
    return output, seconds


@rtx
@pytest.mark.parametrize("kind", KINDS)
def test_rtx_builds_engines_with_a_prefill_and_a_decode_profile_for_two_kinds_of_gpu(
    kind: str, tmp_path: Path
) -> None:
    """One engine for both: the builder takes several capabilities, and carries what each needs."""
    plan = plan_of(kind)
    for spec in write_decoder(tmp_path, plan):
        engine, _ = build(tmp_path, spec, limits_for(plan), "SM86", "SM120")
        assert engine.stat().st_size > 10_000


@rtx
@pytest.mark.parametrize(
    "kind",
    ["identity", "window", "leaving", "heads+frozen+exit", "some run", "some run, then leaving"],
)
def test_rtx_builds_engines_that_write_into_caches_of_fixed_size(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the size that the engine is for; the graph's own has a name, which the parser refuses."""
    plan = plan_of(kind)
    limits = limits_for(plan)
    (spec,) = write_decoder(tmp_path, plan, limits)
    graph = onnx.load(tmp_path / spec.file, load_external_data=False).graph
    assert sum(node.op_type == "TensorScatter" for node in graph.node) == 2 * len(plan.caches())
    for context in (limits.max_context, limits.max_text):
        shorter = limits.model_copy(update={"max_context": context})
        engine, _ = build(tmp_path, spec, shorter, "SM86")
        assert engine.stat().st_size > 10_000
    monkeypatch.setattr(engines, "pinned", lambda content, _: content)
    with pytest.raises(
        VtcompressError, match=r"TensorScatter.*must have a static sequence length dimension"
    ):
        build(tmp_path, spec, limits, "SM86")


@rtx
def test_engines_for_each_kind_of_gpu_are_no_smaller_than_one_for_both(tmp_path: Path) -> None:
    plan = plan_of("identity")
    (spec,) = write_decoder(tmp_path, plan)
    both, _ = build(tmp_path, spec, limits_for(plan), "SM86", "SM120")
    for capability in ("SM86", "SM120"):
        alone, _ = build(tmp_path, spec, limits_for(plan), capability)
        assert alone.read_bytes() != both.read_bytes()
        assert both.stat().st_size < 1.01 * alone.stat().st_size


@rtx
def test_a_decoder_of_real_dimensions_builds_for_two_kinds_of_gpu(tmp_path: Path) -> None:
    plan = real_plan()
    (spec,) = write_decoder(tmp_path, plan)
    weights = (tmp_path / "weights.bin").stat().st_size
    limits = limits_for(plan, text=512, context=2777)
    engine, seconds = build(tmp_path, spec, limits, "SM86", "SM120")
    # Its weights once, and little more: two profiles can double an engine.
    assert weights < engine.stat().st_size < 1.2 * weights
    print(f"{seconds:.1f} s, {engine.stat().st_size / 2**20:,.0f} MiB")


@rtx
def test_a_refused_node_is_named_with_its_layer_and_operator(tmp_path: Path) -> None:
    plan = plan_of("identity")
    (spec,) = write_decoder(tmp_path, plan)
    model = onnx.load(tmp_path / spec.file, load_external_data=False)
    attention = [n for n in model.graph.node if n.op_type == "Attention"][1]
    # What TensorRT refuses: an Attention node with present keys and values as outputs.
    attention.output.extend(["present_key", "present_value"])
    onnx.save(model, tmp_path / spec.file)
    with pytest.raises(
        VtcompressError, match=r"node layers\.1\.Attention \(Attention, layer 1\): .*one output"
    ):
        build(tmp_path, spec, limits_for(plan), "SM86")
    assert list(tmp_path.glob("*.engine")) == []


@rtx
def test_a_build_that_fails_names_the_nodes_that_no_kernel_was_found_for(tmp_path: Path) -> None:
    decoder = dims(layers=1, hidden=32, heads=2, kv_heads=1, head_dim=16, intermediate=32, vocab=32)
    plan = identity_plan(facts(decoder), "0" * 64)
    (spec,) = write_decoder(tmp_path, plan)
    prefill, decode = profiles_of(spec, limits_for(plan))
    # T of exactly 1 finds no Attention kernel for these heads.
    one = decode.model_copy(update={"most": decode.most | {"text": 1}})
    with pytest.raises(VtcompressError, match=r"builds no engine at node layers\.0\.Attention"):
        Maker.of(RTX, ("SM86",)).build_engine(
            tmp_path / spec.file, (prefill, one), spec, tmp_path / "x.engine", b""
        )
    assert not (tmp_path / "x.engine").exists()


def test_errors_of_a_build_are_traced_to_nodes_by_name_or_by_operator() -> None:
    names = ["layers.0.MatMul", "layers.0.Attention", "layers.1.Attention"]
    assert blamed_nodes(names, "no implementation for layers.0.MatMul") == ("layers.0.MatMul",)
    assert blamed_nodes(names, "Attention operation was not supported") == tuple(names[1:])
    assert blamed_nodes(names, "out of memory") == ()


class Interrupting:
    """Progress that a user interrupts at the third step."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def say(self, line: str) -> None:
        self.seen.append(line)

    def track(self, items, label, total):
        for number, item in enumerate(items):
            self.seen.append(f"{label} of {total}")
            if number == 2:
                raise KeyboardInterrupt
            yield item


@rtx
def test_an_interrupted_build_stops_and_writes_nothing(tmp_path: Path) -> None:
    plan = plan_of("identity")
    (spec,) = write_decoder(tmp_path, plan)
    progress, output = Interrupting(), tmp_path / "x.engine"
    maker = Maker.of(RTX, ("SM86",), progress)
    with pytest.raises(KeyboardInterrupt):
        maker.build_engine(
            tmp_path / spec.file, profiles_of(spec, limits_for(plan)), spec, output, b""
        )
    assert not output.exists()
    assert len(progress.seen) == 3
    assert progress.seen[0].startswith("x.engine: ")
    assert all(thread.name != "engine builder" for thread in threading.enumerate())


def test_float32_and_gates_that_compute_a_size_are_refused_with_what_to_export_instead() -> None:
    plan = plan_of("staged")
    assert plan.gates is not None
    gates = plan.gates.model_copy(update={"mode": "dynamic"})
    spec = decoder_graph(plan.model_copy(update={"gates": gates}), "float16", "last")
    with pytest.raises(VtcompressError, match=r"decoder\.onnx.*`exit: staged`"):
        check_buildable((spec,), "float16", "here")
    with pytest.raises(VtcompressError, match=r"here: .*`export\.dtype: float16`"):
        check_buildable((spec,), "float32", "here")


@rtx
def test_an_unknown_compute_capability_is_refused_with_the_known_ones() -> None:
    trt = load_package(RTX, "a test")
    assert capabilities(trt)[:3] == ("SM75", "SM80", "SM86")
    assert check_capabilities(RTX, None, trt) == ("SM86",)
    assert check_capabilities(RTX, ("SM120", "SM86"), trt) == ("SM86", "SM120")
    for unknown in ("SM87", "CURRENT", "86"):
        with pytest.raises(VtcompressError, match=rf"'{unknown}' is unknown.*known: SM75"):
            check_capabilities(RTX, (unknown,), trt)
    with pytest.raises(VtcompressError, match="named twice"):
        check_capabilities(RTX, ("SM86", "SM86"), trt)


def test_tensorrt_builds_for_the_gpu_that_is_there_and_takes_no_capability() -> None:
    full = TARGETS["tensorrt"]
    assert check_capabilities(full, None, None) == ()
    with pytest.raises(VtcompressError, match=r"SM86, or build for tensorrt-rtx"):
        check_capabilities(full, ("SM86",), None)


@pytest.mark.parametrize("name", list(TARGETS))
def test_a_target_that_is_not_installed_names_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = TARGETS[name]
    monkeypatch.setitem(sys.modules, target.module, None)
    with pytest.raises(MissingExtraError, match=rf"building .*'\.\[{target.extra}\]' in a clone"):
        load_package(target, "building engines")


@pytest.mark.parametrize("name", list(TARGETS))
@pytest.mark.parametrize(
    "failure",
    [
        ImportError("libnvonnxparser.so.11: cannot open shared object file: No such file"),
        OSError("libnvinfer.so.11: wrong ELF class"),
        FileNotFoundError("Could not find: nvinfer_11.dll. Is it on your PATH?\nPaths: ..."),
        ModuleNotFoundError("No module named 'tensorrt_bindings'", name="tensorrt_bindings"),
    ],
    ids=["library", "loader", "windows", "bindings"],
)
def test_a_target_whose_libraries_are_missing_says_so_and_how_to_mend_it(
    name: str, failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of that name whose import fails as the vendor's does without its libraries."""
    target = TARGETS[name]
    module = types.ModuleType("broken")
    module.failure = failure  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "broken", module)
    (tmp_path / f"{target.module}.py").write_text("import broken\nraise broken.failure\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, target.module, raising=False)
    first = str(failure).splitlines()[0]
    with pytest.raises(BackendError, match=f"force-reinstall {target.package}") as caught:
        load_package(target, "building engines")
    assert f"cannot be loaded: {first}; " in str(caught.value)
