"""transformers.js in Node on packed folders: its token ids, pixels and answers are the runtime's."""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from PIL import Image

import vtcompress
from compressor.errors import PackError
from compressor.families.pictures.steps import PadToSquare
from compressor.families.pictures.text import TextRun
from export.artifact.artifact import Artifact
from export.clients import transformers_js
from export.clients.check import outcome_of, runtime_answers
from export.clients.client import CheckQuestion
from export.clients.pack import refusals
from export.clients.packing import Packing
from export.clients.registry import CLIENTS
from export.clients.transformers_js import node
from export.graphs.spec import BASELINE
from export.runtime.runtime import Runtime
from tests.models import make_picture
from tests.test_pack_clients import CUTS, TURNS, WORDS, turns_of, with_byte_level

NAME = "transformers.js"
CLIENT = CLIENTS[NAME]
Packed = Callable[[str], tuple[Packing, Path]]

IN_NODE = pytest.mark.usefixtures("npm")
pytestmark = pytest.mark.filterwarnings("ignore::compressor.errors.ArtifactWarning")


@pytest.fixture(scope="module")
def packed(packable: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """Return a function from a cut to what was packed and where."""

    @cache
    def get(cut: str) -> tuple[Packing, Path]:
        folder = tmp_path_factory.mktemp("packed") / "folder"
        vtcompress.pack(packable(cut), NAME, folder, check=False)
        return Packing(Artifact.open(packable(cut))), folder

    return get


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    sizes = ((40, 33), (32, 32), (35, 61))
    return [make_picture(folder / f"{i}.png", i, size) for i, size in enumerate(sizes)]


def asked(pictures: list[Path]) -> list[CheckQuestion]:
    return [CheckQuestion(text, (pictures[i % 3],), 12) for i, text in enumerate(WORDS)]


@IN_NODE
@pytest.mark.parametrize("cut", CUTS)
def test_answers_token_ids_and_pixels_are_the_runtimes(packed, pictures, cut):
    packing, folder = packed(cut)
    questions = [*asked(pictures), CheckQuestion("is it red", (), 12)]
    wanted = runtime_answers(packing.artifact, questions)
    found = CLIENT.check(packing, folder, questions)
    assert isinstance(found, list)
    check = outcome_of(questions, wanted, found, CLIENT.pixel_limit)
    assert check.differs == ()
    assert [row.found for row in check.answers] == [row.wanted for row in check.answers]
    assert all(row.token_ids for row in check.answers)
    assert [row.pixels_equal for row in check.answers] == [True] * 4 + [None]
    assert len({row.wanted for row in check.answers}) > 1


@IN_NODE
def test_a_second_turn_goes_on_with_the_cache(packed, pictures):
    for cut in ("exit", "keep k"):
        packing, folder = packed(cut)
        ((first, second),) = node.ask_in_node(
            folder, [node.Dialogue(TURNS, pictures[0], 5)], folder / "pictures.mjs"
        )
        wanted = turns_of(packing.artifact.folder, pictures[0])
        assert [first.text.strip(), second.text.strip()] == wanted
        assert len(second.token_ids or ()) > len(first.token_ids or ())


@IN_NODE
def test_a_byte_level_tokenizer_whose_beginning_token_the_template_does_not_write(
    packable, pictures, tmp_path
):
    artifact = with_byte_level(packable("exit"), tmp_path / "artifact")
    vtcompress.pack(artifact, NAME, tmp_path / "packed", check=False)
    opened = Artifact.open(artifact)
    wanted = runtime_answers(opened, asked(pictures))
    assert all(one.token_ids[0] == 1 for one in wanted)
    found = CLIENT.check(Packing(opened), tmp_path / "packed", asked(pictures))
    assert [one.token_ids for one in found] == [one.token_ids for one in wanted]
    assert [one.text.strip() for one in found] == [one.text.strip() for one in wanted]


@IN_NODE
def test_float16_is_computed_in_float16_and_rows_are_merged_in_float32(llava, pictures, tmp_path):
    """By first logits: of a random model two tokens are likely alike, and roundings decide.

    With windows the decoder also keeps which rows are visual; to the client that is one more cache.
    """
    import onnxruntime

    from tests.runtimes import exported

    cut = [{"yopo": {"window": 3}}]
    artifact = exported(llava("clip+llama"), tmp_path / "half", "float16", cut)
    vtcompress.pack(artifact, NAME, tmp_path / "packed", check=False)
    graphs = {
        name: onnxruntime.InferenceSession(tmp_path / f"packed/onnx/{name}_fp16.onnx")
        for name in ("embed_tokens", "vision_encoder", "decoder_model_merged")
    }
    runtime = Runtime.load(artifact)
    prompt = runtime.prepare(WORDS[0], [pictures[0]])
    ids = np.array([prompt.ids])
    (rows,) = graphs["embed_tokens"].run(None, {"input_ids": ids})
    (seen,) = graphs["vision_encoder"].run(None, {"pixel_values": prompt.seen[0].pixels})
    rows[0, ids[0] == runtime.facts.image_token_id] = seen[0]
    feeds = {"inputs_embeds": rows, "position_ids": np.arange(ids.shape[1])[None]}
    dtypes: list[type] = []
    for given in graphs["decoder_model_merged"].get_inputs()[2:]:
        dtypes.append({"tensor(float16)": np.float16, "tensor(bool)": np.bool_}[given.type])
        sizes = [1 if axis == "batch_size" else axis for axis in given.shape]
        feeds[given.name] = np.zeros([0 if isinstance(x, str) else x for x in sizes], dtypes[-1])
    assert dtypes == [np.float16] * 8 + [np.bool_]
    found = graphs["decoder_model_merged"].run(["logits"], feeds)[0][0, -1]
    wanted, _ = runtime.prefill([prompt])
    assert rows.dtype == seen.dtype == np.float32
    assert np.abs(found - wanted[0]).max() < 0.02 < 0.01 * np.ptp(wanted[0])  # of float16
    questions = asked(pictures)
    answered = CLIENT.check(Packing(Artifact.open(artifact)), tmp_path / "packed", questions)
    right = runtime_answers(Artifact.open(artifact), questions)
    assert [one.token_ids for one in answered] == [one.token_ids for one in right]
    assert sum(one.text == two.text for one, two in zip(answered, right, strict=True)) >= 2


@IN_NODE
def test_the_readmes_code_runs_as_it_stands(packed, pictures, tmp_path):
    packing, folder = packed("exit")
    code = (folder / "README.md").read_text("utf-8").split("```js\n")[1].split("```")[0]
    package = node.find_package()
    assert package is not None
    for old, new in (
        ("'@huggingface/transformers'", f"'{package.entry.as_uri()}'"),
        ("'./pictures.mjs'", f"'{(folder / 'pictures.mjs').as_uri()}'"),
        ("/path/to/this/folder", str(folder)),
        ("photo.jpg", str(pictures[0])),
        ("What is this?", "what is this"),
    ):
        assert old in code
        code = code.replace(old, new)
    (tmp_path / "readme.mjs").write_text(code, encoding="utf-8")
    ran = subprocess.run(
        ["node", tmp_path / "readme.mjs"], capture_output=True, text=True, check=False
    )
    question = CheckQuestion("what is this", (pictures[0],), 64)
    (wanted,) = runtime_answers(packing.artifact, [question])
    assert ran.stdout.strip() == wanted.text.strip(), ran.stderr


def test_weights_are_there_once_also_where_two_graphs_read_them(llava, tmp_path):
    """Embedding and head are one tensor here, and the original's decoder reads most of the other's."""
    from export.clients.transformers_js.client import write_models
    from tests.runtimes import exported

    cut = [{"shortv": {"layers": [3]}}]
    artifact = exported(llava("siglip+qwen2, tied, biases"), tmp_path / "tied", compress=cut)
    packing = Packing(Artifact.open(artifact))
    folders = {tmp_path / "a": "decoder", tmp_path / "b": BASELINE}
    write_models(packing, folders)
    parts = [path for folder in folders for path in folder.rglob("*.onnx_data*")]
    once = {path.stat().st_ino: path.stat().st_size for path in parts}
    assert len(once) < len(parts)
    assert sum(once.values()) <= packing.manifest.files["weights.bin"].size
    told = json.loads((tmp_path / "a/config.json").read_text())["transformers.js_config"]
    assert told["use_external_data_format"]["decoder_model_merged.onnx"] == 2
    for folder in folders:
        for file in folder.rglob("*.onnx"):
            count = told["use_external_data_format"][file.name]
            read = {
                value.const_value.location
                for value in ir.load(file).graph.initializers.values()
                if isinstance(value.const_value, ir.ExternalTensor)
            }
            wanted = [f"{file.name}_data", *(f"{file.name}_data_{i}" for i in range(1, count))]
            assert read == set(wanted)


def test_a_cache_that_counts_stands_in_front_where_none_has_every_row(packed):
    _, folder = packed("keep k")
    graph = ir.load(folder / "onnx/decoder_model_merged.onnx").graph
    names = [value.name for value in graph.inputs if value.name.startswith("past")]
    assert names[0] == "past_key_values.0.key"
    assert "past_key_values.0.value" not in names
    assert names[1:3] == ["past_key_values.1.key", "past_key_values.1.value"]
    layers = json.loads((folder / "config.json").read_text())["text_config"]["num_hidden_layers"]
    assert names[-1] == f"past_key_values.{layers - 1}.value"
    _, folder = packed("exit")
    graph = ir.load(folder / "onnx/decoder_model_merged.onnx").graph
    assert "past_key_values.0.value" in [value.name for value in graph.inputs]


@pytest.mark.parametrize("resample", [0, 1, 2, 3, 4, 5])
def test_the_resize_is_pillows_bit_for_bit(tmp_path, resample):
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    rng = np.random.default_rng(resample)
    given = Image.fromarray(rng.integers(0, 256, (37, 53, 3), np.uint8))
    jobs, wanted = [], []
    for width, height in ((20, 20), (53, 90), (101, 37), (7, 80), (80, 7), (52, 20)):
        settings = {"do_resize": True, "size": {"width": width, "height": height}}
        jobs.append({**settings, "resample": resample})
        wanted.append(np.asarray(given.resize((width, height), resample)))
    script = f"""
        import {{ readFileSync }} from 'node:fs';
        import {{ fit }} from {json.dumps((files(transformers_js) / "pictures.mjs").as_uri())};
        class Picture {{
            constructor(data, width, height, channels) {{
                Object.assign(this, {{ data, width, height, channels }});
            }}
        }}
        const data = new Uint8ClampedArray(readFileSync('given.raw'));
        const given = new Picture(data, 53, 37, 3);
        console.log(JSON.stringify({json.dumps(jobs)}.map((job) => Array.from(fit(given, job).data))));
    """
    (tmp_path / "given.raw").write_bytes(given.tobytes())
    ran = subprocess.run(
        ["node", "--input-type=module", "-e", script],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for found, right in zip(json.loads(ran.stdout), wanted, strict=True):
        assert np.array_equal(np.array(found, np.uint8).reshape(right.shape), right)


def test_what_the_client_cannot_do_is_refused_with_its_reason(packable):
    artifact = Artifact.open(packable("identity"))
    manifest = artifact.manifest
    cases: list[tuple[dict[str, Any], str]] = [
        ({"dtype": "bfloat16"}, "has no bfloat16; export with dtype float32 or float16"),
        (
            {"model": manifest.model.model_copy(update={"most_tiles": 4})},
            "takes one tile a picture",
        ),
        ({"picture_text": TextRun(before="<img>")}, "has words around them"),
        ({"picture_steps": None}, "export the model anew"),
        (
            {"picture_steps": (PadToSquare(colour=(0, 0, 0)), *(manifest.picture_steps or ()))},
            "has no picture step pad_to_square",
        ),
        ({"picture_steps": (manifest.picture_steps or ())[::-1]}, "in an order of its own"),
    ]
    for updates, reason in cases:
        other = replace(artifact, manifest=manifest.model_copy(update=updates))
        (found,) = refusals(CLIENT, other)
        assert reason in found
    assert refusals(CLIENT, artifact) == []


def test_what_is_not_installed_is_told_and_not_passed(packable, tmp_path, monkeypatch, vt):
    monkeypatch.delenv("NODE_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "packed"
    code, out, _ = vt("pack", packable("identity"), "--for", NAME, "--output", place)
    assert code == 0
    if shutil.which("node"):
        assert f"not checked: the npm package {node.PACKAGE} is not installed" in out
        assert "NODE_PATH" in out
    monkeypatch.setenv("PATH", "")
    code, out, _ = vt("pack", packable("identity"), "--for", NAME, "--output", place, "--overwrite")
    assert code == 0
    assert "not checked: node is not installed" in out


@IN_NODE
def test_a_folder_that_the_client_cannot_load_is_an_error_in_one_line(packed, pictures, tmp_path):
    packing, folder = packed("identity")
    shutil.copytree(folder, tmp_path / "broken")
    (tmp_path / "broken/onnx/embed_tokens.onnx").unlink()
    with pytest.raises(PackError, match=r"embed_tokens\.onnx") as failure:
        CLIENT.check(packing, tmp_path / "broken", asked(pictures))
    assert len(str(failure.value).splitlines()) == 1
