"""Keys of families' files with values that transformers reads as they are: one line each, before weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from compressor.errors import ModelError
from compressor.families import describe
from compressor.families.registry import read_processor
from compressor.schema.sections import ImageSection
from tests.conftest import shared
from tests.family_cases import Made
from tests.test_family_lighton_ocr import TestLightOnOcr
from tests.test_family_llava_next import TestLlavaNext
from tests.test_family_llava_onevision import TestLlavaOnevision
from tests.test_family_qianfan_ocr import TestQianfanOcr
from tests.test_family_qwen3_vl import TestQwen3Vl

CONFIG, SAVED = "config.json", "processor_config.json"
FAMILIES = {
    kind.family.name: kind.family
    for kind in (TestLightOnOcr, TestLlavaNext, TestLlavaOnevision, TestQianfanOcr, TestQwen3Vl)
}
# Else their cases run here once more.
del TestLightOnOcr, TestLlavaNext, TestLlavaOnevision, TestQianfanOcr, TestQwen3Vl


@pytest.fixture
def changed(pytestconfig: pytest.Config, tmp_path: Path) -> Any:
    """Return a function that gives a copy of a family's tiny model with one value changed."""

    def change(family: str, file: str, keys: str, value: Any) -> Path:
        folder = Made(FAMILIES[family], shared(pytestconfig) / "families").folder
        other = Path(shutil.copytree(folder, tmp_path / "m"))
        saved = section = json.loads((other / file).read_text())
        *above, last = keys.split(".")
        for key in above:
            section = section[key]
        section[last] = value(section.get(last)) if callable(value) else value
        (other / file).write_text(json.dumps(saved))
        return other

    return change


@pytest.mark.parametrize(
    ("family", "file", "keys", "value"),
    [
        ("qwen3_vl", CONFIG, "vision_config.num_position_embeddings", -1),
        ("qwen3_vl", CONFIG, "text_config.rope_parameters.rope_theta", -1),
        ("qwen3_vl", CONFIG, "text_config.rope_parameters.rope_theta", True),
        ("llava_next", CONFIG, "image_grid_pinpoints", [32, 64]),
        ("llava_onevision", CONFIG, "image_grid_pinpoints", [[1, 2], 3]),
        ("llava_onevision", SAVED, "image_processor.image_grid_pinpoints", None),
        ("llava_next", CONFIG, "image_grid_pinpoints", lambda sizes: sizes[::-1]),
        ("llava_next", CONFIG, "image_grid_pinpoints", lambda sizes: [*sizes, [64, 64]]),
        ("llava_next", SAVED, "image_processor.image_grid_pinpoints", lambda sizes: sizes[:2]),
        ("llava_next", SAVED, "num_additional_image_tokens", 10**9),
        ("llava_next", SAVED, "image_token", {}),
        ("qwen3_vl", SAVED, "processor_class", [1]),
        ("qwen3_vl", "tokenizer_config.json", "processor_class", 3),
        ("lighton_ocr", SAVED, "image_processor.size", None),
        ("qianfan_ocr", SAVED, "image_placeholder_token", None),
        ("qianfan_ocr", SAVED, "image_placeholder_token", ["<image>"]),
        ("qianfan_ocr", SAVED, "image_processor.min_patches", None),
        ("qianfan_ocr", SAVED, "image_processor.max_patches", None),
        ("qianfan_ocr", SAVED, "image_processor.size", None),
    ],
)
def test_a_value_that_is_none_is_told_with_its_key(
    family: str, file: str, keys: str, value: Any, changed: Any
) -> None:
    with pytest.raises(ModelError) as caught:
        read_processor(str(changed(family, file, keys, value)))
    (line, *_) = caught.value.problems
    assert keys.rpartition(".")[2] in line
    assert len(line) < 600


def test_a_budget_beyond_all_tiles_is_told_by_the_recipes_key(changed: Any) -> None:
    folder = changed("qianfan_ocr", SAVED, "image_processor.min_patches", 1)
    with pytest.raises(ModelError) as caught:
        describe(str(folder), budget=ImageSection(max_tiles=300))
    assert caught.value.problems == ("image.max_tiles: 300 is too many; 256 are allowed",)


@pytest.mark.parametrize("keys", ["min_pixels", "max_pixels"])
def test_older_keys_of_pixels_are_told_by_their_names_alone(keys: str, changed: Any) -> None:
    folder = changed("qwen3_vl", SAVED, f"image_processor.{keys}", -3)
    with pytest.raises(ModelError) as caught:
        read_processor(str(folder))
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{folder / SAVED}: image_processor: {keys}: -3: ")
