"""LLaVA-OneVision goes through the cases of every family: one picture in tiles, each of several as one."""

import json
from pathlib import Path
from typing import Any

import pytest

import vtcompress
from compressor.arrangement import Unpadded
from compressor.compressed import plain
from compressor.errors import DataError, ModelError
from compressor.families import describe, load
from compressor.families.llava.llava_onevision import LlavaOnevisionFamily
from compressor.samples.questions import read_samples
from compressor.schema.sections import ImageSection
from tests.family_cases import FamilyCases, Made, random_picture
from tests.test_family_llava_next import pinpoints, vision_engine
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
from vtcompress.stages.checks.processor import read_back
from vtcompress.stages.checks.prompts import Asked, check_prompts
from vtcompress.stages.checks.rewrite import rewrite_prompt

CELLS = SIDE // PATCH
GRIDS = [[rows, columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]
ASPECT = "anyres_max_2"
MEAN = (0.5, 0.25, 0.75)  # three colours, so that the border of a square shows


def processor_of() -> Any:
    from transformers import LlavaOnevisionProcessor
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
        LlavaOnevisionImageProcessorPil,
    )

    class Processor(LlavaOnevisionProcessor):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return ["image_processor", "tokenizer"]

    Processor.__name__ = "LlavaOnevisionProcessor"
    return Processor(
        image_processor=LlavaOnevisionImageProcessorPil(
            size={"height": SIDE, "width": SIDE},
            image_grid_pinpoints=pinpoints(GRIDS),
            image_mean=MEAN,
            image_std=(0.5, 0.5, 0.5),
        ),
        tokenizer=byte_tokenizer(IMAGE, "<video>"),
        num_image_tokens=CELLS**2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=ASPECT,
        chat_template=template_of(IMAGE),
    )


def make(folder: Path, **changes: Any) -> None:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    processor = processor_of()
    tokens = processor.tokenizer.convert_tokens_to_ids([IMAGE, "<video>"])
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            **clip_section(),
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2",
            "tie_word_embeddings": False,
            **text_section(**changes),
        },
        image_token_index=tokens[0],
        video_token_index=tokens[1],
        image_grid_pinpoints=pinpoints(GRIDS),
        vision_aspect_ratio=ASPECT,
        tie_word_embeddings=False,
    )
    write_model(LlavaOnevisionForConditionalGeneration, config, processor, folder)


class TestLlavaOnevision(FamilyCases):
    family = TinyFamily("llava_onevision", make, grid=None, alone=True)

    def test_what_a_picture_becomes_alone_and_beside_others(
        self, made: Made, tmp_path: Path
    ) -> None:
        known = made.loaded.facts
        # No more than 1.21 times the cells of two tiles, in the shortest lines: 8 of 4.
        assert (known.most_tiles, known.tile_rows, known.picture_rows) == (10, 16, 16 + 8 * 5)
        runtime, _ = made.runtime("identity", "torch")
        (one,) = runtime.look(random_picture((90, 70), 0))
        assert (one.grid, len(one.pixels)) == ((3, 3), 10)
        # 10 lines of 12 cells are no border; as many as those of two tiles are 5 of 6.
        assert one.rows == 16 + 5 * (6 + 1)
        both = runtime.look(made.pictures)
        assert [(len(seen.pixels), seen.rows) for seen in both] == [(1, 17)] * 2
        assert both[0].pixels[0, :, 0, 0] == pytest.approx(  # the border has the colour of the mean
            [(int(mean * 255) / 255 - mean) / 0.5 for mean in MEAN], abs=1e-6
        )
        random_picture((90, 70), 0).save(tmp_path / "a.png")
        found = vtcompress.inspect(made.folder, tmp_path / "a.png")["picture"]
        assert (found["visual_tokens"], found["visual_tokens_beside_others"]) == (one.rows, 17)

    def test_a_second_picture_has_the_first_read_anew_and_a_third_does_not(
        self, made: Made, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", logger="export.runtime.conversation")
        runtime, spy = made.runtime("identity", "torch")
        chat, one = runtime.chat(), made.pictures[0]
        looked, reused = [], []
        for picture in (one, made.pictures[1], one):
            spy.clear()
            list(answer := chat.ask("what is it", picture, max_new_tokens=2))
            looked.append(spy.pictures)
            reused.append(answer.figures.reused_rows > 0)
        assert (looked, reused) == ([3, 2, 1], [False, False, True])
        said = [record.getMessage() for record in caplog.records]
        assert [line.split(":")[0] for line in said] == [
            "this model reads each of several pictures otherwise than one alone"
        ]

    def test_a_picture_too_oblong_for_a_square_is_read_alone_and_refused_beside_others(
        self, made: Made
    ) -> None:
        runtime, _ = made.runtime("identity", "torch")
        line = random_picture((20_000, 2), 0)
        (alone,) = runtime.look(line)
        assert alone.rows == alone.text.count(IMAGE) == 16  # less than a line of cells is no border
        with pytest.raises(DataError, match="20000 x 2 pixels, padded to a square"):
            runtime.look([line, made.pictures[0]])
        chat = runtime.chat()
        list(chat.ask("what is it", line, max_new_tokens=2))
        with pytest.raises(DataError, match="padded to a square"):
            chat.ask("and this", made.pictures[0])
        assert len(chat.messages) == 2

    def test_pictures_that_stay_the_same_are_kept_for_many_questions(self, made: Made) -> None:
        runtime, _ = made.runtime("identity", "torch")
        for pictures in (made.pictures[:1], made.pictures):
            kept = runtime.prefill_image(pictures)
            for question in ("is it so", "why"):
                wanted = runtime.answer(question, pictures, max_new_tokens=4)
                assert kept.answer(question, max_new_tokens=4).token_ids == wanted.token_ids

    def test_questions_are_counted_with_pictures_as_they_are_read_together(
        self, made: Made, tmp_path: Path
    ) -> None:
        for place, picture in enumerate(made.pictures):
            picture.save(tmp_path / f"{place}.png")
        readable = read_back(made.loaded.processor, made.folder, made.loaded.facts)
        rows = [seen.rows for seen in map(readable.images, made.pictures)]
        line = {"image": ["0.png", "1.png"], "question": "what"}
        (tmp_path / "q.jsonl").write_text(json.dumps(line))
        samples = read_samples(tmp_path / "q.jsonl")
        tight = made.loaded.facts.decoder.model_copy(
            update={"max_positions": 17 * 2 + len("what>") + 1}
        )
        facts = made.loaded.facts.model_copy(update={"decoder": tight})
        assert sum(rows) > 17 * 2
        check_prompts(made.loaded.processor, made.folder, facts, [Asked(samples)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("onevision") / "model"
    make(made, num_hidden_layers=2)
    return made


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vision_aspect_ratio": "pad"}, "vision_aspect_ratio: 'pad' is not supported; anyres_max_ and a "),
        ({"vision_aspect_ratio": "anyres_max_0"}, "vision_aspect_ratio: 'anyres_max_0' is not supported"),
        ({"vision_feature_select_strategy": "default"}, "vision_feature_select_strategy: 'default' gives 15 "
         "rows of a tile, which are no grid"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_its_key_before_weights_are(
    changes: dict[str, Any], words: str, folder: Path, tmp_path: Path
) -> None:
    other = changed_model(folder, tmp_path / "m", **changes)
    with pytest.raises(ModelError) as caught:
        describe(str(other))
    assert caught.value.problems[0].startswith(f"{other / 'config.json'}: {words}"), caught.value


def test_a_budget_of_tiles_changes_one_picture_and_not_several(folder: Path) -> None:
    for most, tiles in ((1, 2), (4, 5)):
        model = load(str(folder), budget=ImageSection(max_tiles=most))
        assert model.facts.most_tiles == tiles
        with rewrite_prompt() as prompt:
            reading = prompt.read(model)
            report = prompt.compare(reading, plain(model))
        assert report.passed, report.failures
        assert report.pixels == 0.0
        assert max(report.embeds, report.logits, report.runtime) < 5e-6
        assert len(reading.seen[0].pixels) <= tiles


@pytest.mark.matrix
def test_the_tower_of_real_width_builds_for_tensorrt_rtx(tmp_path: Path) -> None:
    """Two layers of SigLIP so400m, float16, four taps: 1 to 37 tiles and up to 8,765 rows."""
    from transformers import LlavaOnevisionConfig

    config = LlavaOnevisionConfig(text_config={"model_type": "qwen2", "hidden_size": 896})
    config.vision_config.num_hidden_layers = 2
    rows = Unpadded(side=27, most_tiles=9)
    built = vision_engine(LlavaOnevisionFamily(), config, rows, 37, tmp_path)
    assert built == {"images": (1, 37), "rows": (1, 8765)}
