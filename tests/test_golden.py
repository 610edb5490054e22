"""`python -m tests.golden` on the authors' numbers, as a command: passes, prints, and can fail."""

import functools
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.decoder import Decoder
from compressor.decoder.weights import GATES_SOURCE, StoredWeight, original_tensors
from compressor.plan.plan import Plan
from export.graphs.spec import GraphSpec
from export.writer.passes.graph_pass import weights_of
from tests.golden import case as golden_case
from tests.golden.__main__ import main

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"


Golden = Callable[[Path], tuple[int, str]]


@pytest.fixture
def golden(capsys: pytest.CaptureFixture[str]) -> Golden:
    """Return a function that runs the command in this process and gives exit code and output."""

    def call(folder: Path) -> tuple[int, str]:
        code = main([str(folder)])
        return code, capsys.readouterr().out

    return call


class Graph(NamedTuple):
    """A graph that was written in this file, and the stored weights that its initializers hold."""

    content: bytes
    weights: dict[str, StoredWeight]


@pytest.fixture(scope="module")
def graphs() -> dict[str, Graph]:
    return {}


@pytest.fixture
def filled(graphs: dict[str, Graph], monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Let cases whose gates alone differ share their graphs, each filled with its own weights.

    Returns the sources of the weights that each graph was filled with, by its file.
    """
    found: dict[str, set[str]] = {}
    makers_of = golden_case.decoder_makers

    def makers(decoder: Decoder, plan: Plan) -> list[Callable[[GraphSpec], ir.Model]]:
        tensors = original_tensors(decoder)
        # Which rows come in front of a decoder changes nothing in it.
        unnamed: dict[str, Any] = {
            "model": plan.model.model_copy(update={"name": ""}),
            "front": None,
        }
        if plan.gates is not None:
            unnamed["gates"] = plan.gates.model_copy(update={"digest": ""})
        digest = hashlib.sha256(plan.model_copy(update=unnamed).model_dump_json().encode())
        for name, tensor in sorted(tensors.items()):
            if not name.startswith(GATES_SOURCE):
                digest.update(tensor.contiguous().numpy().tobytes())

        def once(make: Any, spec: GraphSpec) -> ir.Model:
            key = f"{spec.file} {digest.hexdigest()}"
            if key not in graphs:
                model: ir.Model = make(spec)
                held = {n: weights_of(v) for n, v in model.graph.initializers.items()}
                weights = {name: only for name, (only,) in ((n, w) for n, w in held.items() if w)}
                graphs[key] = Graph(ir.to_proto(model).SerializeToString(), weights)
            graph = ir.from_proto(onnx.ModelProto.FromString(graphs[key].content))
            for name, weight in graphs[key].weights.items():
                array = weight.of(tensors[weight.source]).contiguous().numpy()
                graph.graph.initializers[name].const_value = ir.tensor(array, name=name)
            found[spec.file] = {weight.source for weight in graphs[key].weights.values()}
            return graph

        return [functools.partial(once, make) for make in makers_of(decoder, plan)]

    monkeypatch.setattr(golden_case, "decoder_makers", makers)
    return found


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("case", "forms", "more"),
    [
        (
            "shortv",
            ("torch", "onnx"),
            ["ok   layer contribution", "ok   layer ranking", "onnx (60, 60, 60, 60, 60, 60)"],
        ),
        ("vtw", ("torch", "onnx"), ["onnx (60, 60, 60, 44, 44, 44)"]),
        ("yopo", ("torch", "onnx"), ["onnx (620, 620, 620, 620, 620, 620)"]),
        (
            "shortv_qwen2vl_ref",
            ("torch", "onnx"),
            ["ok   positions", "onnx (71, 71, 71, 71, 71, 71)"],
        ),
        ("vtw_qwen2vl_ref", ("torch", "onnx"), ["ok   positions", "onnx (71, 71, 71, 71, 23, 23)"]),
        (
            "yopo_qwen2vl",
            ("torch", "onnx"),
            ["ok   positions", "onnx (74, 74, 74, 74, 26, 26)"],
        ),
        (
            "gprune",
            ("torch", "onnx", "torch_025", "onnx_025"),
            [
                "ok   scores",
                "ok   degree",
                *(
                    f"ok   {form} {name}"
                    for form in ("torch", "onnx", "torch_025", "onnx_025")
                    for name in ("kept places", "positions")
                ),
                "onnx (332, 332, 332, 332)",
                "onnx_025 (188, 188, 188, 188)",
            ],
        ),
        ("wico_plus", ("torch", "onnx"), [f"onnx ({'188, ' * 30}620, 620)"]),
        ("gamma_mod", (), ["ok   arank of heads", "ok   arank"]),
        (
            "gamma_mod_fixed_capacity",
            ("torch", "onnx"),
            ["ok   kept places", "onnx (191, 191, 191, 106, 106, 106, 191)"],
        ),
        (
            "wico",
            ("torch", "onnx"),
            [
                "ok   torch visual tokens",
                "ok   onnx visual tokens",
                "onnx (188, 188, 188)",
            ],
        ),
        (
            "gprune_anyres",
            ("torch", "onnx", "torch_025", "onnx_025"),
            [
                *(
                    f"ok   {grid}_{name}"
                    for grid in ("base", "tile")
                    for name in ("scores", "degree")
                ),
                *(
                    f"ok   {form} {name}"
                    for form in ("torch", "onnx", "torch_025", "onnx_025")
                    for name in ("kept places", "positions")
                ),
                "onnx (499, 499, 499, 499)",
                "onnx_025 (283, 283, 283, 283)",
            ],
        ),
        (
            "dyvte",
            ("torch", "onnx", "staged"),
            [
                f"{form} (620, 620, 44, 44, 44, 44), (620, 44, 44, 44, 44, 44), "
                "(620, 620, 620, 620, 44, 44)"
                for form in ("torch", "onnx", "staged")
            ],
        ),
    ],
)
def test_a_public_case_agrees_within_1e_4_in_every_form(
    case: str, forms: tuple[str, ...], more: list[str], golden: Golden
) -> None:
    code, said = golden(GOLDEN / case)
    assert code == 0, said
    for form in forms:
        for name in ("prefill_logits", "decode_logits", "kv lengths"):
            assert f"ok   {form} {name}" in said
    for line in more:
        assert line in said


@pytest.mark.parametrize(
    ("case", "key", "value", "missed"),
    [
        ("shortv", "frozen_layers", [0, 4, 5], "prefill_logits"),
        ("vtw", "exit_layer_input", 2, "kv lengths"),
        ("yopo", "window", 3, "prefill_logits"),
        ("yopo_qwen2vl", "visual_off_from_layer", 3, "prefill_logits"),
        ("shortv_qwen2vl_ref", "grid", [8, 6], "decode_logits"),
        ("gprune", "iterations", 4, "kept places"),
        ("wico", "in_grid", [12, 48], "visual tokens"),
        ("gprune_anyres", "iterations", 4, "kept places"),
    ],
)
def test_another_choice_does_not_agree(
    case: str, key: str, value: object, missed: str, golden: Golden, tmp_path: Path
) -> None:
    """A case whose choice differs by one layer must fail: the numbers depend on the method."""
    shutil.copytree(GOLDEN / case, tmp_path / "case")
    path = tmp_path / "case" / "case.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["params"][key] = value
    path.write_text(json.dumps(facts), encoding="utf-8")
    code, said = golden(tmp_path / "case")
    assert code == 1
    assert f"FAIL torch {missed}" in said
    assert f"FAIL onnx {missed}" in said


def test_gates_that_do_not_fire_do_not_agree(
    golden: Golden, filled: dict[str, set[str]], tmp_path: Path
) -> None:
    shutil.copytree(GOLDEN / "dyvte", tmp_path / "case")
    path = tmp_path / "case" / "model.safetensors"
    weights = load_file(path)
    silent = {k: torch.zeros_like(v) if k.endswith("w2.weight") else v for k, v in weights.items()}
    save_file(silent, path)
    code, said = golden(tmp_path / "case")
    assert code == 1
    for form in ("torch", "onnx", "staged"):
        assert f"FAIL {form} prefill_logits" in said
        assert f"FAIL {form} kv lengths" in said
    gates = {f"{GATES_SOURCE}.{i}.{w}.weight" for i in range(5) for w in ("w1", "w2")}
    staged = [filled.pop(f"decoder_stage_{i}.onnx") for i in range(6)]
    assert gates <= set().union(*staged)
    assert gates <= filled.pop("decoder.onnx")


def test_the_command_gives_its_exit_code_and_prints_its_usage_without_a_folder() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.golden"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "usage: python -m tests.golden FOLDER...\n"
