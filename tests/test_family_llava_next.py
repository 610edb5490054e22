"""LLaVA-NeXT goes through the cases of every family; what it shares with OneVision is tested here."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vtcompress
from compressor.arrangement import Unpadded
from compressor.compressed import load_compressed, plain, save_compressed
from compressor.errors import DataError, ModelError, PlanError
from compressor.families import describe, load
from compressor.families.llava.arranged import ArrangedFamily
from compressor.families.llava.llava_next import LlavaNextFamily
from compressor.families.registry import read_processor
from compressor.plan.edits import identity_plan
from compressor.planner import make_plan
from compressor.samples.prompts import encode_question
from compressor.schema.sections import ImageSection
from export.backends.tensorrt.maker import Maker
from export.backends.tensorrt.targets import TARGETS
from export.graphs.limits import limits_of
from export.graphs.profiles import profiles_of
from export.graphs.spec import vision_graph
from export.writer.weights import SharedWeights
from export.writer.write import export_vision, save_graph
from tests.facts import dims, facts
from tests.family_cases import FamilyCases, Made, random_picture
from tests.tiny_families import (
    IMAGE,
    PATCH,
    SIDE,
    TinyFamily,
    byte_tokenizer,
    changed_model,
    clip_section,
    template_of,
    text_section,
    write_model,
)
from vtcompress.stages.checks.rewrite import rewrite_prompt
from vtcompress.stages.models import models

PINPOINTS = [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]
CELLS = SIDE // PATCH


def pinpoints(grids: list[list[int]]) -> list[list[int]]:
    return [[rows * SIDE, columns * SIDE] for rows, columns in grids]


def processor_of() -> Any:
    from transformers import LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": SIDE},
            crop_size={"height": SIDE, "width": SIDE},
            image_grid_pinpoints=pinpoints(PINPOINTS),
        ),
        tokenizer=byte_tokenizer(IMAGE),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template_of(IMAGE),
    )


def make(folder: Path, **changes: Any) -> None:
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    processor = processor_of()
    config = LlavaNextConfig(
        vision_config={"model_type": "clip_vision_model", **clip_section()},
        text_config={"model_type": "llama", **text_section(**changes)},
        image_token_index=processor.tokenizer.convert_tokens_to_ids(IMAGE),
        image_grid_pinpoints=pinpoints(PINPOINTS),
        image_seq_length=CELLS**2,
    )
    write_model(LlavaNextForConditionalGeneration, config, processor, folder)


def vision_engine(
    family: ArrangedFamily, config: Any, rows: Unpadded, tiles: int, folder: Path
) -> dict[str, tuple[int, int]]:
    """Build the vision graph of a configuration in float16; return least and most of its named axes."""
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")
    size, tokens, _ = family.visual_grid(config, None)
    hidden = config.text_config.hidden_size
    grids = [(high // size, wide // size) for high, wide in config.image_grid_pinpoints]
    model = facts(
        dims(hidden=hidden, max_positions=32768),
        visual_tokens=tokens,
        token_grid=None,
        image_size=size,
        most_tiles=tiles,
        arrangement=rows,
        most_rows=rows.most_rows(grids),
    )
    torch.manual_seed(0)
    vision = family.vision(config, image_size=size).half()
    spec = vision_graph(model, "float16")
    with SharedWeights(folder) as weights:
        graph = export_vision(SimpleNamespace(vision=vision), spec)
        save_graph(graph, folder / spec.file, weights)
    (profile,) = profiles_of(
        spec, limits_of(vtcompress.load_recipe("identity").export.profiles, model)
    )
    engine = folder / "vision.engine"
    maker = Maker.of(TARGETS["tensorrt-rtx"], ["SM86"])
    maker.build_engine(folder / spec.file, [profile], spec, engine, b"")
    assert engine.stat().st_size > (folder / "weights.bin").stat().st_size
    return {axis: (profile.least[axis], profile.most[axis]) for axis in profile.most}


class TestLlavaNext(FamilyCases):
    family = TinyFamily("llava_next", make, grid=None)

    def test_what_a_picture_becomes(self, made: Made) -> None:
        known = made.loaded.facts
        assert (known.most_tiles, known.tile_rows, known.picture_rows) == (5, 16, 16 + 8 * 9)
        runtime, _ = made.runtime("identity", "torch")
        seen = runtime.look(made.pictures)
        assert [(one.grid, len(one.pixels)) for one in seen] == [((1, 2), 3), ((2, 1), 3)]
        # Of 45 x 30 pixels 6 of 8 columns are no border; of 28 x 61 it is less than a cell on either side.
        assert [one.rows for one in seen] == [16 + 4 * (6 + 1), 16 + 8 * (4 + 1)]

    def test_tiles_that_complete_a_batch_are_never_fed(self, made: Made) -> None:
        pictures, model = [random_picture((90, 90), 0), made.pictures[0]], made.loaded
        prompt = encode_question(model.processor, "what", pictures, "p", model.facts)
        assert prompt.inputs["pixel_values"].shape[:2] == (2, 5)
        assert [len(tiles) for tiles in prompt.pixels] == [5, 3]
        runtime, spy = made.runtime("identity", "torch")
        spy.clear()
        runtime.answer("what", pictures, max_new_tokens=1)
        assert spy.pictures == 5 + 3

    def test_a_window_of_rows_that_are_arranged_is_refused_by_name(self, made: Made) -> None:
        with pytest.raises(PlanError) as caught:
            made.plan("window")
        assert caught.value.problems == (
            "compress[0].yopo.window: 3 needs a token grid, and that of tiny-llava_next is another for each "
            "picture; leave the window out",
        )
        (row,) = (one for one in models() if one["family"] == self.family.name)
        assert {m["name"]: m["without"] for m in row["methods"] if m["why"]} == {
            "yopo": ["window"],
            "wico": ["weights"],
            "wico_plus": ["layer"],
            **{name: ["keep"] for name in ("pool", "divprune", "visionzip", "mod")},
        }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("next") / "model"
    make(made, num_hidden_layers=2)
    return made


def test_a_budget_of_tiles_is_kept_by_the_original_and_by_the_runtime(folder: Path) -> None:
    for most, tiles, rows in ((2, 3, 16 + 8 * 5), (3, 4, 16 + 12 * 5), (4, 5, 16 + 8 * 9)):
        model = load(str(folder), budget=ImageSection(max_tiles=most))
        assert (model.facts.most_tiles, model.facts.budget) == (tiles, ImageSection(max_tiles=most))
        assert model.facts.picture_rows == rows
        with rewrite_prompt() as prompt:
            reading = prompt.read(model)
            report = prompt.compare(reading, plain(model))
        assert report.passed, report.failures
        assert report.pixels == 0.0
        assert max(report.embeds, report.logits, report.runtime) < 5e-6
        assert len(reading.seen[0].pixels) <= tiles
    for image, words in (
        ({"max_pixels": 9}, "image.max_pixels: is nothing for pictures of the family 'llava_next'; it takes "
         "image.max_tiles"),
        ({"max_tiles": 1}, "image.max_tiles: 1 leaves none of the grids of tiles that the image processor of "
         "the model has; take 2 or more"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match=re.escape(words)):
            describe(str(folder), budget=ImageSection(**image))
    with pytest.raises(
        ModelError, match=r"export\.image_size: 96 is nothing .* take image\.max_tiles"
    ):
        describe(str(folder), image_size=96)


def test_a_compressed_folder_keeps_its_budget(folder: Path, tmp_path: Path) -> None:
    model = load(str(folder), budget=ImageSection(max_tiles=2))
    save_compressed(model, identity_plan(model.facts, model.digest), tmp_path)
    again = load_compressed(tmp_path)
    assert again.facts == model.facts
    prompt = encode_question(
        again.processor, "what", [random_picture((90, 90), 0)], "p", model.facts
    )
    assert [len(tiles) for tiles in prompt.pixels] == [3]
    with pytest.raises(DataError, match="images: what pixels show of a picture depends on its"):
        again.generate([1, 2], torch.zeros(1, 3, SIDE, SIDE))


def test_what_a_picture_becomes_is_told_with_its_tiles(folder: Path, tmp_path: Path) -> None:
    random_picture((100, 40), 0).save(tmp_path / "a.png")
    found = vtcompress.inspect(folder, tmp_path / "a.png")
    assert (found["tile_tokens"], "visual_tokens" in found) == (16, False)
    assert found["picture"] == {
        "visual_tokens": 16 + 4 * 11,
        "tiles": 4,
        "tile_grid": [1, 3],
        "tile_tokens": 16,
        "order": "the whole picture, then the lines of 3 x 1 tiles, without the padded border, each ended by "
        "one token",
        "text": f"{IMAGE} x {16 + 4 * 11}",
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vision_feature_select_strategy": "full"}, "config.json: vision_feature_select_strategy: 'full' "
         "gives 17 rows of a tile, which are no grid"),
        ({"vision_feature_layer": -9}, "config.json: vision_feature_layer: -9 is not allowed"),
        ({"vision_config": {"model_type": "internvl_vision"}}, "config.json: vision_config.model_type: 'int"),
        ({"text_config": {"model_type": "gemma"}}, "config.json: text_config.model_type: 'gemma' is not"),
        ({"image_grid_pinpoints": pinpoints([[2, 2]])}, "image_processor: image_grid_pinpoints: "),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_its_key_before_weights_are(
    changes: dict[str, Any], words: str, folder: Path, tmp_path: Path
) -> None:
    other = changed_model(folder, tmp_path / "m", **changes)
    with pytest.raises(ModelError) as caught:
        read_processor(str(other))
    assert words in caught.value.problems[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_grid_pinpoints": [[32, 40]]}, "image_grid_pinpoints: [[32, 40]]: must be pairs of heights"),
        ({"image_grid_pinpoints": 3}, "image_grid_pinpoints: 3: must be pairs of heights and widths, multi"),
        ({"crop_size": {"height": 16, "width": 16}}, "crop_size: {'height': 16, 'width': 16}: must be the"),
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type: CLIPImageProcessor cuts no "
         "tiles: put that of the model's own here"),
    ],
)  # fmt: skip
def test_an_image_processor_that_does_not_fit_is_refused_by_its_key(
    changes: dict[str, Any], words: str, folder: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "m"))
    file = other / "processor_config.json"
    saved = json.loads(file.read_text())
    saved["image_processor"] |= changes
    file.write_text(json.dumps(saved))
    with pytest.raises(ModelError) as caught:
        describe(str(other))
    assert words in caught.value.problems[0]


@pytest.mark.parametrize(
    ("size", "layers", "hidden", "frozen"), [("7b", 32, 4096, 19), ("13b", 40, 5120, 24)]
)
def test_the_published_layers_make_a_plan_for_the_published_model(
    size: str, layers: int, hidden: int, frozen: int
) -> None:
    from transformers import LlavaNextConfig
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    text = {
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 128,
        "intermediate_size": hidden * 43 // 16,
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
    }
    square = {"height": 336, "width": 336}
    images = LlavaNextImageProcessorPil(size={"shortest_edge": 336}, crop_size=square)
    family = LlavaNextFamily()
    known = family.facts(LlavaNextConfig(text_config=text), "published")
    known = family.with_pictures(known, json.loads(images.to_json_string()))
    assert (known.most_tiles, known.tile_rows, known.picture_rows) == (5, 576, 2928)
    recipe = vtcompress.load_recipe(f"shortv-llava-next-{size}")
    (method,) = recipe.methods
    made = make_plan(known, "0" * 64, recipe.methods, None)
    assert {layer for layer in range(layers) if made.layers[layer].frozen} == set(method.layers)
    assert len(method.layers) == frozen


@pytest.mark.matrix
def test_the_tower_of_real_width_builds_for_tensorrt_rtx(tmp_path: Path) -> None:
    """Two layers of CLIP's large tower behind LLaVA's projector, float16, 1 to 5 tiles and 2,928 rows."""
    from transformers import LlavaNextConfig

    config = LlavaNextConfig(
        text_config={"model_type": "llama", "hidden_size": 4096}, vision_feature_layer=-1
    )
    config.vision_config.num_hidden_layers = 2
    built = vision_engine(LlavaNextFamily(), config, Unpadded(side=24), 5, tmp_path)
    assert built == {"images": (1, 5), "rows": (1, 2928)}
