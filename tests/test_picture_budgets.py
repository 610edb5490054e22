"""Budgets of pictures that are resized to whole cells: one size for all, or bounds of pixels.

The original is the unmodified model under the same budget: with bounds by its own processor, with one size by
pictures that Pillow resized before.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vtcompress
from compressor.errors import ModelError, PlanError
from compressor.families import describe, load
from compressor.families.pictures.steps import Resize
from compressor.families.registry import read_processor
from compressor.families.told import PROCESSOR as SAVED
from compressor.schema.sections import ImageSection
from tests.family_cases import BACKENDS, FamilyCases, Made, odd_sizes, random_picture, read_by
from tests.test_family_qwen2_5_vl import VISION
from tests.test_family_qwen2_5_vl import TestQwen25Vl as Qwen25Vl
from tests.test_family_qwen2_vl import CELL, LEAST, MOST, maker, processor_of, whole
from tests.test_family_qwen2_vl import TestQwen2Vl as Qwen2Vl
from tests.tiny_families import TinyFamily
from vtcompress.stages.checks.processor import read_back

GRID = (5, 7)  # whose edges leave windows of several sizes
ONE_SIZE = ImageSection(height=GRID[0] * CELL, width=GRID[1] * CELL)
FEW = 12 * CELL**2
CAPPED = ImageSection(max_pixels=FEW)


class OneSize(FamilyCases):
    """Qwen2.5-VL with pictures of one size: its tower attends in windows, and so do visual tokens."""

    family = TinyFamily(
        "qwen2_5_vl-one-size", Qwen25Vl.family.make, GRID, pixels=whole, image=ONE_SIZE
    )


class TestOneSize:
    family, cases = OneSize.family, OneSize()

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("name", ["two adjacent", "a second turn with a new picture"])
    def test_all_cuts_with_a_window_are_the_unmodified_model_with_hooks(
        self, made: Made, name: str, backend: str
    ) -> None:
        self.cases.compare(made, name, "all", backend)

    def test_a_window_alone_is_too(self, made: Made) -> None:
        self.cases.compare(made, "two apart", "window", "torch")

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_without_cuts_it_is_the_unmodified_model(self, made: Made, backend: str) -> None:
        self.cases.compare(made, "first and last but one", "identity", backend)

    def test_from_a_picture_file_to_the_same_text(self, made: Made, tmp_path: Path) -> None:
        self.cases.test_from_a_picture_file_to_the_same_text(made, tmp_path)

    def test_pixels_are_the_processors_bit_for_bit(self, made: Made) -> None:
        self.cases.test_pixels_are_the_processors_bit_for_bit(made)

    def test_a_compressed_folder_is_the_same_model(self, made: Made, tmp_path: Path) -> None:
        self.cases.test_a_compressed_folder_is_the_same_model(made, tmp_path)

    def test_the_original_takes_what_its_own_class_makes_of_resized_pictures(
        self, made: Made
    ) -> None:
        plain = processor_of("Qwen2_5_VLProcessor", most=2 * GRID[0] * GRID[1] * CELL**2)
        for seed, size in enumerate(odd_sizes(20, seed=5)):
            picture = random_picture(size, seed)
            resized = picture.resize(
                (GRID[1] * CELL, GRID[0] * CELL), plain.image_processor.resample
            )
            wanted, found = read_by(plain, resized), read_by(made.loaded.processor, picture)
            for key in ("input_ids", "image_grid_thw", "pixel_values"):
                assert np.array_equal(found[key], wanted[key]), (key, size)

    def test_the_manifest_holds_it_and_the_vision_graph_has_one_size(self, made: Made) -> None:
        manifest = vtcompress.Artifact.open(made.artifact("all")).manifest
        assert manifest.model.budget == ONE_SIZE
        assert (manifest.model.token_grid, manifest.model.sizes_differ) == (GRID, False)
        assert manifest.picture_form.steps is not None
        side = GRID[0] * CELL, GRID[1] * CELL
        assert manifest.picture_form.steps[0] == Resize(size=side, resample="bicubic")
        (vision,) = (graph for graph in manifest.graphs if graph.name == "vision")
        assert vision.inputs[0].axes == ("images", 3, *side)
        assert vision.outputs[0].axes[1] == GRID[0] * GRID[1]


class Capped(FamilyCases):
    """Qwen2-VL with fewer pixels than its processor allows."""

    family = TinyFamily("qwen2_vl-capped", Qwen2Vl.family.make, None, pixels=whole, image=CAPPED)


class TestCapped:
    family, cases = Capped.family, Capped()

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_it_is_the_unmodified_model_under_the_same_budget(
        self, made: Made, backend: str
    ) -> None:
        self.cases.compare(made, "two adjacent", "identity", backend)

    def test_from_a_picture_file_to_the_same_text(self, made: Made, tmp_path: Path) -> None:
        self.cases.test_from_a_picture_file_to_the_same_text(made, tmp_path)

    def test_pixels_are_the_processors_bit_for_bit(self, made: Made) -> None:
        self.cases.test_pixels_are_the_processors_bit_for_bit(made)

    def test_the_original_is_as_its_own_class_under_the_budget(self, made: Made) -> None:
        plain, fewer = processor_of("Qwen2VLProcessor", most=FEW), 0
        uncapped = processor_of("Qwen2VLProcessor")
        for seed, size in enumerate(odd_sizes(20, seed=5)):
            picture = random_picture(size, seed)
            wanted, found = read_by(plain, picture), read_by(made.loaded.processor, picture)
            for key in ("input_ids", "image_grid_thw", "pixel_values"):
                assert np.array_equal(found[key], wanted[key]), (key, size)
            fewer += len(found["pixel_values"]) < len(read_by(uncapped, picture)["pixel_values"])
        assert fewer >= 10

    def test_a_window_is_refused_and_what_would_allow_it_is_told(self, made: Made) -> None:
        with pytest.raises(PlanError, match=r"each picture of .* has its own; give all one size"):
            made.plan("window")

    def test_the_manifest_holds_it(self, made: Made) -> None:
        facts = vtcompress.Artifact.open(made.artifact("identity")).manifest.model
        assert (facts.budget, facts.token_grid, facts.sizes_differ) == (CAPPED, None, True)
        assert facts.picture_rows < load(str(made.folder)).facts.picture_rows


def test_a_float16_export_is_judged_on_pictures_of_two_sizes(tmp_path: Path) -> None:
    tower = {**VISION, "depth": 2, "fullatt_block_indexes": [1]}
    maker("Qwen2_5_VL", tower, num_hidden_layers=2)(tmp_path / "m")
    changes = {
        "model.id": str(tmp_path / "m"),
        "export.dtype": "float16",
        "image": {"max_pixels": FEW},
    }
    recipe = vtcompress.load_recipe("identity").override(changes)
    manifest = vtcompress.export(recipe, tmp_path / "a", bench_rounds=0)
    assert manifest.fidelity is not None
    assert manifest.ranges is not None
    assert manifest.fidelity.passed, manifest.fidelity.failures
    # No picture, one, two, and one of the other size: the vision graph, and two prompts of each.
    assert manifest.fidelity.calls == 3 + 4 * 2 * (1 + 1 + 1 + 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("budgets") / "model"
    Qwen2Vl.family.make(made)
    return made


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ({"height": 20, "width": 41}, "image.height: 20 cannot be kept exactly: a visual token shows 8 x 8 "
         "pixels; take 16 or 24\nimage.width: 41 cannot be kept exactly: a visual token shows 8 x 8 pixels; "
         "take 40 or 48"),
        ({"height": 8, "width": 7}, "image.width: 7 cannot be kept exactly: a visual token shows 8 x 8 "
         "pixels; take 8"),
        ({"height": 5000, "width": 8}, "image.height: 5000 cannot be kept exactly: a visual token shows 8 x "
         "8 pixels; take 4096"),
        ({"max_pixels": LEAST - 1}, "image.max_pixels: 255 is less than the 256 pixels that the model's "
         "image processor gives a picture at least; take 256 or more"),
        ({"max_tiles": 2}, "image.max_tiles: is nothing for pictures of the family 'qwen2_vl'; it takes "
         "image.max_pixels, or image.height and image.width"),
    ],
)  # fmt: skip
def test_a_budget_that_cannot_be_kept_is_refused_before_weights_are_read(
    image: dict[str, int], words: str, folder: Path
) -> None:
    with pytest.raises(ModelError) as caught:
        describe(str(folder), budget=ImageSection(**image))
    assert "\n".join(caught.value.problems) == words


@pytest.mark.parametrize("budget", [ONE_SIZE, CAPPED], ids=["one size", "capped"])
def test_a_budget_counts_more_than_the_older_keys_of_published_files(
    budget: ImageSection, folder: Path, tmp_path: Path
) -> None:
    """Published processors say how many pixels by keys that newer ones no longer write."""
    other = Path(shutil.copytree(folder, tmp_path / "m"))
    saved = json.loads((other / SAVED).read_text())
    images = saved["image_processor"]
    del images["size"]
    images |= {"min_pixels": LEAST, "max_pixels": MOST}
    (other / SAVED).write_text(json.dumps(saved))
    wanted, read = (
        read_processor(str(folder), budget=budget),
        read_processor(str(other), budget=budget),
    )
    assert read.facts.model_copy(update={"name": wanted.facts.name}) == wanted.facts
    runtime = read_back(read.processor, other, read.facts).images
    for seed, size in enumerate(odd_sizes(10, seed=6)):
        picture = random_picture(size, seed)
        seen = runtime(picture)
        assert np.array_equal(seen.pixels, whole(read_by(wanted.native, picture))), size
        assert seen.rows <= read.facts.picture_rows


@pytest.mark.parametrize("height", [20, 0, "a"])
def test_a_file_with_one_size_that_is_none_is_refused_by_its_key(
    height: Any, folder: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "m"))
    saved = json.loads((other / SAVED).read_text())
    saved["image_processor"]["size"] = {"height": height, "width": 40}
    (other / SAVED).write_text(json.dumps(saved))
    with pytest.raises(ModelError) as caught:
        describe(str(other))
    words = f"{other / SAVED}: image_processor: size: {saved['image_processor']['size']}: "
    words += "must be multiples of the cells of 8" if height == 20 else "of least and most pixels"
    assert caught.value.problems[0].startswith(words), caught.value


POSITIONS = 2048


@pytest.mark.parametrize(
    ("asked", "given", "context"),
    [
        ("image.max_pixels=4000000000000", {"max_pixels": 4 * 10**12}, None),
        ("image.height=4096 and image.width=4096", {"height": 4096, "width": 4096}, None),
        ("image.max_pixels=3072", {"max_pixels": 3072}, 64),
    ],
)
def test_a_budget_that_the_decoder_has_no_room_for_is_refused_with_the_largest_that_fits(
    asked: str, given: dict[str, int], context: int | None, tmp_path: Path
) -> None:
    Qwen2Vl.family.make(tmp_path / "model")
    recipe = vtcompress.load_recipe("identity").override(
        {
            "model.id": str(tmp_path / "model"),
            "image": given,
            "export.profiles.max_context": context,
        }
    )
    with pytest.raises(ModelError) as caught:
        vtcompress.plan(recipe)
    (line,) = caught.value.problems
    assert line.startswith(f"{asked}: a picture has up to ")
    least = context or POSITIONS
    assert f" {least} " in line or f" {least}," in line
    named = line.split("; take ")[1].removesuffix(" or less").split(" and ")
    largest = {
        key.removeprefix("image."): int(number) for key, number in (p.split("=") for p in named)
    }
    assert largest.keys() == given.keys()

    def rows_of(budget: dict[str, int]) -> int:
        return describe(str(tmp_path / "model"), budget=ImageSection(**budget)).picture_rows

    assert rows_of(largest) < least
    try:
        more = rows_of({key: number + CELL**2 for key, number in largest.items()})
    except ModelError:
        return  # refused by its positions
    assert more >= least
