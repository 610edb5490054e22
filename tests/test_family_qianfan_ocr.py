"""Qianfan-OCR goes through the cases of every family; what it shares with InternVL is tested there."""

import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import QianfanOCRProcessor

from compressor.errors import ModelError
from compressor.families import describe, load
from compressor.families.folder import WEIGHTS
from tests.family_cases import FamilyCases, Made
from tests.test_family_internvl import GRID, NAMES, TILE, VISION
from tests.tiny_families import (
    IMAGE,
    TinyFamily,
    byte_tokenizer,
    changed_model,
    template_of,
    text_section,
    write_model,
)

FUSED = "vision_model.encoder.layers.{}.attn.qkv.{}"


def processor_of() -> Any:
    """Return its processor as transformers has it, with a template that writes no image token."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    names = {name: token for name, token in NAMES.items() if name != "video_token"}
    return QianfanOCRProcessor(
        image_processor=GotOcr2ImageProcessorPil(**TILE),
        tokenizer=byte_tokenizer(names=names),
        image_seq_length=GRID**2,
        chat_template=template_of(IMAGE),
    )


def make(folder: Path) -> None:
    from transformers import QianfanOCRConfig, QianfanOCRForConditionalGeneration

    processor = processor_of()
    config = QianfanOCRConfig(
        vision_config=VISION,
        text_config={"model_type": "qwen3", "head_dim": 24, **text_section()},
        image_token_id=processor.image_token_id,
        image_seq_length=GRID**2,
    )
    write_model(QianfanOCRForConditionalGeneration, config, processor, folder)


class TestQianfanOcr(FamilyCases):
    family = TinyFamily("qianfan_ocr", make, grid=(GRID, GRID))

    def test_its_template_writes_the_image_token_and_encodes_as_before(self, made: Made) -> None:
        untouched = processor_of()
        assert untouched.image_placeholder_token == IMAGE != untouched.image_token
        content = [{"type": "image", "image": picture} for picture in made.pictures]
        turn = {"role": "user", "content": [*content, {"type": "text", "text": "what is it"}]}
        options: dict[str, Any] = {"tokenize": True, "return_dict": True}
        wanted = untouched.apply_chat_template([turn], **options)["input_ids"]
        found = made.loaded.processor.apply_chat_template([turn], **options)["input_ids"]
        assert found == wanted
        runtime, _ = made.runtime("identity", "onnxruntime")
        prompt = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a"}]}
        assert runtime.prompter.render([prompt]) == "<IMG_CONTEXT>a>"

    def test_names_of_the_authors_are_read_and_queries_keys_and_values_in_one_tensor(
        self, made: Made, tmp_path: Path
    ) -> None:
        """transformers writes one word too much into the decoder's names."""
        other = changed_model(made.folder, tmp_path / "m")
        stored = load_file(other / WEIGHTS)
        assert FUSED.format(0, "weight") in stored
        tensors = {
            re.sub(r"^(language_model\.model\.)encoder\.", r"\1", name): tensor
            for name, tensor in stored.items()
        }
        assert tensors.keys() != stored.keys()
        save_file(tensors, other / WEIGHTS, metadata={"format": "pt"})
        assert describe(str(other)) == made.loaded.facts.model_copy(update={"name": "m"})
        found, wanted = load(str(other)).original.state_dict(), made.loaded.original.state_dict()
        assert all(tensor.equal(found[name]) for name, tensor in wanted.items())

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ("short", "weights are of another shape than config.json says: model.vision_tower.layers.1."
             "attention.q_proj.bias and model.vision_tower.layers.1.attention.k_proj.bias and model."
             "vision_tower.layers.1.attention.v_proj.bias (shape [95], expected [96])"),
            ("gone", "weights are missing that config.json asks for: model.vision_tower.layers.1.attention."
             "k_proj.bias"),
            ("layer", "config.json: vision_config.num_hidden_layers: 3, but the weights are those of 2 l"),
        ],
    )  # fmt: skip
    def test_a_tensor_of_three_is_missed_by_the_names_of_the_three(
        self, made: Made, tmp_path: Path, change: str, words: str
    ) -> None:
        other = changed_model(made.folder, tmp_path / "m")
        tensors, name = load_file(other / WEIGHTS), FUSED.format(1, "bias")
        match change:
            case "short":
                tensors[name] = tensors[name][:-1].clone()
            case "gone":
                del tensors[name]
            case _:
                tensors = {
                    n: t for n, t in tensors.items() if "vision_model.encoder.layers.2" not in n
                }
        save_file(tensors, other / WEIGHTS, metadata={"format": "pt"})
        with pytest.raises(ModelError) as caught:
            describe(str(other))
        assert words in str(caught.value)
