"""`vtcompress generate`: one answer or a chat, figures, JSON; and the memory of a running artifact."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vtcompress
from compressor.errors import VtcompressError
from export.checks import memory
from export.report.data import ReportData
from export.report.pages.report import markdown_report
from export.runtime.runtime import Runtime
from tests.models import make_picture
from vtcompress.cli.main import run_command

ROOT = Path(__file__).resolve().parent.parent
Chat = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def artifact(plain_artifact: Path) -> Path:
    return plain_artifact


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    return [make_picture(folder / f"{i} of 2.png", seed=300 + i) for i in range(2)]


@pytest.fixture
def vt(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Chat:
    """Return a function that runs the command line on lines or bytes of stdin: exit code, stdout, stderr."""

    def call(
        *arguments: object, lines: tuple[str, ...] = (), content: bytes = b""
    ) -> tuple[int, str, str]:
        given = content or "".join(f"{line}\n" for line in lines).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
        code = run_command([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def spoken(artifact: Path, turns: list[tuple[str, list[Path]]], tokens: int) -> list[str]:
    """What a conversation in Python answers."""
    conversation = Runtime.load(artifact).chat()
    return ["".join(conversation.ask(q, images, max_new_tokens=tokens)) for q, images in turns]


def test_a_chat_on_piped_stdin_writes_answers_to_stdout_and_all_else_to_stderr(
    vt: Chat, artifact: Path, pictures: list[Path]
) -> None:
    wanted = spoken(artifact, [("what is", pictures[:1]), ("b c", []), ("it", pictures[1:])], 5)
    lines = ("what is", "", "b c", f"/image {pictures[1]}", "it", "/quit", "never asked")
    chat = ("generate", artifact, "--chat", "--max-new-tokens", 5, "--image", pictures[0])
    code, out, err = vt(*chat, lines=lines)
    assert code == 0
    assert out.splitlines() == wanted
    assert "/quit ends" in err
    assert err.count("> ") == 6
    code, out, err = vt("-q", *chat, lines=lines[:1])  # the end of stdin ends it too
    assert (code, out, err) == (0, wanted[0] + "\n", "")


def test_a_chat_may_begin_with_the_prompt_of_the_command_line(
    vt: Chat, artifact: Path, pictures: list[Path]
) -> None:
    wanted = spoken(artifact, [("what is", pictures), ("b c", [])], 4)
    images = ("--image", pictures[0], "--image", pictures[1])
    chat = ("--json", "generate", artifact, "--chat", "--prompt", "what is", "--max-new-tokens", 4)
    code, out, _ = vt(*chat, *images, lines=("b c",))
    assert code == 0
    document = json.loads(out)
    assert [turn["text"] for turn in document["turns"]] == wanted
    assert document["turns"][0]["images"] == [str(path) for path in pictures]
    assert document["turns"][1] == {"prompt": "b c", "images": [], "text": wanted[1]}


def test_a_turn_that_fails_is_told_and_the_chat_goes_on_without_it(
    vt: Chat, artifact: Path
) -> None:
    wanted = spoken(artifact, [("what is", []), ("b c", [])], 4)
    lines = ("what is", "/image nowhere.png", "it", "/imge x", "b c")
    code, out, err = vt("generate", artifact, "--chat", "--max-new-tokens", 4, lines=lines)
    assert code == 1
    assert out.splitlines() == wanted
    assert "error: nowhere.png: no such file" in err
    assert "error: /imge x: no such command" in err


def test_figures_of_an_answer_go_to_stderr_or_into_the_document(
    vt: Chat, artifact: Path, pictures: list[Path]
) -> None:
    asked = ("generate", artifact, "--image", pictures[0], "--prompt", "what is")
    asked += ("--max-new-tokens", 5, "--stats")
    code, out, err = vt(*asked)
    assert code == 0
    plain = vt(*asked[:-1])[1]
    assert out == plain
    for word in ("first token", "tokens/s", "KV cache", "resident memory"):
        assert word in err
    code, out, err = vt("-q", "--json", *asked)
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["text"] == plain.rstrip("\n")
    stats = document["stats"]
    assert stats["tokens"] == 5
    assert stats["kv_bytes"] == (stats["prompt_rows"] + 4) * 4 * 2 * 2 * 16 * 4
    assert stats["first_token_s"] > 0
    assert stats["exit_layer"] is None
    assert 1e6 < document["memory"]["loaded_bytes"] <= 2 * document["memory"]["end_bytes"]


def test_figures_of_a_chat_tell_how_many_rows_were_kept(vt: Chat, artifact: Path) -> None:
    chat = ("--json", "generate", artifact, "--chat", "--stats", "--max-new-tokens", 1)
    document = json.loads(vt(*chat, lines=("what is", "b"))[1])
    first, second = (turn["stats"] for turn in document["turns"])
    assert first["reused_rows"] == 0
    assert second["reused_rows"] == first["prompt_rows"]
    assert document["memory"]["end_bytes"]


def test_figures_tell_where_visual_tokens_left(
    vt: Chat, plain_exit: Path, pictures: list[Path]
) -> None:
    chat = ("generate", plain_exit, "--chat", "--stats", "--max-new-tokens", 2)
    lines = ("what is", f"/image {pictures[0]}", "it", "b c")
    document = json.loads(vt("--json", *chat, lines=lines)[1])
    assert [turn["stats"]["exit_layer"] for turn in document["turns"]] == [None, 2, 2]
    told = vt(*chat, lines=lines)[2].splitlines()
    assert sum("; visual tokens left at layer 2" in line for line in told) == 2


def test_sampling_options_reach_the_runtime(vt: Chat, artifact: Path, pictures: list[Path]) -> None:
    asked = ("generate", artifact, "--image", pictures[0], "--prompt", "what is")
    options = ("--temperature", 5, "--top-p", 0.9, "--seed", 3, "--max-new-tokens", 8)
    wanted = Runtime.load(artifact).generate(
        "what is", pictures[:1], max_new_tokens=8, temperature=5.0, top_p=0.9, seed=3
    )
    assert vt(*asked, *options)[1] == "".join(wanted) + "\n"
    assert vt(*asked, "--top-p", 0)[0] == 2
    assert vt(*asked, "--temperature", -1)[0] == 2


def test_a_question_is_needed_unless_it_is_a_chat(vt: Chat, artifact: Path) -> None:
    code, _, err = vt("generate", artifact)
    assert code == 2
    assert "--prompt" in err
    assert "--chat" in err


@pytest.mark.parametrize("chat", [(), ("--chat",)])
def test_an_image_token_in_the_prompt_is_told_of_the_option(
    vt: Chat, artifact: Path, chat: tuple[str, ...]
) -> None:
    code, out, err = vt("generate", artifact, *chat, "--prompt", "what <image>", lines=("it",))
    assert (code, out) == (1, "")
    assert "error: --prompt: contains '<image>' 1 times" in err


def test_a_precision_that_the_backend_has_not_is_one_line(vt: Chat, artifact: Path) -> None:
    code, out, err = vt("generate", artifact, "--prompt", "a", "--precision", "bf16")
    assert (code, out) == (1, "")
    assert err == "error: onnxruntime: has no bf16; use the backend openvino\n"


def test_a_chat_answers_while_stdin_is_still_open(artifact: Path) -> None:
    """A program that talks through pipes gets each answer before it writes the next question."""
    command = [sys.executable, "-m", "vtcompress", "-q", "generate", str(artifact), "--chat"]
    command += ["--max-new-tokens", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("what is\n")
        process.stdin.flush()
        assert process.stdout.readline().strip()  # stdin is still open: the chat waits
        assert process.poll() is None
        process.stdin.write("/quit\n")
        process.stdin.close()
        assert process.wait(timeout=60) == 0


def test_the_export_measures_the_memory_of_a_process_that_runs_the_artifact(
    llava: Callable[[str], Path], tmp_path: Path
) -> None:
    recipe = vtcompress.load_recipe("identity").override({"model.id": str(llava("clip+llama"))})
    manifest = vtcompress.export(recipe, tmp_path / "out", bench_rounds=1)
    found = manifest.memory
    assert found is not None
    assert found.tokens == 64
    assert 1e6 < found.empty_bytes < found.loaded_bytes
    # Of its own process: the exporting one has torch in memory.
    assert found.answered_bytes < manifest.peak_memory_bytes
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "after one picture and 64 tokens" in report


def test_a_manifest_from_before_memory_was_measured_still_loads(artifact: Path) -> None:
    text = (artifact / "manifest.json").read_text(encoding="utf-8")
    document = json.loads(text)
    del document["memory"]
    manifest = vtcompress.Manifest.model_validate_json(json.dumps(document))
    assert manifest.memory is None
    plan = vtcompress.Plan.load(artifact / "plan.json")
    assert "\n\nMemory: not measured.\n" in markdown_report(ReportData(manifest, plan))


def test_a_measuring_process_that_fails_is_told_in_one_line(artifact: Path, tmp_path: Path) -> None:
    manifest = vtcompress.Artifact.open(artifact).manifest
    with pytest.raises(VtcompressError, match="measuring memory failed"):
        memory.measure_memory(tmp_path, manifest.graphs, manifest.model)


def test_memory_is_that_of_the_process() -> None:
    import psutil

    found = memory.resident_bytes()
    assert found is not None
    assert abs(found - psutil.Process().memory_info().rss) < 64 << 20


def test_a_folder_an_address_and_a_broken_picture_end_in_one_line_alike(
    vt: Chat, artifact: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"x")
    for given, words in (
        (tmp_path, f"{tmp_path}: is a folder; name a picture in it"),
        ("https://x.org/y.png", "'https://x.org/y.png' is an address: download the picture"),
        (tmp_path / "broken.png", f"{tmp_path / 'broken.png'}: is no image of a format"),
    ):
        code, out, err = vt("-q", "generate", artifact, "--prompt", "it", "--image", given)
        assert (code, out) == (1, "")
        (line,) = [line for line in err.splitlines() if "rror" in line]
        assert line.startswith(f"error: {words}")


def test_a_picture_comes_from_stdin(vt: Chat, artifact: Path, pictures: list[Path]) -> None:
    asked = ("generate", artifact, "--prompt", "what is", "--max-new-tokens", 3)
    _, expected, _ = vt(*asked, "--image", pictures[0])

    def with_stdin(content: bytes, *more: object) -> tuple[int, str, str]:
        return vt(*asked, "--image", "-", *more, content=content)

    assert with_stdin(pictures[0].read_bytes())[:2] == (0, expected)
    assert "--image -: stdin gave nothing" in with_stdin(b"")[2]
    assert "error: --image -: is no image of a format that is read" in with_stdin(b"hello")[2]
    empty = "--image", "data:image/png;base64,aGVsbG8="
    assert f"error: --image '{empty[1]}': is no image of a format" in vt(*asked, *empty)[2]
    assert f"error: --image '{empty[1]}': is no" in with_stdin(pictures[0].read_bytes(), *empty)[2]
    lines = f"/image {empty[1]}", "what is", "/image x", "/quit"
    _, _, said = vt("generate", artifact, "--chat", lines=lines)
    assert f"error: /image '{empty[1]}': is no image of a format" in said
    assert "--image -: stdin holds one picture" in with_stdin(b"x", "--image", "-")[2]
    assert "--image -: with --chat stdin has the turns" in with_stdin(b"x", "--chat")[2]
