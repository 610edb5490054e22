"""Loading models: what is supported works in every source dtype, what is not is refused by name."""

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import close_session

import vtcompress
from compressor.compressed import load_compressed, save_compressed
from compressor.disk.paths import at_home
from compressor.errors import ArtifactError, ModelError, VtcompressError
from compressor.families import LoadedModel, describe, load
from compressor.families.folder import digest
from compressor.families.registry import local_folder
from compressor.plan.edits import identity_plan
from tests.models import Variant, make_llava, make_questions


@pytest.fixture
def changed(llava: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies the tiny model with keys of its config.json changed."""

    def copy(**changes: Any) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(llava("clip+llama"), folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for dotted, value in changes.items():
            *path, last = dotted.split("__")
            section = config
            for key in path:
                section = section[key]
            section[last] = value
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return folder

    return copy


def problems(folder: Path) -> tuple[str, ...]:
    with pytest.raises(ModelError) as caught:
        describe(str(folder))
    return caught.value.problems


def test_facts_are_those_of_the_configuration(llava: Callable[[str], Path]) -> None:
    facts = describe(str(llava("clip+llama3 rope, biases, head_dim")))
    assert (facts.visual_tokens, facts.image_size, facts.image_token_id) == (16, 32, 4)
    assert facts.eos_token_ids == (2,)
    dims = facts.decoder
    assert (dims.heads, dims.kv_heads, dims.head_dim, dims.hidden) == (4, 2, 8, 64)
    assert dims.qkv_bias
    assert dims.o_bias
    assert dims.mlp_bias
    assert not dims.tied_embeddings
    siglip = describe(str(llava("siglip+qwen2, tied, biases")))
    assert siglip.visual_tokens == 16
    assert siglip.decoder.tied_embeddings
    assert siglip.decoder.qkv_bias
    assert not siglip.decoder.o_bias
    assert not siglip.decoder.qk_norm
    normed = describe(str(llava("siglip+qwen3, head norms, head_dim"))).decoder
    assert normed.qk_norm
    assert (normed.heads, normed.head_dim, normed.qkv_bias, normed.o_bias) == (4, 24, False, False)


def test_a_sliding_window_that_can_bind_is_refused_by_name(tmp_path: Path) -> None:
    for window, allowed in ((64, False), (512, True)):
        variant = Variant(text="mistral", text_options={"sliding_window": window}, layers=1)
        folder = make_llava(tmp_path / str(window), variant)
        if allowed:
            assert describe(str(folder)).decoder.layers == 1
        else:
            (line,) = problems(folder)
            assert "text_config.sliding_window: a window of 64 can bind" in line
            assert "512 positions" in line


@pytest.mark.parametrize("text", ["qwen2", "qwen3"])
def test_a_sliding_window_counts_only_in_layers_that_have_it(text: str, tmp_path: Path) -> None:
    """Switched off, or for layers behind the last one, it binds nobody."""
    for number, (options, allowed) in enumerate(
        (
            ({"use_sliding_window": False}, True),
            ({"use_sliding_window": True, "max_window_layers": 2}, True),
            ({"use_sliding_window": True, "max_window_layers": 1}, False),
            ({"use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}, False),
        )
    ):
        variant = Variant(text=text, text_options={"sliding_window": 64, **options}, layers=2)
        folder = make_llava(tmp_path / str(number), variant)
        if allowed:
            assert describe(str(folder)).decoder.layers == 2
        else:
            (line,) = problems(folder)
            assert "text_config.sliding_window: a window of 64 can bind" in line


def test_unsupported_parts_are_named_all_at_once(changed: Callable[..., Path]) -> None:
    folder = changed(
        text_config__hidden_act="relu",
        text_config__rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 2.0,
            "partial_rotary_factor": 0.5,
        },
    )
    lines = problems(folder)
    assert [line.split(": ")[2] for line in lines] == [
        "'relu' is not supported; supported",
        "'yarn' is not supported; supported",
        "0.5 is not supported; only 1 is",
    ] or len(lines) == 3
    assert any("text_config.hidden_act: 'relu'" in line for line in lines)
    assert any("rope_type: 'yarn'" in line for line in lines)


def test_pickled_weights_are_never_loaded(llava: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(llava("clip+llama"), folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04K*.")
    with pytest.raises(
        ModelError, match=r"no \*\.safetensors file; pickled weights are never loaded"
    ):
        load(str(folder))


def test_a_broken_configuration_is_named(changed: Callable[..., Path]) -> None:
    folder = changed()
    (folder / "config.json").write_text("{", encoding="utf-8")
    assert "not JSON" in problems(folder)[0]


def test_a_name_that_is_neither_folder_nor_hub_id_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder, and no hub id"):
        local_folder(str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="no such folder, and no hub id"):
        local_folder("just-a-name")


def test_a_file_of_a_model_is_answered_with_its_folder(
    llava: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = llava("clip+llama")
    monkeypatch.chdir(folder.parent)
    (tmp_path / "notes.txt").write_text("none")
    # The second has the form of a hub id.
    for name in (str(folder / "config.json"), f"{folder.name}/config.json"):
        with pytest.raises(ModelError) as caught:
            local_folder(name)
        wanted = f"give the folder that it lies in, {Path(name).parent}"
        assert str(caught.value) == f"{name}: a file, and a model is a folder: {wanted}"
    with pytest.raises(ModelError, match=r"give the folder that holds the model's config\.json"):
        local_folder(str(tmp_path / "notes.txt"))
    with pytest.raises(VtcompressError, match=f"or a folder, such as {folder}$"):
        vtcompress.inspect(folder / "config.json")


@pytest.mark.parametrize("name", ["./a/nope", "../nope", "a/b/nope", "~/nope"])
def test_a_lost_folder_is_not_asked_of_the_hub(name: str) -> None:
    for asks in (local_folder, vtcompress.inspect):
        with pytest.raises(ModelError) as caught:
            asks(name)
        told = at_home(name) if asks is vtcompress.inspect else name
        assert str(caught.value) == f"{told}: no such folder, and no hub id of the form owner/name"


@pytest.mark.parametrize("name", ["ow ner/na?me", "a..b/nope", "owner/-name", "owner/" + "n" * 97])
def test_a_name_that_no_hub_model_can_have_is_told(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        local_folder(name)
    assert str(caught.value).startswith(f"{name}: no such folder, and no hub id: ")


def test_a_hub_that_may_not_be_asked_is_one_line() -> None:
    # The tests run with HF_HUB_OFFLINE.
    with pytest.raises(ModelError) as caught:
        local_folder("owner/no-such-model-here", "v1")
    (line,) = caught.value.problems
    assert line.startswith("owner/no-such-model-here at revision v1: no such folder, ")
    assert line.endswith("give the local folder of a model, or unset HF_HUB_OFFLINE")
    assert "\n" not in line


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[socket.socket]:
    """Return a hub that is connected to and never answers; close it, and nobody listens there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("NO_PROXY", "*")
        for key, value in {
            "ENDPOINT": endpoint,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_ETAG_TIMEOUT": 1,
        }.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{key}", value)
        close_session()  # made for what was set before
        yield server
        close_session()


@pytest.mark.parametrize("revision", [None, "0" * 40])
@pytest.mark.parametrize("answers", ["is not there", "hangs"])
def test_a_hub_that_cannot_be_reached_is_one_line_soon(
    hub: socket.socket, answers: str, revision: str | None
) -> None:
    endpoint = "http://{}:{}".format(*hub.getsockname())
    if answers == "is not there":
        hub.close()
    started = time.monotonic()
    with pytest.raises(ModelError) as caught:
        local_folder("owner/name", revision)
    assert time.monotonic() - started < 10
    (line,) = caught.value.problems
    named = "owner/name" + (f" at revision {revision}" if revision else "")
    assert line.startswith(f"{named}: no such folder, the hub ({endpoint}) could not be reached (")
    assert "its cache does not hold it whole: give the local folder of a model, or " in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (404, "RepoNotFound", "shows no such model: correct the name, or log in (HF_TOKEN) if"),
        (404, "RevisionNotFound", "has no such revision of it: correct the name, or leave it out"),
        (503, "", "cannot be fetched from the hub and is no local folder: "),
    ],
)
def test_what_the_hub_answers_is_one_line_soon(
    hub: socket.socket, status: int, code: str, says: str
) -> None:
    def answer() -> None:
        with suppress(OSError):  # closed by the fixture
            while True:
                connection, _ = hub.accept()
                connection.recv(1 << 16)
                head = f"HTTP/1.1 {status} No\r\nX-Error-Code: {code}\r\n"
                connection.sendall(f"{head}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
                connection.close()

    hub.settimeout(10)  # `accept` in a thread does not end when the socket is closed
    Thread(target=answer, daemon=True).start()
    started = time.monotonic()
    with pytest.raises(ModelError) as caught:
        local_folder("owner/name", "0" * 40)
    assert time.monotonic() - started < 8
    (line,) = caught.value.problems
    assert line.startswith(f"owner/name at revision {'0' * 40}: ")
    assert says in line


def test_without_the_hub_its_cache_is_taken_and_that_is_said_once(
    hub: socket.socket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = "http://{}:{}".format(*hub.getsockname())
    hub.close()
    with pytest.raises(ModelError):  # is not remembered
        local_folder("owner/name")
    assert not caplog.messages
    cached = tmp_path / "cache" / "models--owner--name"
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    for weights in (False, True, True):
        assert local_folder("owner/name", weights=weights) == cached / "snapshots" / "abc"
    (line,) = caplog.messages
    assert line.startswith(f"owner/name: the hub ({endpoint}) could not be asked (")
    assert line.endswith("): taken from its cache, at commit abc; it may have changed")


def test_a_hub_is_asked_once_in_a_process(
    llava: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    for name in ("HfApi.model_info", "snapshot_download"):
        monkeypatch.setattr(
            f"huggingface_hub.{name}",
            lambda *_, name=name, **__: asked.append(name) or str(llava("clip+llama")),
        )
    for _ in range(2):
        describe("owner/name")
        load("owner/name")
    assert sorted(asked) == ["HfApi.model_info", "snapshot_download", "snapshot_download"]


def test_a_revision_of_a_local_folder_is_refused(llava: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match=r"model\.revision"):
        local_folder(str(llava("clip+llama")), "main")


def test_the_digest_changes_with_a_weight_and_with_the_configuration(
    changed: Callable[..., Path],
) -> None:
    folder = changed()
    before = digest(folder)
    assert before == digest(folder)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    other = digest(folder)
    assert other != before
    (folder / "config.json").write_text("{}", encoding="utf-8")
    assert digest(folder) not in {other, before}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_sources_load_and_are_stored_as_they_were(
    dtype: str, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    source = make_llava(tmp_path / "source", Variant(dtype=dtype, layers=1))
    model = load(str(source))
    assert model.facts.dtype == dtype
    assert model.tensors["norm.weight"].dtype == torch.float32
    small = tmp_path / "small"
    small.mkdir()
    save_compressed(model, identity_plan(model.facts, model.digest), small)
    stored = load_file(small / "compressed.safetensors")
    original = load_file(source / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {getattr(torch, dtype)}
    key = next(k for k in original if k.endswith("layers.0.mlp.up_proj.weight"))
    assert torch.equal(stored["language_model.layers.0.mlp.up_proj.weight"], original[key])


def test_a_compressed_folder_without_weights_is_refused(
    llava: Callable[[str], Path], tmp_path: Path
) -> None:
    model: LoadedModel = load(str(llava("clip+llama")))
    save_compressed(model, identity_plan(model.facts, model.digest), tmp_path)
    weights = tmp_path / "compressed.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:1000])
    with pytest.raises(ArtifactError, match=r"compressed\.safetensors: broken or cut off"):
        load_compressed(tmp_path)
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"no \*\.safetensors"):
        load_compressed(tmp_path)


def test_another_image_size_changes_the_number_of_visual_tokens_and_still_exports(
    llava: Callable[[str], Path], tmp_path: Path
) -> None:
    data = make_questions(tmp_path / "q", count=2)
    recipe = vtcompress.load_recipe("identity").override(
        {"model.id": str(llava("clip+llama")), "export.image_size": 48, "validate.data": str(data)}
    )
    manifest = vtcompress.export(recipe, tmp_path / "out", bench_rounds=0)
    assert manifest.model.visual_tokens == 36
    assert manifest.fidelity is not None
    assert manifest.fidelity.passed
    assert manifest.loss is not None
    # The original is asked at its own 32 pixels, so the other size is part of the loss.
    assert manifest.loss.overall.kl > 1e-6
    runtime = vtcompress.Runtime.load(tmp_path / "out")
    prompt = runtime.prepare("what is this", [data.parent / "0.png"])
    assert prompt.seen[0].pixels.shape == (1, 3, 48, 48)
    assert len(prompt.layout.visual_index) == 36


def test_an_image_size_that_no_patch_divides_is_refused(llava: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match="no multiple of the tower's patch size 8"):
        describe(str(llava("clip+llama")), image_size=36)


def test_noise_in_noise_out(llava: Callable[[str], Path]) -> None:
    """The vision encoder is transformers' own, feature layers and class token included."""
    for name in ("clip+llama", "siglip+qwen2, tied, biases", "clip+llama3 rope, biases, head_dim"):
        model = load(str(llava(name)))
        pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            wanted = torch.stack(list(model.original.get_image_features(pixels).pooler_output))
            found = model.vision(pixels)
        assert np.abs((wanted - found).numpy()).max() <= 1e-5


def test_a_hub_id_is_fetched_with_its_revision_and_keeps_its_name(
    llava: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot(name: str, **options: Any) -> str:
        asked.append((name, options["revision"], "*.safetensors" in options["allow_patterns"]))
        return str(llava("clip+llama"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    model = load("owner/name", revision="v1")
    assert model.facts.name == "owner/name"
    assert describe("owner/name").decoder == model.facts.decoder
    # Facts are read without weights; only loading fetches them, and of the same revision.
    assert sorted(set(asked), key=str) == [
        ("owner/name", "v1", False),
        ("owner/name", "v1", True),
        ("owner/name", None, False),
    ]


def test_a_folder_called_model_goes_by_the_name_of_the_folder_around_it(
    llava: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(llava("clip+llama"), tmp_path / "digits" / "model")
    shutil.copytree(llava("clip+llama"), tmp_path / "digits" / "tiny")
    assert describe(str(tmp_path / "digits" / "model")).name == "digits"
    assert describe(str(tmp_path / "digits" / "tiny")).name == "tiny"
