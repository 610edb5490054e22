"""Wrong and half-written model folders: one line that names the file and the remedy, never a traceback."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import vtcompress
from compressor.errors import ModelError, VtcompressError
from compressor.families import describe, load
from compressor.families.folder import WEIGHTS, WEIGHTS_INDEX
from compressor.families.guard import LFS_HEADER, reading
from compressor.families.registry import read_processor
from tests.models import Variant, make_llava
from vtcompress.cli.main import run_command


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny model that a test may break."""
    return Path(shutil.copytree(tiny_model, tmp_path / "broken"))


def pointer(path: Path) -> None:
    path.write_bytes(LFS_HEADER + b"v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe{}")


def keys(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file in place."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def half(path: Path) -> None:
    path.write_text(path.read_text()[:-20])


def nested(path: Path) -> None:
    path.write_text("[" * 100_000)


def no_object(path: Path) -> None:
    path.write_text("[]")


KINDS = ("config", "tokenizer", "tokenizer_config", "special_tokens_map", "added_tokens",
         "processor_config", "preprocessor_config", "generation_config", "chat_template")  # fmt: skip


@pytest.mark.parametrize(
    ("name", "breaks", "says"),
    [
        ("model.safetensors", pointer, "git lfs pull"),
        ("model.safetensors", cut, "broken or cut off"),
        ("model.safetensors", lambda p: p.write_bytes(b""), "broken or cut off"),
        ("config.json", pointer, "git lfs pull"),
        ("config.json", half, "not JSON"),
        ("config.json", nested, "not JSON"),
        ("config.json", no_text, "not UTF-8"),
        ("tokenizer.json", pointer, "git lfs pull"),
        ("tokenizer.json", half, "not JSON"),
        ("tokenizer.json", nested, "not JSON"),
        ("tokenizer_config.json", no_text, "not UTF-8"),
        ("processor_config.json", half, "not JSON"),
        ("chat_template.jinja", no_text, "not UTF-8"),
        ("generation_config.json", half, "not JSON"),
        *((f"{name}.json", no_object, "not a JSON object with keys, but a list") for name in KINDS),
        (
            "tokenizer.json",
            lambda p: p.write_text("{}"),
            "model is missing, added_tokens is missing",
        ),
        (
            "tokenizer.json",
            lambda p: keys(p, model={"type": "Foo"}),
            "is damaged or too new for this version of tokenizers",
        ),
        ("chat_template.json", lambda p: p.write_text("{}"), "chat_template is missing"),
    ],
)
def test_a_broken_file_is_named_with_its_remedy(
    folder: Path, name: str, breaks: Callable[[Path], None], says: str
) -> None:
    breaks(folder / name)
    with pytest.raises(ModelError) as caught:
        load(str(folder))
    (line,) = caught.value.problems
    assert line.startswith(f"{folder / name}: ")
    assert says in line
    assert "\n" not in line


def test_every_key_that_a_library_fails_over_is_named_and_no_code_is_run_for_it(
    folder: Path,
) -> None:
    path = folder / "tokenizer_config.json"
    keys(path, padding_side="up", model_max_length="x", unk_token="<unk>")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    lines = refused(folder)
    assert {line.split(": ")[1] for line in lines} == {"padding_side", "model_max_length"}
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert before == {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(ModelError, match=r"the processor .* cannot be read"):
        read_processor(str(folder), trust_remote_code=True)


def test_a_length_that_is_none_is_named_by_file_and_key(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    keys(path, model_max_length=True)
    (line,) = refused(folder)
    assert line.startswith(f"{path}: model_max_length: true is not allowed; one number")


def test_a_class_that_transformers_does_not_know_is_named_by_file_and_key(folder: Path) -> None:
    path, other = folder / "processor_config.json", folder / "tokenizer_config.json"
    keys(path, processor_class="Foo")
    (line,) = refused(folder)
    assert line.startswith(f"{path}: processor_class: 'Foo': its processor is a ")
    keys(path, processor_class=None)
    keys(other, processor_class="Bar")
    (line,) = refused(folder)
    assert line.startswith(f"{other}: processor_class: 'Bar': its processor is a ")


def test_a_sentencepiece_tokenizer_without_its_package_names_that_package(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\x0a\x0e\x0a\x05<unk>")
    with pytest.raises(ModelError, match="pip install sentencepiece"):
        load(str(folder))


@pytest.mark.parametrize(
    ("installed", "says"),
    [(False, "pip install sentencepiece"), (True, "no SentencePiece file that can be read")],
)
def test_the_reader_that_a_library_tries_second_is_not_blamed(
    folder: Path, installed: bool, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tokenizer.model").write_bytes(b"x")
    monkeypatch.setattr(
        "compressor.families.guard.find_spec", lambda _: object() if installed else None
    )
    failure = ValueError("`tiktoken` is required to read a `tiktoken` file: pip install tiktoken")
    with pytest.raises(ModelError) as caught, reading(folder, "the processor"):
        raise failure
    (line,) = caught.value.problems
    assert "tokenizer.model" in line
    assert says in line
    assert "tiktoken" not in line


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (KeyError("hidden"), "the key 'hidden' is missing"),
        (RecursionError("maximum"), "nested too deeply"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("size mismatch\nfor x"), "RuntimeError: size mismatch"),
        (ImportError("\nX requires the SentencePiece library"), "pip install sentencepiece"),
        (ValueError(), "ValueError"),
    ],
)
def test_whatever_a_library_raises_is_one_line_and_stays_the_cause(
    folder: Path, failure: Exception, says: str
) -> None:
    with pytest.raises(ModelError) as caught, reading(folder, "the weights"):
        raise failure
    assert caught.value.__cause__ is failure
    (line,) = caught.value.problems
    assert line.startswith(f"{folder}: the weights cannot be read: ")
    assert says in line


def test_a_folder_and_a_file_without_permission_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs the tests may be allowed to read everything, so the refusal is made here."""
    real = os.open
    for name in ("processor_config.json", WEIGHTS):
        with monkeypatch.context() as patch:

            def denied(path: Path, *options: Any, closed: str = name, **more: Any) -> Any:
                if Path(path).name == closed:
                    raise PermissionError(13, "Permission denied", str(path))
                return real(path, *options, **more)

            patch.setattr(os, "open", denied)
            assert refused(folder) == (
                f"{folder / name}: Permission denied; make the file readable",
            )
    stat = Path.stat

    def closed_folder(self: Path, **options: Any) -> Any:
        if self.parent == folder:
            raise PermissionError(13, "Permission denied", str(self))
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", closed_folder)
    line = f"{folder}: Permission denied; make the folder readable"
    assert refused(folder) == (line,)
    with pytest.raises(VtcompressError, match=line):
        vtcompress.inspect(folder)


def test_links_to_files_that_are_gone_and_folders_in_a_files_place_are_named(folder: Path) -> None:
    for name in (WEIGHTS, "config.json", "tokenizer.json"):
        path = folder / name
        kept = path.read_bytes()
        path.unlink()
        path.symlink_to(folder / "gone")
        assert refused(folder)[0].startswith(f"{path}: a link to a file that is gone")
        path.unlink()
        path.mkdir()
        assert refused(folder)[0].startswith(f"{path}: is a folder, not a file; ")
        path.rmdir()
        path.write_bytes(kept)


def test_an_interrupt_passes_the_guard(folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt), reading(folder, "the weights"):
        raise KeyboardInterrupt


def weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the weights of a folder in place."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def configuration(folder: Path, **changes: Any) -> None:
    """Change keys of config.json in place; `a__b` is b in a, None takes the key away."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for dotted, value in changes.items():
        *sections, last = dotted.split("__") if not dotted.startswith("_") else [dotted]
        section = config
        for key in sections:
            section = section[key]
        section[last] = value
        if value is None:
            del section[last]
    path.write_text(json.dumps(config), encoding="utf-8")


def refused(folder: Path) -> tuple[str, ...]:
    with pytest.raises(ModelError) as caught:
        load(str(folder))
    assert all("\n" not in line for line in caught.value.problems)
    return caught.value.problems


def without(part: str) -> Callable[[dict[str, Any]], Any]:
    def change(tensors: dict[str, Any]) -> None:
        names = [name for name in tensors if part in name]
        assert names
        for name in names:
            del tensors[name]

    return change


LOST = {
    "the vision tower": "vision_tower",
    "one layer of it": "vision_tower.encoder.layers.0.",
    "the projector": "multi_modal_projector",
    "a layer": "model.layers.0.",
    "the head": "lm_head",
    "the token embedding": "embed_tokens",
    "the last norm": "model.norm",
}


@pytest.mark.parametrize("part", LOST.values(), ids=LOST)
def test_weights_that_are_not_in_the_file_are_refused_and_never_drawn(
    folder: Path, part: str
) -> None:
    weights(folder, without(part))
    (line,) = refused(folder)
    assert "weights are missing that config.json asks for: " in line
    assert part.removeprefix("model.") in line


def test_a_long_list_of_lost_weights_is_its_first_names_and_a_count(folder: Path) -> None:
    names = [name for name in load_file(folder / WEIGHTS) if "vision_tower" in name]
    needed = [n for n in names if "post_layernorm" not in n and "encoder.layers.2." not in n]
    weights(folder, without("vision_tower"))
    (line,) = refused(folder)
    assert "embeddings.class_embedding" in line
    assert f"and {len(needed) - 3} more" in line


def test_weights_of_another_shape_and_of_another_model_are_refused_by_name(folder: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        name = next(n for n in tensors if n.endswith("layers.0.mlp.up_proj.weight"))
        tensors[name] = tensors[name][:-1].clone()
        tensors["image_newline"] = torch.zeros(3)

    weights(folder, change)
    first, second = refused(folder)
    assert "no place for: image_newline; it is another model's" in first
    assert "layers.0.mlp.up_proj.weight (shape [95, 64], expected [96, 64])" in second


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("layer", [-1, -2, [0, 1]])
def test_weights_that_no_graph_reads_may_be_missing_left_over_or_broken(
    tower: str, layer: Any, tmp_path: Path
) -> None:
    """The families' list of them is checked on transformers' own features."""
    variant = Variant(
        tower=tower,
        layers=1,
        feature_layer=layer,
        strategy="default" if tower == "clip" else "full",
    )
    folder = make_llava(tmp_path / "model", variant)
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = load(str(folder)).original.get_image_features(pixels).pooler_output[0]
    unread = ["post_layernorm"] + (["vision_tower.head."] if tower == "siglip" else [])
    if layer == -2:
        unread.append("vision_tower.encoder.layers.2.")
    if layer == [0, 1]:
        unread += ["vision_tower.encoder.layers.1.", "vision_tower.encoder.layers.2."]

    def ruin(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if any(part in name for part in unread):
                tensor.fill_(float("nan"))
        tensors["vision_tower.embeddings.position_ids"] = torch.arange(17)[None]
        tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    def drop(tensors: dict[str, Any]) -> None:
        for part in unread:
            without(part)(tensors)

    for change in (ruin, drop):
        weights(folder, change)
        model = load(str(folder))
        with torch.inference_mode():
            found = model.original.get_image_features(pixels).pooler_output[0]
            assert torch.equal(found, wanted)
            assert torch.allclose(model.vision(pixels)[0], wanted, atol=1e-5)


def add(name: str, like: str) -> Callable[[dict[str, Any]], Any]:
    return lambda tensors: tensors.update({name: tensors[like].clone()})


def whole(part: str, dtype: torch.dtype) -> Callable[[dict[str, Any]], Any]:
    def change(tensors: dict[str, Any]) -> None:
        (name,) = [name for name in tensors if part in name]
        tensors[name] = tensors[name].to(dtype)

    return change


def same(_: dict[str, Any]) -> None:
    """Leave the weights as they are."""


ANOTHERS: dict[str, tuple[dict[str, Any], Callable[[dict[str, Any]], Any], str]] = {
    "a layer less": (
        {"text_config__num_hidden_layers": 1},
        same,
        "config.json: text_config.num_hidden_layers: 1, but the weights are those of 2 layers",
    ),
    "a layer more": (
        {"text_config__num_hidden_layers": 3},
        same,
        "config.json: text_config.num_hidden_layers: 3, but the weights are those of 2 layers",
    ),
    "as many as transformers takes": (
        {"text_config__num_hidden_layers": 10_000},
        same,
        "text_config.num_hidden_layers: 10000, but the weights are those of 2 layers",
    ),
    "a layer less in the tower": (
        {"vision_config__num_hidden_layers": 2, "vision_feature_layer": -1},
        same,
        "vision_config.num_hidden_layers: 2, but the weights are those of 3 layers",
    ),
    "layers more in the tower": (
        {"vision_config__num_hidden_layers": 9, "vision_feature_layer": -1},
        same,
        "vision_config.num_hidden_layers: 9, but the weights are those of 3 layers",
    ),
    "no decoder": ({"text_config": None}, same, "text_config.num_hidden_layers: 32, but the"),
    "another width": (
        {"text_config__intermediate_size": 95},
        same,
        "mlp.down_proj.weight (shape [64, 96], expected [64, 95])",
    ),
    "a tensor less": ({}, without("layers.1.mlp.up_proj"), "are missing that config.json asks for"),
    "a tensor more": ({}, add("image_newline", "language_model.lm_head.weight"), "image_newline"),
    "bytes": (
        {},
        whole("model.layers.1.mlp.up_proj", torch.int8),
        "model.safetensors: language_model.model.layers.1.mlp.up_proj.weight: of dtype I8, no floats",
    ),
    "bits": ({}, whole("model.layers.0.self_attn.k_proj", torch.bool), "of dtype BOOL"),
}


@pytest.mark.parametrize("name", ANOTHERS)
def test_weights_of_another_configuration_are_refused_by_their_headers(
    folder: Path, name: str
) -> None:
    changes, change, says = ANOTHERS[name]
    weights(folder, change)
    configuration(folder, **changes)
    with pytest.raises(ModelError) as caught:
        describe(str(folder))
    (line,) = caught.value.problems
    assert says in line
    assert str(folder) in line


AUTHORS = {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "mm_hidden_size": 1024}


@pytest.mark.parametrize("kind", ["llava", "llava_llama"])
def test_the_authors_own_layout_is_refused_when_the_configuration_is_read(
    folder: Path, kind: str
) -> None:
    (folder / WEIGHTS).unlink()
    configuration(folder, model_type=kind, **AUTHORS)
    with pytest.raises(ModelError) as caught:
        describe(str(folder))
    (line,) = caught.value.problems
    assert "mm_vision_tower, mm_hidden_size: the layout of the authors' own code" in line
    assert "llava-hf" in line


def test_a_foreign_architecture_is_refused_by_name(folder: Path) -> None:
    configuration(folder, architectures=["LlavaLlamaForCausalLM"])
    (line,) = refused(folder)
    assert "architectures: ['LlavaLlamaForCausalLM'] is not supported" in line


def test_adapters_are_refused_with_or_without_their_model(folder: Path, tmp_path: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b"}')
    (line,) = refused(folder)
    assert line.startswith(
        f"{folder / 'adapter_config.json'}: an adapter, which is not applied; merge"
    )
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(folder / "adapter_config.json", alone)
    (alone / "adapter_model.safetensors").write_bytes(b"")
    assert "merge" in refused(alone)[0]


def test_an_artifact_is_no_model(tiny_artifact: Path) -> None:
    with pytest.raises(ModelError, match="an artifact of vtcompress, not a model"):
        describe(str(tiny_artifact))


def shard(folder: Path) -> tuple[Path, Path]:
    """Split the weights in two files with an index."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({n: tensors[n] for n in own}, folder / file, metadata={"format": "pt"})
    (folder / WEIGHTS).unlink()
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / WEIGHTS_INDEX).write_text(json.dumps(index))
    return folder / "a.safetensors", folder / "b.safetensors"


def test_a_lost_shard_is_named(folder: Path) -> None:
    first, second = shard(folder)
    load(str(folder))
    second.unlink()
    assert refused(folder)[0].startswith(f"{second}: no such file, and {WEIGHTS_INDEX} names it")
    (folder / WEIGHTS_INDEX).unlink()
    (line,) = refused(folder)
    assert f"neither {WEIGHTS} nor {WEIGHTS_INDEX}; found a.safetensors" in line
    assert first.exists()


@pytest.mark.parametrize(
    "name", ["../b.safetensors", "sub/b.safetensors", "/b.safetensors", "b.bin"]
)
def test_an_index_that_names_files_elsewhere_is_refused(folder: Path, name: str) -> None:
    shard(folder)
    path = folder / WEIGHTS_INDEX
    path.write_text(path.read_text().replace('"b.safetensors"', json.dumps(name)))
    (line,) = refused(folder)
    assert f"names {name!r}; only *.safetensors files beside it are read" in line


def unweighted(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def one_shard(folder: Path) -> None:
    shard(folder)[1].unlink()


def hostile(folder: Path) -> None:
    shard(folder)
    path = folder / WEIGHTS_INDEX
    path.write_text(path.read_text().replace('"b.safetensors"', '"../b.safetensors"'))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (unweighted, "no *.safetensors file: the weights are not here; copy or download them"),
        (pickled, "no *.safetensors file; pickled weights are never loaded"),
        (one_shard, f"b.safetensors: no such file, and {WEIGHTS_INDEX} names it"),
        (hostile, "names '../b.safetensors'; only *.safetensors files beside it are read"),
    ],
)
def test_inspect_tells_of_weights_that_are_not_there_beside_the_facts(
    folder: Path,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "problems" not in vtcompress.inspect(folder)
    spoil(folder)
    found = vtcompress.inspect(folder)
    (line,) = found["problems"]
    assert says in line
    assert found["decoder"]["layers"] == 2
    assert run_command(["-q", "inspect", str(folder)]) == 0
    assert f"problem: {line}" in capsys.readouterr().out.splitlines()
    # A plan names the model by a digest of its weights.
    plan = tmp_path / "plan.json"
    asked = ["plan", "--recipe", "identity", "--model", str(folder), "--output", str(plan)]
    assert run_command(asked) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {line}"
    assert not plan.exists()


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none_is_refused(folder: Path, content: str) -> None:
    shard(folder)
    (folder / WEIGHTS_INDEX).write_text(content)
    (line,) = refused(folder)
    assert "no index of weight files" in line


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_no_numbers_are_refused_by_name(
    folder: Path, dtype: str, value: str
) -> None:
    def change(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(getattr(torch, dtype))
        tensors["language_model.model.layers.1.mlp.down_proj.weight"][3, 5] = float(value)

    configuration(folder, dtype=dtype)
    weights(folder, change)
    (line,) = refused(folder)
    assert "NaN or infinite values in model.language_model.layers.1.mlp.down_proj.weight" in line


CONFIGURATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "bitsandbytes": (
        {"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}},
        "quantization_config: weights quantized by 'bitsandbytes' cannot be read",
    ),
    "awq": ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "'awq'"),
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "'gptq'"),
    "compressed-tensors": (
        {"text_config__quantization_config": {"quant_method": "compressed-tensors"}},
        "text_config.quantization_config: weights quantized by 'compressed-tensors'",
    ),
    "fp8": ({"quantization_config": {"quant_method": "fp8"}}, "'fp8'"),
    "a dtype that there is not": (
        {"dtype": "x"},
        "config.json: dtype: 'x' is not supported; supported: float64, float32",
    ),
    "its older name": (
        {"dtype": None, "torch_dtype": "float"},
        "config.json: torch_dtype: 'float' is not supported; supported: float64, float32",
    ),
    "a decoder's dtype": ({"text_config__dtype": "x"}, "config.json: text_config.dtype: 'x' is"),
    "a tower's dtype": ({"vision_config__torch_dtype": "x"}, "config.json: vision_config."),
    "strategy": (
        {"vision_feature_select_strategy": "cls"},
        "vision_feature_select_strategy: 'cls' is not supported; supported: default, full",
    ),
    "a layer too deep": ({"vision_feature_layer": 4}, "vision_feature_layer: 4 is not allowed"),
    "a layer too early": ({"vision_feature_layer": -5}, "1 to 3, or -4 to -1"),
    "the embeddings alone": ({"vision_feature_layer": 0}, "vision_feature_layer: 0 is not allowed"),
    "one of several": ({"vision_feature_layer": [-1, 9]}, "vision_feature_layer: [-1, 9]"),
    "no layer": ({"vision_feature_layer": []}, "vision_feature_layer: [] is not allowed"),
    "a layer that is text": ({"vision_feature_layer": "last"}, "vision_feature_layer"),
    "a whole CLIP": (
        {"vision_config": {"model_type": "clip", "vision_config": {}, "text_config": {}}},
        "'clip' is not supported; supported towers: clip_vision_model, siglip_vision_model; it is a "
        "model of pictures and text: put its own vision_config here",
    ),
    "a whole SigLIP": (
        {"vision_config": {"model_type": "siglip"}},
        "put its own vision_config here",
    ),
    "an oblong tower": ({"vision_config__image_size": [32, 24]}, "vision_config.image_size"),
    "no patch": ({"vision_config__patch_size": 0}, "vision_config.patch_size: 0"),
    "less than a patch": ({"vision_config__image_size": 7}, "less than one patch of 8"),
    "no heads": (
        {"text_config__num_attention_heads": 0},
        "config.json: text_config.num_attention_heads: 0 is not allowed; one number, 1 or more",
    ),
    "no heads of the tower": (
        {"vision_config__num_attention_heads": 0},
        "vision_config.num_attention_heads: 0 is not allowed",
    ),
    "heads that do not divide the tower": (
        {"vision_config__num_attention_heads": 3},
        "vision_config.num_attention_heads: 3 do not divide the hidden_size 32",
    ),
    "a tower of no width": (
        {"vision_config__hidden_size": -96},
        "vision_config.hidden_size: -96 is not allowed",
    ),
    "grey pictures": ({"vision_config__num_channels": 1}, "vision_config.num_channels: 1 is not"),
    "an activation of the tower": (
        {"vision_config__hidden_act": "foo"},
        "vision_config.hidden_act: 'foo' is no activation that transformers knows",
    ),
    "an activation of the projector": ({"projector_hidden_act": "foo"}, "projector_hidden_act"),
    "layers without end": (
        {"text_config__num_hidden_layers": 1_000_000_000},
        "text_config.num_hidden_layers: 1000000000 is not allowed; 1 to 10000",
    ),
    "layers of the tower without end": (
        {"vision_config__num_hidden_layers": 1_000_000_000},
        "vision_config.num_hidden_layers: 1000000000 is not allowed; 1 to 10000",
    ),
    "NaN": ({"text_config__rms_norm_eps": float("nan")}, "text_config.rms_norm_eps: nan is no"),
    "infinity": (
        {"vision_config__layer_norm_eps": float("inf")},
        "vision_config.layer_norm_eps: inf is no number",
    ),
    "less than nothing": ({"text_config__rms_norm_eps": -1.0}, "rms_norm_eps: -1.0 is not allowed"),
    "another decoder": (
        {"text_config__model_type": "foo"},
        "text_config.model_type: 'foo' is not supported; supported decoders: llama, mistral, qwen2, qwen3",
    ),
    "another tower": (
        {"vision_config__model_type": "foo"},
        "vision_config.model_type: 'foo' is not supported; supported towers: clip_vision_model, ",
    ),
    "a tower that is a list": (
        {"vision_config__model_type": ["x"]},
        "vision_config.model_type: ['x'] is not supported",
    ),
    "a section that is none": ({"text_config": "llama"}, "text_config: 'llama' is no section"),
    "an image token that is none": (
        {"image_token_index": -1},
        "image_token_index: -1 is no id of a token",
    ),
    "an image token that is text": (
        {"image_token_id": 4, "image_token_index": "4"},
        "image_token_index: '4' is no id of a token",
    ),
    "two image tokens": (
        {"image_token_id": 5},
        "image_token_id: 5 and image_token_index: 4 differ; keep the one that is",
    ),
    "heads that do not divide": ({"text_config__num_key_value_heads": 3}, "num_key_value_heads"),
    "an architecture that is a number": ({"architectures": 1}, "architectures: 1 is not supported"),
    "a rope of no number": (
        {"text_config__rope_parameters__rope_theta": {}},
        "text_config.rope_parameters.rope_theta: {} is not allowed; a number above 0",
    ),
    "no layers": ({"text_config__num_hidden_layers": 0}, "num_hidden_layers"),
    "a dtype of numbers": ({"dtype": "int8"}, "dtype: 'int8' is not supported"),
    "no dtype": ({"dtype": "bogus"}, "bogus"),
    "a pickle": (
        {"transformers_weights": "adapter_model.bin"},
        "transformers_weights: 'adapter_model.bin' would have other files read",
    ),
    "fusions": ({"fusion_config": {"a": 1}}, "fusion_config"),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_that_cannot_be_read_is_refused_without_weights(
    folder: Path, name: str
) -> None:
    changes, says = CONFIGURATIONS[name]
    configuration(folder, **changes)
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelError) as caught:
        describe(str(folder))
    (line,) = caught.value.problems
    assert says in line
    assert line.startswith(str(folder))
    assert "config.json" in line
    assert "\n" not in line


def test_all_that_is_wrong_with_a_configuration_is_told_at_once(folder: Path) -> None:
    configuration(
        folder,
        quantization_config={"quant_method": "awq"},
        vision_feature_select_strategy="cls",
        text_config__hidden_act="relu",
    )
    with pytest.raises(ModelError) as caught:
        describe(str(folder))
    assert len(caught.value.problems) >= 2
    configuration(folder, vision_feature_select_strategy="default")
    with pytest.raises(ModelError) as caught:
        describe(str(folder))
    assert [line.split(": ")[1] for line in caught.value.problems] == [
        "quantization_config",
        "text_config.hidden_act",
    ]


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
@pytest.mark.parametrize("place", ["", "text_config__", "vision_config__"])
def test_an_attention_of_another_package_is_not_asked_for(
    folder: Path, key: str, place: str
) -> None:
    wanted = load(str(folder)).tensors["norm.weight"]
    path = folder / "config.json"
    config = json.loads(path.read_text())
    section = config[place.removesuffix("__")] if place else config
    section[key] = "flash_attention_2"
    path.write_text(json.dumps(config))
    model = load(str(folder))
    assert torch.equal(model.tensors["norm.weight"], wanted)
    assert model.original.config.text_config._attn_implementation == "sdpa"
