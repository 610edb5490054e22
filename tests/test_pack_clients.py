"""Stock clients on packed folders: their answers are the runtime's; what they cannot do is refused before."""

import inspect
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vtcompress
from compressor.errors import PackError
from compressor.samples.pictures import load_image
from export.artifact.artifact import MANIFEST_FILE, Artifact, list_files
from export.clients.check import runtime_answers
from export.clients.client import Answered, CheckQuestion, Client
from export.clients.onnxruntime_genai import generated
from export.clients.pack import refusals
from export.clients.pack_file import PackFile
from export.clients.packing import Packing
from export.clients.preparing import PromptMaker
from export.clients.registry import CLIENTS
from export.graphs.spec import PAST_VISUAL, TensorSpec
from export.runtime.runtime import Runtime
from tests.models import TEMPLATE, make_picture

ONNX, IR = "onnxruntime-genai", "openvino.genai"
PACKAGES = {ONNX: "onnxruntime_genai", IR: "openvino_genai"}
CUTS = ("identity", "exit", "heads, mlp and frozen", "keep k", "int4")
WORDS = ("what is this", "what is it", "is it red", "is this blue yes")
NEW_TOKENS = 12
ROOT = Path(vtcompress.__file__).parents[1]

pytestmark = pytest.mark.filterwarnings("ignore::compressor.errors.ArtifactWarning")


@pytest.fixture(scope="module")
def packed(
    packable: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[Packing, Path]]:
    """Return a function from a client and a cut to what was packed and where, the self-check passed."""

    @cache
    def get(client: str, cut: str) -> tuple[Packing, Path]:
        pytest.importorskip(PACKAGES[client], reason="the extra clients is not installed")
        folder = tmp_path_factory.mktemp("packed") / "folder"
        facts = vtcompress.pack(packable(cut), client, folder)
        assert not facts.check.not_run
        assert facts.check.differs == ()
        assert len(facts.check.answers) == 5
        return Packing(Artifact.open(packable(cut))), folder

    return get


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    sizes = ((40, 33), (32, 32), (35, 61))
    return [make_picture(folder / f"{i}.png", i, size) for i, size in enumerate(sizes)]


def asked(pictures: Sequence[Path]) -> list[CheckQuestion]:
    return [
        CheckQuestion(text, tuple(pictures[i % 3 :][:1]), NEW_TOKENS)
        for i, text in enumerate(WORDS)
    ]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("client", [ONNX, IR])
def test_answers_and_token_ids_are_the_runtimes(packed, pictures, client, cut):
    packing, folder = packed(client, cut)
    found = assert_same(CLIENTS[client], packing, folder, asked(pictures))
    assert len(set(found)) > 1


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("client", [ONNX, IR])
def test_a_packed_folder_is_no_larger_than_the_artifact_but_for_its_graphs(packed, client, cut):
    packing, folder = packed(client, cut)
    weights = packing.manifest.files["weights.bin"].size
    kinds = (".bin", ".onnx_data")
    found = sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in kinds)
    small = 32768  # constants that the artifact's graphs hold themselves
    assert found <= weights + small
    assert {path.suffix for path in folder.rglob("*.onnx")} <= {".onnx"}
    assert sum(path.stat().st_size for path in folder.rglob("*.onnx")) < 1 << 20


@pytest.mark.parametrize("cut", ["exit", "keep k"])
def test_several_pictures_and_none(packed, pictures, cut):
    """In openvino.genai they need a token between them, as the byte-level tokenizer below has."""
    packing, folder = packed(ONNX, cut)
    questions = several(pictures)
    assert_same(CLIENTS[ONNX], packing, folder, questions)


def several(pictures: Sequence[Path]) -> list[CheckQuestion]:
    return [
        CheckQuestion("what is this", tuple(pictures[:2]), NEW_TOKENS),
        CheckQuestion("what is it", tuple(pictures), NEW_TOKENS),
        CheckQuestion("is it red", (), NEW_TOKENS),
    ]


def assert_same(client: Client, packing: Packing, folder: Path, questions: Any) -> list[str]:
    """Return the answers, which are the runtime's, as are token ids and pixels."""
    wanted = runtime_answers(packing.artifact, questions)
    found = client.check(packing, folder, questions)
    assert isinstance(found, list)
    assert [one.token_ids for one in found] == [one.token_ids for one in wanted]
    assert [one.text.strip() for one in found] == [one.text.strip() for one in wanted]
    assert not any(one.pixels_off for one in found)
    return [one.text.strip() for one in found]


TURNS = ("what is this", "is it red")


def turns_of(artifact: Path, picture: Path) -> list[str]:
    chat = Runtime.load(artifact).chat()
    options: dict[str, Any] = {"max_new_tokens": 5, "generation_config": False}
    first = "".join(chat.ask(TURNS[0], picture, **options))
    return [first.strip(), "".join(chat.ask(TURNS[1], **options)).strip()]


@pytest.mark.parametrize("cut", ["exit", "keep k", "heads, mlp and frozen"])
def test_two_turns_in_openvino(packed, pictures, cut):
    packing, folder = packed(IR, cut)
    import openvino
    import openvino_genai

    pipeline = openvino_genai.VLMPipeline(str(folder), "CPU", INFERENCE_PRECISION_HINT="f32")
    picture = openvino.Tensor(np.asarray(load_image(pictures[1])))
    history, found = openvino_genai.ChatHistory(), []
    for text, images in zip(TURNS, ([picture], []), strict=True):
        history.append({"role": "user", "content": text})
        told = pipeline.generate(history, images=images, max_new_tokens=5, do_sample=False)
        found.append(told.texts[0].strip())
        history.append({"role": "assistant", "content": told.texts[0]})
    assert found == turns_of(packing.artifact.folder, pictures[1])


@pytest.mark.parametrize("client", [ONNX, IR])
def test_the_code_of_the_readme_gives_the_runtimes_answer(
    packed, pictures, tmp_path, monkeypatch, capsys, client
):
    packing, folder = packed(client, "exit")
    shutil.copytree(folder, tmp_path / "packed")
    Image.open(pictures[2]).convert("RGB").save(tmp_path / "packed" / "photo.jpg", quality=95)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path / "packed")
    capsys.readouterr()
    exec(code, {"__name__": "readme"})
    runtime = Runtime.load(packing.artifact.folder)
    photo = tmp_path / "packed" / "photo.jpg"
    wanted = runtime.answer("What is this?", photo, max_new_tokens=64, generation_config=False)
    assert capsys.readouterr().out.strip() == wanted.text.strip()


@pytest.mark.parametrize("cut", ["exit", "keep k", "heads, mlp and frozen"])
def test_two_turns_in_onnxruntime_genai(packed, pictures, cut):
    """The whole conversation each time: the client (0.18.0) appends no tokens behind a picture's answer."""
    packing, folder = packed(ONNX, cut)
    import onnxruntime_genai as genai

    maker, model = PromptMaker.load(folder), genai.Model(str(folder))
    wanted = turns_of(packing.artifact.folder, pictures[0])
    blocks: list[dict[str, str]] = [{"type": "image"}, {"type": "text", "text": TURNS[0]}]
    turns: list[dict[str, Any]] = [{"role": "user", "content": blocks}]
    for text, right in zip((*TURNS[1:], ""), wanted, strict=True):
        prompt = maker.conversation(turns, [pictures[0]])
        found = maker.decode(generated(genai, model, prompt, 5)).strip()
        assert found == right
        for role, content in (("assistant", found), ("user", text)):
            turns.append({"role": role, "content": [{"type": "text", "text": content}]})


BYTES = "abcdefghijklmnopqrstuvwxyz:ĠĊ"


def with_byte_level(artifact: Path, folder: Path) -> Path:
    """Copy an artifact, its tokenizer exchanged for a byte-level BPE."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    shutil.copytree(artifact, folder)
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    merges = [
        ("i", "s"),
        ("Ġ", "is"),
        ("t", "h"),
        ("Ġ", "th"),
        ("Ġth", "is"),
        ("w", "h"),
        ("e", "r"),
    ]
    merged = dict.fromkeys([*special, *BYTES, *("".join(pair) for pair in merges)])
    bpe = models.BPE({token: i for i, token in enumerate(merged)}, merges)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    template = TEMPLATE.replace("<image> ", "<image>\n").replace("{{ bos_token }} ", "")
    template = template.replace("'USER:'", "'user:'").replace("ASSISTANT:", "assistant:")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    manifest = Artifact.open(artifact).manifest
    manifest = manifest.model_copy(update={"files": list_files(folder)})
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(), encoding="utf-8")
    return folder


@pytest.mark.parametrize("client", [ONNX, IR])
def test_a_byte_level_tokenizer_whose_beginning_token_the_template_does_not_write(
    packable, pictures, tmp_path, client
):
    pytest.importorskip(PACKAGES[client], reason="the extra clients is not installed")
    artifact = with_byte_level(packable("exit"), tmp_path / "artifact")
    vtcompress.pack(artifact, client, tmp_path / "packed", check=False)
    packing = Packing(Artifact.open(artifact))
    (told,) = runtime_answers(packing.artifact, asked(pictures)[:1])
    assert told.token_ids[0] == 1
    assert 3 not in told.token_ids
    questions = [*asked(pictures)[:2], *several(pictures)]
    assert_same(CLIENTS[client], packing, tmp_path / "packed", questions)


def changed(artifact: Artifact, **updates: Any) -> Artifact:
    """Return an artifact whose manifest says otherwise; its decoder's declaration is among `updates`."""
    decoder = {key: updates.pop(key) for key in ("moves_text", "inputs") if key in updates}
    graphs = tuple(
        spec.model_copy(update=decoder) if spec.name == "decoder" else spec
        for spec in artifact.manifest.graphs
    )
    fields = {"graphs": graphs, **updates}
    return replace(artifact, manifest=artifact.manifest.model_copy(update=fields))


def test_what_a_client_cannot_do_is_refused_with_its_reason(packable):
    artifact = Artifact.open(packable("identity"))
    graphs, facts = artifact.manifest.graphs, artifact.manifest.model
    decoder = next(spec for spec in graphs if spec.name == "decoder")
    others = [spec for spec in graphs if spec.name != "decoder"]
    stages = [decoder.model_copy(update={"name": f"decoder_stage_{i}"}) for i in (0, 1)]
    fixed = [
        spec.model_copy(update={"filled": "past", "rows": 9}) if spec in decoder.cached else spec
        for spec in decoder.inputs
    ]
    told = TensorSpec(name=PAST_VISUAL, dtype="bool", axes=("batch", "past"))
    turned = facts.decoder.model_copy(update={"rope_axes": (0,) * len(facts.decoder.rope_inv_freq)})
    cases = [
        ({"graphs": (*others, *stages)}, "has 2, between which a gate decides"),
        ({"inputs": tuple(fixed)}, "export.kv_cache: growing"),
        ({"moves_text": True}, "stands elsewhere"),
        ({"inputs": (*decoder.inputs, told)}, "which rows of the past are visual"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"model": facts.model_copy(update={"decoder": turned})}, "other positions"),
    ]
    for updates, reason in cases:
        for name in PACKAGES:
            (found,) = refusals(CLIENTS[name], changed(artifact, **updates))
            assert reason in found
    assert refusals(CLIENTS[ONNX], changed(artifact, dtype="float16")) == []
    (found,) = refusals(CLIENTS[IR], changed(artifact, dtype="float16"))
    assert "export with dtype float32" in found
    other = changed(artifact, model=facts.model_copy(update={"family": "smolvlm"}))
    assert refusals(CLIENTS[ONNX], other) == []
    (found,) = refusals(CLIENTS[IR], other)
    assert "smolvlm" in found
    assert "llava" in found
    for name in PACKAGES:
        assert refusals(CLIENTS[name], artifact) == []


def test_refused_means_that_nothing_is_written(packable, tmp_path, monkeypatch):
    client = type(CLIENTS[ONNX])
    monkeypatch.setattr(client, "refuses", lambda *_: ["has no hands", "has no feet"])
    with pytest.raises(PackError) as failure:
        vtcompress.pack(packable("identity"), ONNX, tmp_path / "packed")
    assert [line.split(": ", 1)[1] for line in failure.value.problems] == [
        f"{ONNX}: has no hands",
        f"{ONNX}: has no feet",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"text": "red"}, "answers"),
        ({"token_ids": (1, 2)}, "token ids"),
        ({"pixels": np.ones((1, 3, 32, 32), np.float32)}, "pixels"),
        ({"pixels": np.ones((1, 3, 8, 8), np.float32)}, "pixels"),
    ],
)
def test_the_self_check_names_what_differs_and_the_command_fails(
    packable, tmp_path, monkeypatch, vt, wrong, named
):
    def check(_: Any, packing: Packing, __: Path, questions: Any) -> list[Answered]:
        found = runtime_answers(packing.artifact, questions)
        return [*found[:-1], replace(found[-1], **wrong)]

    monkeypatch.setattr(type(CLIENTS[ONNX]), "check", check)
    place = tmp_path / "packed"
    code, _, err = vt("pack", packable("identity"), "--for", ONNX, "--output", place)
    assert code == 3
    assert err.splitlines()[-1].endswith(
        f"{ONNX} gives other {named} than the runtime; do not use this folder"
    )
    assert PackFile.load(place).check.differs == (named,)


def test_a_client_that_fails_on_the_folder_is_told(packable, tmp_path, monkeypatch, vt):
    def fail(*_: Any) -> list[Answered]:
        raise RuntimeError("no such port\nat line 7")

    monkeypatch.setattr(type(CLIENTS[ONNX]), "check", fail)
    place = tmp_path / "packed"
    code, _, err = vt("pack", packable("identity"), "--for", ONNX, "--output", place)
    assert code == 3
    assert f"{ONNX} fails on it (no such port); do not use this folder" in err
    assert PackFile.load(place).check.failed == "no such port"


def test_a_client_that_is_not_installed_is_told_and_not_passed(packable, tmp_path, monkeypatch, vt):
    monkeypatch.setattr(type(CLIENTS[ONNX]), "check", lambda *_: f"{ONNX} is not installed")
    place = tmp_path / "packed"
    code, out, _ = vt("pack", packable("identity"), "--for", ONNX, "--output", place)
    assert code == 0
    assert f"not checked: {ONNX} is not installed" in out
    document = json.loads((place / "pack.json").read_text())
    assert document["check"]["not_run"] == f"{ONNX} is not installed"
    again = vt("pack", packable("identity"), "--for", ONNX, "--output", place, "--no-check")
    assert again[0] == 1
    assert "holds a packed artifact; choose another --output or add --overwrite" in again[2]
    over = ("--no-check", "--overwrite")
    assert vt("pack", packable("identity"), "--for", ONNX, "--output", place, *over)[0] == 0
    assert "it was switched off" in (place / "pack.json").read_text()


@pytest.mark.parametrize("client", [ONNX, IR])
def test_all_that_a_pack_makes_lies_in_its_working_folder(packable, tmp_path, monkeypatch, client):
    """What a killed run leaves is then cleared by the next one; in the system's folder nobody looks."""
    pytest.importorskip(PACKAGES[client], reason="the extra clients is not installed")
    made, usual = [], tempfile.mkdtemp

    def noted(suffix: Any = None, prefix: Any = None, dir: Any = None) -> str:  # noqa: A002
        callers = (frame.filename for frame in inspect.stack()[1:])
        by = Path(next(name for name in callers if name != tempfile.__file__))
        if by.is_relative_to(ROOT / "export"):  # libraries have their own ways
            made.append((by.name, Path(dir or tempfile.gettempdir())))
        return usual(suffix, prefix, dir)

    monkeypatch.setattr(tempfile, "mkdtemp", noted)
    facts = vtcompress.pack(packable("identity"), client, tmp_path / "packed")
    assert "check.py" in dict(made)
    assert [one for one in made if one[1].parent != tmp_path] == []
    assert facts.check.differs == ()
    assert len(facts.check.answers) == 5
    assert not any((tmp_path / "packed").rglob(".*"))
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_made_pictures_stand_in_where_the_artifact_holds_none(packable, tmp_path):
    from export.clients.check import questions_of

    found = questions_of(Artifact.open(packable("identity")), tmp_path)
    sizes = {Image.open(one.images[0]).size for one in found}
    assert len(found) == len(sizes) == 5


def test_a_client_that_is_installed_and_does_not_start_is_told_and_not_passed(
    packable, tmp_path, monkeypatch, vt
):
    def broken(*_: Any) -> Any:
        raise ImportError("libsomething.so: no such file")

    monkeypatch.setattr(type(CLIENTS[ONNX]), "check", broken)
    place = tmp_path / "packed"
    code, out, _ = vt("pack", packable("identity"), "--for", ONNX, "--output", place)
    assert code == 0
    assert f"not checked: {ONNX} cannot be loaded: libsomething.so" in out
    assert PackFile.load(place).check.answers == ()
    # What was packed is no artifact, and says so.
    code, _, err = vt("pack", place, "--for", ONNX, "--output", tmp_path / "again")
    assert code == 1
    assert (
        "what `vtcompress pack` wrote for a stock client, not an artifact; its client loads" in err
    )


def test_packages_that_do_not_import_are_asked_for_before_anything_is_written(
    packable, tmp_path, monkeypatch, vt
):
    monkeypatch.setitem(sys.modules, "onnx", None)
    code, _, err = vt("pack", packable("identity"), "--for", ONNX, "--output", tmp_path / "packed")
    assert code == 1
    assert f"packing for {ONNX} needs packages that are not installed" in err
    assert not (tmp_path / "packed").exists()
