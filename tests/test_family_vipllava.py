"""ViP-LLaVA goes through the cases of every family."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.errors import ModelError
from compressor.families import describe, load
from compressor.families.folder import WEIGHTS
from compressor.families.registry import read_processor
from tests.family_cases import FamilyCases, Made
from tests.test_family_llava import processor_of
from tests.tiny_families import (
    IMAGE,
    PATCH,
    SIDE,
    TinyFamily,
    clip_section,
    text_section,
    write_model,
)

FEATURE_LAYERS = [-2, -5, -8, -11, 6]


def make(folder: Path) -> None:
    from transformers import VipLlavaConfig, VipLlavaForConditionalGeneration

    processor = processor_of("default")
    config = VipLlavaConfig(
        vision_config={"model_type": "clip_vision_model", **clip_section(layers=11)},
        text_config={"model_type": "llama", **text_section()},
        image_token_index=processor.tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=FEATURE_LAYERS,
    )
    write_model(VipLlavaForConditionalGeneration, config, processor, folder)


class TestVipLlava(FamilyCases):
    family = TinyFamily("vipllava", make, grid=(SIDE // PATCH, SIDE // PATCH))

    def test_each_feature_layer_is_read(self, made: Made) -> None:
        """Guards the cases: of layers with equal features two could be swapped."""
        pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        model = made.loaded
        with torch.inference_mode():
            wanted = model.original.get_image_features(pixels).pooler_output
            assert (model.vision(pixels) - wanted).abs().max() <= 1e-5
            for place in range(len(FEATURE_LAYERS)):
                model.vision.feature_layers = tuple(FEATURE_LAYERS[place:] + FEATURE_LAYERS[:place])
                assert ((model.vision(pixels) - wanted).abs().max() > 0.1) == (place > 0)
        model.vision.feature_layers = tuple(FEATURE_LAYERS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("vipllava") / "model"
    make(made)
    return made


@pytest.fixture
def changed(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies the model with keys of a JSON file changed; None: taken out."""

    def copy(file: str = "config.json", **changes: Any) -> Path:
        other = Path(shutil.copytree(folder, tmp_path / "changed", dirs_exist_ok=True))
        content = json.loads((other / file).read_text())
        for dotted, value in changes.items():
            *path, last = dotted.split("__")
            section = content
            for key in path:
                section = section[key]
            section[last] = value
            if value is None:
                del section[last]
        (other / file).write_text(json.dumps(content))
        return other

    return copy


def refused(folder: Path) -> tuple[str, ...]:
    """Return why a model is refused, without its file's name; no weights are read."""
    with pytest.raises(ModelError) as caught:
        describe(str(folder))
    return tuple(line.removeprefix(f"{folder / 'config.json'}: ") for line in caught.value.problems)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vision_feature_layer": [-2, -13]}, "vision_feature_layer: [-2, -13] is not allowed; the tower "
         "has 11 layers: 1 to 11, or -12 to -1"),
        ({"vision_feature_layer": [12]}, "vision_feature_layer: [12] is not allowed; the tower has 11"),
        ({"vision_feature_layer": []}, "vision_feature_layer: [] is not allowed; the tower has 11"),
        ({"architectures": ["LlavaForConditionalGeneration"]}, "architectures: ['LlavaForConditional"
         "Generation'] is not supported; only VipLlavaForConditionalGeneration is: give a checkpoint"),
        ({"projector_layernorm_eps": -1e-5}, "projector_layernorm_eps: -1e-05 is not allowed; one number"),
        ({"projector_layernorm_eps": "x"}, "projector_layernorm_eps: 'x' is not allowed; one number"),
        ({"projector_hidden_act": "none"}, "projector_hidden_act: 'none' is no activation that transfor"),
        ({"text_config__model_type": "gemma"}, "text_config.model_type: 'gemma' is not supported; suppo"),
        ({"vision_config__model_type": "pixtral"}, "vision_config.model_type: 'pixtral' is not supported"),
        ({"mm_vision_tower": "clip"}, "mm_vision_tower: the layout of the authors' own code, whose tens"),
        ({"image_token_index": -1}, "image_token_index: -1 is no id of a token; give that of the image"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_its_key(
    changes: dict[str, Any], words: str, changed: Callable[..., Path]
) -> None:
    lines = refused(changed(**changes))
    assert lines[0].startswith(words), lines


def test_the_older_name_of_the_feature_layers_is_read(changed: Callable[..., Path]) -> None:
    folder = changed(vision_feature_layer=None, vision_feature_layers=[-3, 6])
    (line,) = refused(folder)  # the projector in the file is wider than two layers
    assert "projector_layernorm.weight (shape [160], expected [64])" in line


@pytest.mark.parametrize("lost", ["multi_modal_projector.projector_layernorm.weight",
                                  "vision_tower.encoder.layers.9.mlp.fc1.weight"])  # fmt: skip
def test_a_missing_tensor_is_refused_before_weights_are_read(
    lost: str, changed: Callable[..., Path]
) -> None:
    folder = changed()
    tensors = load_file(folder / WEIGHTS)
    (name,) = [name for name in tensors if name.endswith(lost)]
    del tensors[name]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    assert lost in " ".join(refused(folder))


@pytest.mark.parametrize(
    ("top", "text", "tied"),
    [(True, False, True), (True, True, True), (False, True, False), (False, False, False)],
)
def test_the_embedding_is_the_head_where_the_tensors_say_so(
    top: bool, text: bool, tied: bool, changed: Callable[..., Path]
) -> None:
    """The flag of the text section alone ties nothing: transformers heeds the top's."""
    from transformers import VipLlavaForConditionalGeneration

    folder = changed(tie_word_embeddings=top, text_config__tie_word_embeddings=text)
    tensors = load_file(folder / WEIGHTS)
    head = next(name for name in tensors if name.endswith("lm_head.weight"))
    table = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    # A head of its own in the file is the head, whatever is asked for.
    assert describe(str(folder)).decoder.tied_embeddings is False
    del tensors[head]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    if not tied:
        assert "lm_head.weight" in " ".join(refused(folder))
        return
    model = load(str(folder))
    assert model.facts == describe(str(folder))
    assert model.facts.decoder.tied_embeddings
    assert torch.equal(model.tensors["lm_head.weight"], tensors[table])
    theirs = VipLlavaForConditionalGeneration.from_pretrained(folder)
    assert torch.equal(theirs.lm_head.weight, tensors[table])


def test_what_older_processors_lack_is_taken_from_the_configuration(
    folder: Path, changed: Callable[..., Path]
) -> None:
    keys = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
    older = changed("processor_config.json", **dict.fromkeys(keys))
    found, wanted = (read_processor(str(f)).processor for f in (older, folder))
    assert [getattr(found, key) for key in keys] == [PATCH, "default", 1]
    assert [getattr(wanted, key) for key in keys] == [PATCH, "default", 1]
    with pytest.raises(ModelError, match="gives 17 image tokens for a picture"):
        read_processor(str(changed("processor_config.json", vision_feature_select_strategy="full")))
