"""PaddleOCR-VL goes through the cases of every family; what it shares with Qwen2-VL is tested there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.compressed import plain
from compressor.errors import DataError, ModelError
from compressor.families import describe, load
from compressor.families.documents.paddleocr_vl import PaddleOcrVlFamily
from compressor.families.folder import WEIGHTS
from compressor.families.registry import read_processor
from compressor.schema.sections import ImageSection
from tests.built import build_vision
from tests.family_cases import FamilyCases, Made, random_picture
from tests.test_family_qwen2_vl import LEAST, MERGE, MOST, PATCH, TURNED
from tests.tiny_families import (
    TinyFamily,
    byte_tokenizer,
    changed_model,
    template_of,
    text_section,
    write_model,
)
from vtcompress.stages.checks.processor import read_back
from vtcompress.stages.checks.rewrite import rewrite_prompt

IMAGE, START, END = "<|IMAGE_PLACEHOLDER|>", "<|IMAGE_START|>", "<|IMAGE_END|>"
SIDE = 5 * PATCH  # the grid that places are learned for, 5 x 5, is that of no picture


def processor_of(**images: Any) -> Any:
    from transformers import PaddleOCRVLProcessor
    from transformers.models.paddleocr_vl import image_processing_pil_paddleocr_vl as theirs

    size = {"shortest_edge": LEAST, "longest_edge": MOST}
    return PaddleOCRVLProcessor(
        image_processor=theirs.PaddleOCRVLImageProcessorPil(
            **{"patch_size": PATCH, "merge_size": MERGE, "size": size} | images
        ),
        tokenizer=byte_tokenizer(START, END, names={"image_token": IMAGE}),
        chat_template=template_of(START + IMAGE + END),
    )


def make(folder: Path, **text: Any) -> None:
    from transformers import PaddleOCRVLConfig, PaddleOCRVLForConditionalGeneration

    processor = processor_of()
    ids = processor.tokenizer.convert_tokens_to_ids
    config = PaddleOCRVLConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
        },
        text_config=text_section(head_dim=16, rope_parameters=TURNED, **text),
        image_token_id=ids(IMAGE),
        vision_start_token_id=ids(START),
        vision_end_token_id=ids(END),
        video_token_id=0,
    )
    write_model(PaddleOCRVLForConditionalGeneration, config, processor, folder)


def whole(made: Any) -> np.ndarray:
    """Return a picture [1, 3, H, W] that the processor cut into patches, row by row."""
    ((_, high, wide),) = made["image_grid_thw"].tolist()
    lines = made["pixel_values"].reshape(high, wide, 3, PATCH, PATCH)
    rows = [np.concatenate(list(line), axis=-1) for line in lines]
    return np.concatenate(rows, axis=-2)[None]


class TestPaddleOcrVl(FamilyCases):
    family = TinyFamily("paddleocr_vl", make, grid=None, pixels=whole)

    def test_a_narrow_picture_is_first_enlarged_to_a_cell(self, made: Made) -> None:
        runtime, _ = made.runtime("identity", "torch")
        narrow, plain = runtime.look([random_picture((1, 15), 0), made.pictures[0]])
        assert (narrow.cells, plain.cells) == ((15, 1), (4, 6))
        with pytest.raises(DataError, match="1 x 400 pixels: one edge is more than 200 times"):
            runtime.look([random_picture((1, 400), 0)])

    @pytest.mark.parametrize("older", [True, False])
    def test_a_budget_is_kept_whatever_the_keys_of_pixels_are(
        self, made: Made, older: bool, tmp_path: Path
    ) -> None:
        """As published, the processor's file has the older ones."""
        folder = changed_model(made.folder, tmp_path / "m")
        if older:
            file = folder / "processor_config.json"
            images = json.loads(file.read_text()).pop("image_processor")
            del images["size"]
            images |= {"min_pixels": LEAST, "max_pixels": MOST}
            (folder / "preprocessor_config.json").write_text(json.dumps(images))
            file.unlink()
        budget = ImageSection(max_pixels=MOST // 2)
        read = read_processor(str(folder), budget=budget)
        assert describe(str(folder)).visual_tokens == made.loaded.facts.visual_tokens == 97
        assert describe(str(folder), budget=budget).visual_tokens == read.facts.visual_tokens == 69
        seen = read_back(read.processor, folder, read.facts).images(random_picture((90, 90), 0))
        assert seen.rows == 16

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"vision_config": {"model_type": "siglip_vision_model"}}, "vision_config.model_type: 'siglip"),
            ({"vision_config": {"num_channels": 1}}, "vision_config.num_channels: 1 is not supported"),
            ({"vision_config": {"spatial_merge_size": 0}}, "vision_config.spatial_merge_size: 0 is not all"),
            ({"vision_config": {"num_attention_heads": 16}}, "vision_config.num_attention_heads: 16 heads "
             "of a width of 32: a head's width must be a multiple of 4"),
            ({"vision_config": {"num_hidden_layers": 4}}, "vision_config.num_hidden_layers: 4, but the wei"),
            ({"text_config": {"model_type": "llama"}}, "text_config.model_type: 'llama' is not supported; "
             "supported decoders: paddleocr_vl_text"),
            ({"text_config": {"head_dim": 32}}, "text_config.rope_parameters.mrope_section: [2, 3, 3] is no"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_read_is_refused_by_its_key(
        self, made: Made, changes: dict[str, Any], words: str, tmp_path: Path
    ) -> None:
        other = changed_model(made.folder, tmp_path / "m", **changes)
        with pytest.raises(ModelError) as caught:
            describe(str(other))
        assert caught.value.problems[0].startswith(f"{other / 'config.json'}: {words}"), (
            caught.value
        )

    def test_it_is_read_without_a_word_of_transformers(
        self, made: Made, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """It would tell of the sections of the frequencies as of a key that it does not know."""
        describe(str(made.folder))
        assert capfd.readouterr() == ("", "")

    def test_keys_as_published_are_read(self, made: Made, tmp_path: Path) -> None:
        """Those of the decoder beside the others, and the tower under the name of the whole."""
        other = changed_model(made.folder, tmp_path / made.folder.name)
        raw = json.loads((other / "config.json").read_text())
        text = raw.pop("text_config")
        raw = {**{k: v for k, v in text.items() if k != "model_type"}, **raw}
        raw["vision_config"]["model_type"] = "paddleocr_vl"
        (other / "config.json").write_text(json.dumps(raw))
        assert describe(str(other)) == made.loaded.facts
        (other / "config.json").write_text(json.dumps({**raw, "rms_norm_eps": -1.0}))
        with pytest.raises(ModelError, match=r"config\.json: rms_norm_eps: -1\.0 is not allowed"):
            describe(str(other))

    def test_tensors_of_published_files_that_nothing_reads_are_passed_over(
        self, made: Made, tmp_path: Path
    ) -> None:
        other = changed_model(made.folder, tmp_path / made.folder.name)
        tensors = load_file(other / WEIGHTS)
        assert "mlp_AR.linear_1.weight" in tensors
        for name in (
            "vision_model.head.probe",
            "vision_model.embeddings.packing_position_embedding.weight",
        ):
            tensors[f"visual.{name}"] = torch.zeros(4)
        save_file(tensors, other / WEIGHTS, metadata={"format": "pt"})
        assert load(str(other)).facts == made.loaded.facts


def test_a_decoder_with_biases_everywhere_is_the_original_within_rounding(tmp_path: Path) -> None:
    make(tmp_path, use_bias=True, num_hidden_layers=2)
    model = load(str(tmp_path))
    known = model.facts.decoder
    assert (known.qkv_bias, known.o_bias, known.mlp_bias) == (True, True, True)
    with rewrite_prompt() as prompt:
        report = prompt.compare(prompt.read(model), plain(model))
    assert report.passed, report.failures
    assert report.pixels == 0.0
    assert max(report.embeds, report.logits, report.runtime) < 5e-6


@pytest.mark.matrix
def test_the_tower_of_real_width_builds_for_tensorrt_rtx(tmp_path: Path) -> None:
    """Two of 27 layers, float16, at any size within 1,280 visual tokens."""
    from transformers import PaddleOCRVLConfig

    config = PaddleOCRVLConfig(vision_config={"num_hidden_layers": 2})
    family = PaddleOcrVlFamily()
    assert family.cell(config) == 28
    build_vision(family, config, 1280, tmp_path)
