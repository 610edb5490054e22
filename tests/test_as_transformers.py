"""A model folder is read as transformers reads it: heads, towers and dtypes give its own numbers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

import vtcompress
from compressor.compressed import (
    CompressedModel,
    compress,
    load_compressed,
    naive_decoder,
    save_compressed,
)
from compressor.decoder import Decoder
from compressor.errors import ArtifactError, ModelError
from compressor.families import LoadedModel, describe, load
from compressor.families.folder import WEIGHTS
from compressor.plan.edits import identity_plan
from export.backends.torch_model import TorchSession
from export.session.feeds import CallRows
from tests.models import WORDS, Variant, make_llava, make_questions

TOLERANCE = 1e-4
HEAD = "language_model.lm_head.weight"
EMBEDDING = "language_model.model.embed_tokens.weight"
TEXT = (5, 7, 8, 9, 11, 13, 15)


def theirs(folder: Path) -> np.ndarray:
    """Return transformers' own logits behind a text, by its own loading."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([TEXT])).logits
    return np.asarray(logits[0, -1])


def ours(model: CompressedModel, decoder: Decoder | None = None) -> np.ndarray:
    """Return the logits of a compressed model, or of another decoder on its embeddings, behind the text."""
    if decoder is not None:
        model = CompressedModel(
            model.plan.naive(), decoder, model.embedding, model.vision, None, None
        )
    session = TorchSession(model)
    ids = np.array([TEXT])
    places = (np.zeros((1, 0), np.int64), np.arange(len(TEXT))[None])
    nothing = np.zeros((1, 0, model.embedding.shape[1]), np.float32)
    logits, _ = session.decode(
        CallRows(nothing, session.embed(ids), *places), session.empty_past(1)
    )
    return np.asarray(logits[0, -1])


def scaled(tensors: dict[str, torch.Tensor]) -> None:
    tensors[HEAD] = tensors[EMBEDDING].flip(0).clone()


def equal(tensors: dict[str, torch.Tensor]) -> None:
    tensors[HEAD] = tensors[EMBEDDING].clone()


def headless(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[HEAD]


def tableless(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[EMBEDDING]


HEADS: dict[str, tuple[bool, Callable[[dict[str, torch.Tensor]], None], bool]] = {
    "asked for, another head in the file": (True, scaled, False),
    "asked for, the same head in the file": (True, equal, True),
    "asked for, no head in the file": (True, headless, True),
    "asked for, no table in the file": (True, tableless, True),
    "not asked for, another head in the file": (False, scaled, False),
    "not asked for, the same head in the file": (False, equal, False),
}


@pytest.fixture(params=HEADS)
def headed(
    request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path
) -> tuple[Path, bool, np.ndarray]:
    """Return a folder, whether its embedding is its head, and transformers' logits."""
    asked, change, tied = HEADS[request.param]
    folder = Path(shutil.copytree(tiny_model, tmp_path / "headed"))
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = asked
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder, tied, theirs(folder)


def test_the_head_is_the_files_in_every_form_of_the_model(
    headed: tuple[Path, bool, np.ndarray], tmp_path: Path
) -> None:
    folder, tied, wanted = headed
    facts = describe(str(folder))
    assert facts.decoder.tied_embeddings is tied
    model = load(str(folder))
    assert model.facts == facts
    small = compress(model, identity_plan(facts, model.digest))
    saved = tmp_path / "saved"
    saved.mkdir()
    save_compressed(model, small.plan, saved)
    again = load_compressed(saved)
    for found in (
        ours(small),
        ours(again),
        ours(small, naive_decoder(small)),
        ours(again, naive_decoder(again)),
    ):
        assert np.abs(found - wanted).max() <= TOLERANCE


LAYOUTS: dict[str, dict[str, str]] = {
    "tower of before": {"vision_tower.": "vision_tower.vision_model."},
    "of transformers 4.52": {
        "language_model.lm_head": "lm_head",
        "language_model.model.": "model.language_model.",
        "vision_tower.": "model.vision_tower.vision_model.",
        "multi_modal_projector": "model.multi_modal_projector",
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_of_older_layouts_are_neither_missing_nor_foreign(
    layout: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "older"))

    def renamed(name: str) -> str:
        for old, new in LAYOUTS[layout].items():
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name

    tensors = {renamed(name): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    found, wanted = load(str(folder)), load(str(tiny_model))
    assert found.facts.decoder == wanted.facts.decoder
    names = found.original.state_dict()
    assert all(torch.equal(t, names[n]) for n, t in wanted.original.state_dict().items())


def test_a_plan_that_takes_the_embedding_for_the_head_is_refused_where_it_is_not(
    tiny_model: Path,
) -> None:
    """Plans of before were made so."""
    model = load(str(tiny_model))
    dims = model.facts.decoder.model_copy(update={"tied_embeddings": True})
    facts = model.facts.model_copy(update={"decoder": dims})
    with pytest.raises(ArtifactError, match="the weights have a head of their own"):
        compress(model, identity_plan(facts, model.digest))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model whose tower's side, 30 pixels, is no multiple of its patch of 8."""
    variant = Variant(tower="siglip", strategy="full", feature_layer=-1, side=30, layers=2)
    return make_llava(tmp_path_factory.mktemp("odd"), variant)


def test_a_side_that_is_no_multiple_of_the_patch_runs_as_in_transformers(
    odd: Path, tmp_path: Path
) -> None:
    data = make_questions(tmp_path / "q", count=2)
    recipe = vtcompress.load_recipe("identity").override(
        {"model.id": str(odd), "validate.data": str(data)}
    )
    manifest = vtcompress.export(recipe, tmp_path / "out", bench_rounds=0)
    assert (manifest.model.visual_tokens, manifest.model.token_grid) == (9, (3, 3))
    assert manifest.loss is not None
    assert manifest.loss.overall.kl < 1e-6
    runtime = vtcompress.Runtime.load(tmp_path / "out")
    found = runtime.answer("what is this", [data.parent / "0.png"], max_new_tokens=1).first_logits

    processor = AutoProcessor.from_pretrained(odd)
    content = [
        {"type": "image", "url": str(data.parent / "0.png")},
        {"type": "text", "text": "what is this"},
    ]
    batch = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert int((batch["input_ids"] == WORDS.index("<image>")).sum()) == 9
    model = LlavaForConditionalGeneration.from_pretrained(odd, dtype=torch.float32).eval()
    with torch.inference_mode():
        wanted = model(**batch).logits[0, -1].numpy()
    assert np.abs(found - wanted).max() <= TOLERANCE


@pytest.mark.parametrize(("size", "side"), [(24, 3), (32, 4), (48, 6)])
def test_another_image_size_of_such_a_tower_is_interpolated(
    odd: Path, size: int, side: int
) -> None:
    model = load(str(odd), image_size=size)
    assert model.facts.token_grid == (side, side)
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        states = model.original.model.vision_tower(
            pixels, output_hidden_states=True, interpolate_pos_encoding=True
        ).hidden_states[-1]
        wanted = model.original.model.multi_modal_projector(states)
        assert torch.allclose(model.vision(pixels), wanted, atol=1e-5)
    with pytest.raises(ModelError, match="an image size of 36 is no multiple"):
        load(str(odd), image_size=36)


@pytest.mark.parametrize("named", [True, False], ids=["named", "not named"])
@pytest.mark.parametrize("dtype", ["float64", "float8_e4m3fn", "float8_e5m2"])
def test_other_dtypes_are_read_as_transformers_reads_them(
    dtype: str, named: bool, tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / dtype))
    config = json.loads((folder / "config.json").read_text())
    for section in (config, config["text_config"], config["vision_config"]):
        section.pop("dtype", None)
    if named:
        config["dtype"] = dtype
    (folder / "config.json").write_text(json.dumps(config))
    kind = getattr(torch, dtype)
    tensors = {name: tensor.to(kind) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    model = load(str(folder))
    assert model.facts.dtype == dtype
    small = compress(model, identity_plan(model.facts, model.digest))
    assert np.abs(ours(small) - theirs(folder)).max() <= TOLERANCE
    saved = tmp_path / "saved"
    saved.mkdir()
    save_compressed(model, small.plan, saved)
    assert {t.dtype for t in load_file(saved / "compressed.safetensors").values()} == {kind}
    assert np.abs(ours(load_compressed(saved)) - theirs(folder)).max() <= TOLERANCE


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedModel:
    return load(str(tiny_model))


def save(model: LoadedModel, folder: Path) -> Path:
    save_compressed(model, identity_plan(model.facts, model.digest), folder)
    return folder


def test_a_compressed_folder_is_no_model_to_this_tool_nor_to_transformers(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    """By no class: each would draw the tower at random, and a configuration's defaults are a model of 7B."""
    folder = save(loaded, tmp_path)
    with pytest.raises(ModelError) as caught:
        load(str(folder))
    (line,) = caught.value.problems
    assert (
        "`vtcompress compress` wrote, not a model; start `vtcompress export --compressed`" in line
    )
    with pytest.raises(ValueError, match="vtcompress"):
        AutoConfig.from_pretrained(folder)
    with pytest.raises(OSError, match="no file named model"):
        LlavaForConditionalGeneration.from_pretrained(folder)


def test_a_compressed_folder_of_before_is_read_and_is_no_model_either(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    new, old = save(loaded, tmp_path), tmp_path / "old"
    old.mkdir()
    for path in new.iterdir():
        if path.is_file():
            shutil.copy(path, old)
    (old / "original_config.json").replace(old / "config.json")
    (old / "compressed.safetensors").replace(old / WEIGHTS)
    assert np.array_equal(ours(load_compressed(old)), ours(load_compressed(new)))
    with pytest.raises(ModelError, match="--compressed"):
        describe(str(old))


def test_a_plan_beside_a_model_does_not_make_it_a_compressed_one(
    loaded: LoadedModel, tiny_model: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "planned"))
    identity_plan(loaded.facts, loaded.digest).save(folder / "plan.json")
    assert describe(str(folder)).decoder == loaded.facts.decoder


def test_a_compressed_folder_keeps_how_the_model_asks_to_be_generated_with(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    folder = save(loaded, tmp_path)
    kept: dict[str, Any] = json.loads((folder / "generation_config.json").read_text())
    assert kept["eos_token_id"] == WORDS.index("</s>")
