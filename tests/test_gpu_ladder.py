"""The GPU script rehearsed on the CPU: every step is there, and those that cannot run say why."""

import json
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.methods import layer_scores
from export.graphs.spec import WEIGHTS_FILE
from tests.gpu import decoders
from tests.gpu.answers import answers_agree
from tests.gpu.decoders import Ratio, in_turns, plans, ratios, scale
from tests.gpu.graphs import fill, write
from tests.gpu.ladder import Run, answers, calibration, vtcompress
from tests.gpu.profiles import agreement_of

ROOT = Path(__file__).parent.parent
PLANS = ["original", "shortv", "vtw", "yopo", "yopo-no-window", "fastv"]


def test_the_rehearsal_reports_ratios_and_why_steps_were_skipped(
    tiny_artifact: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "tests.gpu.ladder", "--device=cpu", "--scale=tiny"]
    artifact = shutil.copytree(tiny_artifact, tmp_path / "artifact")  # parities are kept in it
    graphs = tmp_path / "graphs"
    write(scale("tiny"), graphs, "float32")
    more = ["--rounds=3", "--seconds=1", f"--artifact={artifact}", f"--graphs={graphs}"]
    more += [f"--output={tmp_path}"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    document = json.loads((tmp_path / "ladder.json").read_text())
    steps = {step["name"]: step for step in document["steps"]}
    assert "needs a GPU" in steps["build tensorrt-rtx"]["detail"]
    assert steps["calibration"]["outcome"] == "skipped"
    assert "needs a GPU" in steps["calibration"]["detail"]
    assert "needs a GPU" in steps["answers"]["detail"]
    assert steps["parity tensorrt"]["outcome"] == "skipped"
    assert "pip install" in steps["parity onnxruntime-cuda"]["detail"]
    assert {name for name, step in steps.items() if step["outcome"] == "passed"} >= {
        "device",
        "export",
        "torch parity",
        "times, eager",
        "times of graphs",
    }
    assert all(step["proves"] for step in document["steps"])
    page = (tmp_path / "ladder.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith(("| 64 ", "| 128 "))]
    assert [row[1] for row in rows] == PLANS * 4  # two prompts, in torch and of graphs
    assert float(rows[2][4]) == pytest.approx(document["times"][2]["predicted"], abs=0.01)
    ways = [row["of"] for row in document["times"]]
    assert ways == ["torch, eager"] * 12 + ["ONNX graphs, onnxruntime"] * 12
    assert "these times say nothing of a GPU" in page
    assert "TensorRT" not in page.split("| step |")[0]


def test_calibration_on_a_gpu_is_compared_value_by_value() -> None:
    """A profile of the CPU's stands for the GPU's."""
    wanted = {
        "measures": ["layer_contribution", "exit_kl"],
        "samples": [{"sample": "a", "layer_contribution": [0.5, 0.0], "exit_kl": [2.0, 1.0]}],
    }
    found = json.loads(json.dumps(wanted))
    said = "differ by layer_contribution 0.0e+00, exit_kl {} of the largest value; allowed 0.0001"
    assert agreement_of(wanted, found) == (said.format("0.0e+00"), True)
    for value, words, agree in ((1.0001, "5.0e-05", True), (1.001, "5.0e-04", False)):
        found["samples"][0]["exit_kl"][1] = value
        assert agreement_of(wanted, found) == (said.format(words), agree)
    found["samples"][0]["exit_kl"][1] = float("nan")
    assert not agreement_of(wanted, found)[1]
    found["samples"][0]["sample"] = "b"
    assert agreement_of(wanted, found) == ("the profiles are of other samples", False)


def test_the_commands_of_the_calibration_step_run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU's command is sent to the CPU: what is left to a GPU is its numbers."""
    asked: list[str] = []

    def here(*arguments: str) -> str:
        asked.extend(a for a in arguments if a.startswith("--device"))
        few = [a.replace("--samples=16", "--samples=2") for a in arguments]
        return vtcompress(*(a.replace("--device=cuda", "--device=cpu") for a in few))

    monkeypatch.setattr("tests.gpu.ladder.vtcompress", here)
    said = calibration(Run(Namespace(device="cuda"), tmp_path))
    assert asked == ["--device=cpu", "--device=cuda"]
    assert "layer_contribution 0.0e+00" in said
    assert "exit_kl 0.0e+00" in said


def test_answers_on_a_gpu_are_compared_question_by_question() -> None:
    wanted = {"points": [{"label": "a", "hits": "1" * 16}, {"label": "b", "hits": "-" * 16}]}
    found = json.loads(json.dumps(wanted))
    assert answers_agree(wanted, found) == ("a 16/16, b 16/16 alike; wanted 15", True)
    for hits, agree in (("0" + "1" * 15, True), ("00" + "1" * 14, False), ("1" * 15, False)):
        found["points"][0]["hits"] = hits
        assert answers_agree(wanted, found)[1] is agree
    found["points"].pop()
    assert answers_agree(wanted, found) == ("the sweeps have other points", False)


def test_the_commands_of_the_answers_step_run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def here(*arguments: str) -> str:
        asked.extend(a for a in arguments if a.startswith("--device"))
        few = [a.replace("-samples=16", "-samples=2") for a in arguments]
        return vtcompress(*(a.replace("--device=cuda", "--device=cpu") for a in few))

    monkeypatch.setattr("tests.gpu.ladder.vtcompress", here)
    monkeypatch.setattr("tests.gpu.answers.LEAST_ALIKE", 2)
    said = answers(Run(Namespace(device="cuda"), tmp_path))
    assert asked == ["--device=cpu", "--device=cuda"]
    assert said.endswith("2/2 alike; wanted 2")


def test_the_7b_plans_are_those_that_the_papers_publish() -> None:
    of = scale("7b")
    assert of.facts.decoder.hidden == 4096
    assert [images * of.facts.visual_tokens for images in of.images] == [576, 2880]
    made = plans(of, 1)
    assert len(set(made["shortv"].frozen_layers()) & set(of.frozen)) == len(of.frozen) == 19
    assert made["vtw"].exit_layer == 16
    yopo = made["yopo"]
    assert yopo.exit_layer == 20
    assert yopo.layers[5].window == 5
    assert len(yopo.layers[5].neurons or ()) == 11008 // 2
    assert len(yopo.layers[5].groups or ()) == 16
    assert made["original"].frozen_layers() == ()


def test_decoders_of_all_plans_lie_on_one_set_of_weights() -> None:
    of = scale("tiny")
    tensors = decoders.weights(of.facts, torch.device("cpu"), torch.float32)
    owned = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    for plan in plans(of, 1).values():
        decoder = decoders.decoder_from(plan, tensors, scores=layer_scores(plan))
        assert {p.untyped_storage().data_ptr() for p in decoder.parameters()} <= owned


def test_rounds_begin_with_each_call_in_turn_and_end_when_time_is_up() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    taken = in_turns(calls, torch.device("cpu"), rounds=20, seconds=0)
    assert [len(spent) for spent in taken.values()] == [3, 3, 3]
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b", "a", "b", "c"]


def test_ratios_are_of_the_first_call_round_by_round() -> None:
    found = ratios({"original": [4.0, 8.0, 6.0], "half": [2.0, 4.0, 2.0]})
    assert found["original"] == Ratio(6.0, 1.0, 1.0, 1.0)
    assert found["half"] == Ratio(2.0, 2.0, 2.0, 2.5)


def test_graphs_are_written_of_single_numbers_and_filled_with_random_ones(tmp_path: Path) -> None:
    folder = tmp_path / "graphs"
    write(scale("tiny"), folder, "float32")
    before = np.fromfile(folder / WEIGHTS_FILE, np.float32)
    # Of the matrices of all layers and plans, one of each size.
    assert before.size < 50_000
    fill(folder)
    after = np.fromfile(folder / WEIGHTS_FILE, np.float32)
    assert len(np.unique(after)) > 10 * len(np.unique(before))
    assert after.shape == before.shape
