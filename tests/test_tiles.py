"""Pictures of several tiles, with text and rows of their own; budgets; what the original is given."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vtcompress
from compressor.compressed import compress
from compressor.errors import ArtifactError, DataError, ModelError, RecipeError
from compressor.families import load
from compressor.families.pictures.steps import Normalise, Rescale, Resize, TileByAspect
from compressor.families.pictures.text import PictureForm, TextRun
from compressor.families.registry import describe
from compressor.plan.edits import identity_plan
from compressor.samples.questions import read_samples
from compressor.schema.sections import ImageSection
from export.backends.torch_model import TorchSession
from export.checks.original import measure_original, read_original
from export.graphs.limits import limits_of
from export.graphs.profiles import profile_for, profiles_of
from export.graphs.spec import vision_graph
from export.runtime.images import ImageProcessor
from export.runtime.messages import user_message
from export.runtime.prompter import Prompter
from export.runtime.runtime import Runtime
from tests.facts import facts, plan
from tests.models import SIDE
from vtcompress.stages.checks.recipe import check_plan_facts

ROWS = 16  # of a tile of the tiny model
TILES = (
    TileByAspect(size=(SIDE, SIDE), least=1, most=4, resample="bicubic"),
    Rescale(factor=1 / 255),
    Normalise(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
)
FORM = PictureForm(token="<image>", steps=TILES, text=TextRun(before="a ", after=" b"))

Get = Callable[[str], Path]


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture(scope="module")
def folder(llava: Get, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("m")
    load(str(llava("clip+llama"))).processor.save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def runtime(llava: Get, folder: Path) -> Runtime:
    """LLaVA's weights behind pictures of tiles: what is in front of them does not know."""
    model = load(str(llava("clip+llama")))
    session = TorchSession(compress(model, identity_plan(model.facts, model.digest)))
    return Runtime.on_session(session, folder, model.facts, FORM)


def test_each_image_token_is_replaced_by_its_own_text_though_that_holds_the_token(
    folder: Path,
) -> None:
    prompter = Prompter.from_folder(folder, "<image>")
    message = user_message("it", images=3)
    texts = ["a <image> <image>", "<image>", "b <image> <image> <image> c"]
    ids = prompter.encode([message], texts)
    words = [prompter.tokenizer.id_to_token(token) for token in ids]
    spoken = " ".join(word for word in words if word in ("a", "b", "c", "<image>", "it"))
    assert spoken == "a <image> <image> <image> b <image> <image> <image> c it"
    with pytest.raises(DataError, match="have 3 images, and 2 come with them"):
        prompter.encode([message], texts[:2])


def test_tiles_stand_row_by_row_and_the_whole_picture_comes_last() -> None:
    images = ImageProcessor((*TILES[:1], Rescale(factor=1.0)), FORM, ROWS)
    two = np.zeros((SIDE, 2 * SIDE, 3), np.uint8)
    two[:, SIDE:] = 200
    seen = images(Image.fromarray(two))
    assert (seen.grid, seen.rows, seen.pixels.shape) == ((1, 2), 3 * ROWS, (3, 3, SIDE, SIDE))
    assert [float(tile.mean()) for tile in seen.pixels[:2]] == [0, 200]
    assert 0 < seen.pixels[2].mean() < 200
    assert seen.text == "a " + "<image>" * 3 * ROWS + " b"
    one = images(picture(40, 40))
    assert (one.grid, one.rows, len(one.pixels)) == ((1, 1), ROWS, 1)


def test_answers_of_pictures_with_other_numbers_of_tiles_do_not_mix(runtime: Runtime) -> None:
    shapes = [(90, 30), (40, 40), (30, 90), (64, 60), (60, 64)]
    asked = [("what is it", picture(*shape, seed)) for seed, shape in enumerate(shapes)]
    alone = [runtime.answer(question, image, max_new_tokens=4) for question, image in asked]
    assert len({len(runtime.prepare(q, image).ids) for q, image in asked}) > 1
    for place, reply in runtime.answers(asked, max_new_tokens=4):
        assert reply.token_ids == alone[place].token_ids
    both = [image for _, image in asked[:2]]
    kept = runtime.prefill_image(both)
    wanted = runtime.answer("is this it", both, max_new_tokens=4)
    assert kept.answer("is this it", max_new_tokens=4).token_ids == wanted.token_ids
    assert kept.rows > sum(seen.rows for seen in runtime.look(both))


def test_steps_that_cut_tiles_stand_first() -> None:
    with pytest.raises(ModelError, match="tile_by_aspect: does not stand first"):
        ImageProcessor((Resize(size=(8, 8), resample="box"), *TILES))


def test_the_vision_engine_holds_all_tiles_of_all_pictures() -> None:
    model = facts(most_tiles=5)
    limits = limits_of(vtcompress.load_recipe("identity").export.profiles, model)
    assert (limits.max_visual, limits.tiles) == (5 * 12, 5)
    (profile,) = profiles_of(vision_graph(model, "float32"), limits)
    assert [sizes["images"] for sizes in (profile.least, profile.typical, profile.most)] == [
        1,
        5,
        5,
    ]
    with pytest.raises(vtcompress.VtcompressError, match="--max-images 2"):
        profile_for([profile], {"images": 6}, limits)


class Telling:
    """A processor that tells the model more than pixels."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.tokenizer = inner, inner.tokenizer

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        found = self.inner.apply_chat_template(messages, **options)
        if options.get("return_dict"):
            found["image_sizes"] = torch.tensor([[40, 33]])
        return found


class Listening(torch.nn.Module):
    """The original, which keeps what it is given."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.dtype, self.device, self.given = inner, inner.dtype, inner.device, []

    def forward(self, image_sizes: Any = None, **inputs: Any) -> Any:
        self.given.append(image_sizes)
        return self.inner(**inputs)


def test_the_original_is_given_all_that_its_processor_made(llava: Get, questions: Path) -> None:
    model = load(str(llava("clip+llama")))
    samples, original = read_samples(questions)[:2], Listening(model.original)
    telling = Telling(model.processor)
    model = replace(model, original=original, processor=telling, native_processor=telling)
    read_original(model, samples[0])
    assert [given.tolist() for given in original.given] == [[[40, 33]]]
    original.given.clear()
    telling.decode = telling.inner.decode
    measure_original(model, samples, 2)
    first, *later = original.given
    assert first.tolist() == [[40, 33]] * 2  # two prompts of one shape are one batch
    assert later == [None]


@pytest.mark.parametrize(
    "image",
    [{"max_tiles": 2, "max_pixels": 9}, {"height": 8}, {"height": 8, "width": 8, "max_tiles": 1}],
)
def test_a_budget_is_given_in_one_way(image: dict[str, int]) -> None:
    recipe = vtcompress.load_recipe("identity")
    with pytest.raises(RecipeError, match="image: give max_tiles, or max_pixels, or height and"):
        recipe.override({f"image.{key}": value for key, value in image.items()})
    assert recipe.override({"image": {"height": 8, "width": 9}}).image.given == ("height", "width")


def test_a_family_of_one_size_refuses_a_budget_by_name(llava: Get) -> None:
    with pytest.raises(ModelError) as caught:
        describe(str(llava("clip+llama")), budget=ImageSection(max_tiles=2))
    (line,) = caught.value.problems
    assert line == (
        "image.max_tiles: is nothing for pictures of the family 'llava'; their size is set by "
        "export.image_size"
    )


def test_a_plan_of_another_budget_is_refused() -> None:
    made = facts(most_tiles=5, budget=ImageSection(max_tiles=4))
    check_plan_facts(plan(model=made), made)
    with pytest.raises(ArtifactError) as caught:
        check_plan_facts(plan(model=made), facts(most_tiles=13))
    assert (
        "up to 60 visual tokens, and with this recipe they have up to 156: set image.max_tiles=4"
        in (caught.value.problems[0])
    )


def test_what_a_picture_becomes_is_told(
    vt: Any, tiny_artifact: Path, llava: Get, tmp_path: Path
) -> None:
    file = tmp_path / "a.png"
    picture(50, 20).save(file)
    for place in (tiny_artifact, llava("clip+llama")):
        code, said, _ = vt("--json", "inspect", place, "--image", file)
        assert code == 0
        found = json.loads(said)["picture"]
        assert (found["visual_tokens"], found["tiles"]) == (ROWS, 1)
        assert found["text"] == f"<image> x {ROWS}"
    code, _, told = vt("inspect", place, "--image", tmp_path / "no.png")
    assert code == 1
    assert "no such file" in told
