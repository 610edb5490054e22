"""The command line: every command, exit codes, JSON, one line an error, nothing half-written."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from compressor.version import __version__
from tests.artifacts import make_artifact
from tests.conftest import Run
from vtcompress.cli.kinds import Finite
from vtcompress.cli.main import cli, run_command


@pytest.fixture(scope="module")
def artifact(
    llava: Callable[[str], Path], questions: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    output = tmp_path_factory.mktemp("cli") / "artifact"
    arguments = [
        "-q",
        "export",
        "--recipe",
        "shortv",
        "--model",
        llava("clip+llama"),
        "--data",
        questions,
    ]
    arguments += ["--validate-data", questions, "--bench-rounds", "2", "--output", output]
    # Nobody trained this model: freezing its layers changes its answers.
    for limit in ("min_exact_match_kept=null", "max_kl=100"):
        arguments += ["--set", f"validate.loss.{limit}"]
    arguments += ["--set", "validate.keep_pictures=all"]
    assert run_command([str(a) for a in arguments]) == 0
    return output


def test_version_is_printed(vt: Run) -> None:
    assert vt("--version") == (0, f"vtcompress, version {__version__}\n", "")


def test_help_names_every_command(vt: Run) -> None:
    code, out, _ = vt("--help")
    assert code == 0
    for name in (
        "calibrate", "plan", "compress", "export", "validate", "bench", "generate", "inspect", "recipes",
        "report", "compare", "search", "sweep", "train-gates", "train-parts", "heal",
    ):  # fmt: skip
        assert name in out
        assert vt(name, "--help")[0] == 0


def test_wrong_usage_is_exit_code_2(vt: Run) -> None:
    code, _, err = vt("export", "--output", "x")
    assert code == 2
    assert "--recipe" in err
    assert vt("no-such-command")[0] == 2
    assert vt("plan", "--recipe", "identity", "--set", "novalue")[0] == 2


def test_recipes_are_listed_and_explained(vt: Run) -> None:
    code, out, _ = vt("recipes")
    assert code == 0
    assert "shortv-llava-1.5-7b" in out
    code, out, _ = vt("recipes", "shortv")
    assert code == 0
    assert "compress:" in out
    assert out.startswith("#")
    code, out, _ = vt("--json", "recipes")
    assert {"identity", "shortv"} <= {row["name"] for row in json.loads(out)}


def test_an_unknown_recipe_is_one_line_and_exit_code_1(vt: Run) -> None:
    code, out, err = vt("plan", "--recipe", "shrotv", "--model", "x")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "did you mean 'shortv'" in err


def test_a_missing_model_names_the_flag(vt: Run) -> None:
    code, _, err = vt("plan", "--recipe", "identity")
    assert code == 1
    assert err == "error: model.id: the recipe names no model; give --model\n"


def test_a_folder_that_is_no_model_is_named(vt: Run, tmp_path: Path) -> None:
    code, _, err = vt("plan", "--recipe", "identity", "--model", tmp_path)
    assert code == 1
    assert err == (
        f"error: {tmp_path / 'config.json'}: no such file; {tmp_path} is no Hugging Face model folder\n"
    )


def test_missing_calibration_data_names_the_flag_before_the_model_is_loaded(
    vt: Run, llava: Callable[[str], Path], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    code, _, err = vt(
        "export", "--recipe", "shortv", "--model", llava("clip+llama"), "--output", output
    )
    assert code == 1
    assert "calibrate.data" in err
    assert err.endswith("; give --data\n")
    assert not output.exists()


def test_the_stages_one_after_the_other(
    vt: Run, llava: Callable[[str], Path], questions: Path, tmp_path: Path
) -> None:
    common = ("--recipe", "shortv", "--model", llava("clip+llama"), "--data", questions)
    profile, plan, small = tmp_path / "profile.json", tmp_path / "plan.json", tmp_path / "small"
    code, out, _ = vt("calibrate", *common, "--samples", 3, "--output", profile)
    assert code == 0
    assert "3 samples" in out
    code, out, _ = vt("--json", "plan", *common, "--profile", profile, "--output", plan)
    assert code == 0
    document = json.loads(out)
    assert len(document["plan"]["layers"]) == 4
    assert document["predicted"]["speedup"] > 1
    code, out, _ = vt("plan", *common, "--profile", profile, "--output", plan)
    assert "frozen (shortv)" in out
    code, _, _ = vt("compress", *common, "--plan", plan, "--profile", profile, "--output", small)
    assert code == 0
    code, out, _ = vt("inspect", small)
    assert "compressed model" in out
    code, _, err = vt("compress", *common, "--plan", plan, "--output", small)
    assert code == 1
    assert "add --overwrite" in err
    code, _, _ = vt(
        "-q", "export", "--recipe", "shortv", "--compressed", small, "--bench-rounds", 0,
        "--output", tmp_path / "out",
    )  # fmt: skip
    assert code == 0


def test_planning_by_contribution_without_a_profile_says_what_to_run(
    vt: Run, llava: Callable[[str], Path], tmp_path: Path
) -> None:
    code, _, err = vt(
        "plan",
        "--recipe",
        "shortv",
        "--model",
        llava("clip+llama"),
        "--output",
        tmp_path / "p.json",
    )
    assert code == 1
    assert "vtcompress calibrate" in err
    assert not (tmp_path / "p.json").exists()


def test_any_key_of_the_recipe_can_be_set(
    vt: Run, llava: Callable[[str], Path], tmp_path: Path
) -> None:
    common = ("plan", "--recipe", "shortv", "--model", llava("clip+llama"))
    methods = "compress=[{shortv: {layers: [0, 9, 11]}}]"
    code, _, err = vt(*common, "--set", methods, "--output", tmp_path / "p.json")
    assert code == 1
    assert err == (
        "error: compress[0].shortv.layers: 9, 11 are outside 0..3; the model has 4 layers: give layers of "
        "this model, or a share (frozen), which calibration chooses by\n"
    )
    code, _, err = vt(*common, "--set", "exprot.dtype=float16", "--output", tmp_path / "p.json")
    assert code == 1
    assert "did you mean 'export'" in err


def test_generate_answers_in_text_and_json(vt: Run, artifact: Path, questions: Path) -> None:
    picture = questions.parent / "0.png"
    arguments = (
        "generate",
        artifact,
        "--image",
        picture,
        "--prompt",
        "what is it",
        "--max-new-tokens",
        5,
    )
    code, out, _ = vt(*arguments)
    assert code == 0
    code, document, _ = vt("--json", *arguments)
    assert json.loads(document)["text"] == out.rstrip("\n")
    code, _, err = vt("generate", artifact, "--image", "nowhere.png", "--prompt", "what")
    assert code == 1
    assert "nowhere.png" in err


def test_bench_and_inspect_an_artifact(vt: Run, artifact: Path) -> None:
    code, out, _ = vt("--json", "bench", artifact, "--rounds", 2)
    assert code == 0
    assert json.loads(out)["prefill"]["ratio"] > 0
    code, out, _ = vt("bench", artifact, "--rounds", 2, "--text", 4)
    assert code == 0
    assert "first token with vision" in out
    code, out, _ = vt("inspect", artifact)
    assert code == 0
    assert "predicted.speedup" in out


def test_validate_prints_both_checks(vt: Run, artifact: Path) -> None:
    code, out, _ = vt("validate", artifact)
    assert code == 0
    assert "Export fidelity" in out
    assert "Compression loss: passed" in out


def test_a_missed_threshold_is_exit_code_3_with_the_failing_lines(
    vt: Run, tmp_path: Path, llava: Callable[[str], Path], questions: Path
) -> None:
    code, _, err = vt(
        "-q", "export", "--recipe", "shortv", "--model", llava("clip+llama"), "--data", questions,
        "--validate-data", questions, "--bench-rounds", 0, "--output", tmp_path / "out",
        "--set", "validate.loss.max_kl=0",
        "--set", "validate.keep_pictures=all",
    )  # fmt: skip
    assert code == 3
    assert "missed: mean KL" in err
    # The shipped recipe has a limit of its own.
    assert (
        "wanted min_exact_match_kept 0.95 (in place of right answers kept: the original gives"
        in err
    )
    assert "WARNING: only " in err
    code, _, err = vt("-q", "validate", tmp_path / "out")
    assert code == 3
    assert "allowed max_kl 0" in err


def test_an_altered_artifact_is_refused(vt: Run, artifact: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    with (copy / "weights.bin").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"\x13\x37")
    code, _, err = vt("generate", copy, "--prompt", "what")
    assert code == 1
    assert "sha256" in err
    code, _, err = vt("generate", copy, "--prompt", "what", "--no-verify", "--max-new-tokens", 1)
    assert code == 0
    assert "not verified" in err


def test_completion_scripts_are_printed(vt: Run) -> None:
    for shell in ("bash", "zsh", "fish"):
        code, out, _ = vt("completion", shell)
        assert code == 0
        assert "_VTCOMPRESS_COMPLETE" in out


def test_a_missing_extra_says_which_to_install(
    vt: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    code, _, err = vt("plan", "--recipe", "identity", "--model", tmp_path)
    assert code == 1
    assert "pip install '.[compress]'" in err


def test_an_interrupt_inside_exec_of_a_string_is_exit_code_130_too(tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text(
        "from vtcompress.cli import main as cli\n"
        "cli.cli.main = lambda *_, **__: exec('raise KeyboardInterrupt')\n"
        "cli.main()\n"
    )
    command = [sys.executable, "-m", "interrupted"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (result.returncode, result.stderr) == (130, "interrupted\n")


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")],
)
def test_an_export_that_a_signal_ends_leaves_nothing(
    number: signal.Signals,
    code: int,
    line: str,
    llava: Callable[[str], Path],
    questions: Path,
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "vtcompress", "export", "--recipe", "shortv"]
    command += [
        "--model",
        str(llava("clip+llama")),
        "--data",
        str(questions),
        "--output",
        str(output),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    deadline = time.monotonic() + 300
    while not any(tmp_path.glob(".out.vtcompress-staging-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err.splitlines()[-1]) == (code, line)
    assert "Traceback" not in err
    left = [p.name for p in tmp_path.iterdir() if "calibration.json" not in p.name]
    assert left == []


@pytest.mark.parametrize("given", [["--precision", "bf16"], ["--gpu", "1"]])
def test_validate_refuses_what_says_how_a_backend_runs_where_none_is_named(
    vt: Run, tmp_path: Path, given: list[str]
) -> None:
    code, out, err = vt("validate", make_artifact(tmp_path / "a"), *given)
    assert (code, out) == (2, "")
    assert "--precision and --gpu say how a backend runs; they go with --backend" in err


def test_validate_refuses_trust_in_the_code_of_no_model(vt: Run, tmp_path: Path) -> None:
    code, out, err = vt("validate", make_artifact(tmp_path / "a"), "--trust-remote-code")
    assert (code, out) == (2, "")
    assert "--trust-remote-code is for the repository of --model; give it as well" in err


def test_generate_says_which_options_do_nothing_without_a_temperature(
    vt: Run, tmp_path: Path
) -> None:
    asked = ["generate", make_artifact(tmp_path / "a"), "--prompt", "x", "--top-p", "0.5"]
    *_, err = vt(*asked, "--seed", "4")
    assert "note: --top-p 0.5: has no effect without --temperature\n" in err
    assert "note: --seed 4: has no effect without --temperature\n" in err
    *_, err = vt(*asked, "--temperature", "1")
    assert "has no effect" not in err


def test_a_prompt_that_the_model_cannot_take_is_not_timed(vt: Run, tmp_path: Path) -> None:
    code, out, err = vt("bench", make_artifact(tmp_path / "a"), "--images", "100000")
    assert (code, out) == (1, "")
    assert "new tokens do not fit: shorten it, or give fewer pictures" in err


@pytest.mark.parametrize("command", ["generate", "report", "bench", "validate"])
def test_a_folder_that_is_not_there_is_called_so(vt: Run, tmp_path: Path, command: str) -> None:
    more = ["--prompt", "x"] if command == "generate" else []
    code, _, err = vt(command, tmp_path / "none", *more)
    assert code == 1
    assert err.endswith(f"error: {tmp_path / 'none'}: no artifact; there is no such folder\n")


def test_no_option_takes_what_is_no_finite_number(capsys: pytest.CaptureFixture[str]) -> None:
    """NaN is neither below nor above the ends of click's ranges."""
    numbers = {
        (name, param.opts[-1])
        for name, command in cli.commands.items()
        for param in command.params
        if isinstance(param.type, click.types.FloatParamType)
    }
    finite = {
        (name, param.opts[-1])
        for name, command in cli.commands.items()
        for param in command.params
        if isinstance(param.type, Finite)
    }
    assert numbers == finite
    assert ("train-parts", "--learning-rate") in finite
    for name, option in sorted(finite):
        for value in ("nan", "inf"):
            assert run_command([name, f"{option}={value}"]) == 2
            assert "finite" in capsys.readouterr().err or value == "inf"
