"""The pictures of a report show which cells go on: the very cells whose places the vision graph gave."""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vtcompress
from compressor.compressed import compress
from compressor.errors import ArtifactError
from compressor.families.pictures.frames import Frame, tile_frames
from compressor.families.pictures.steps import (
    Crop,
    CutTiles,
    FitTiles,
    PadToSquare,
    PictureStep,
    Resize,
    ResizeLonger,
    ResizeShorter,
    ResizeToCells,
    TileByAspect,
)
from compressor.families.registry import picture_form
from compressor.plan.edits import keep_at, keep_in_front
from compressor.plan.kept import Kept
from compressor.plan.plan import Plan
from compressor.planner import make_plan
from compressor.samples.questions import Sample
from export.artifact.artifact import Artifact
from export.artifact.manifest import Manifest
from export.backends.torch_model import TorchSession
from export.checks.kept_places import kept_places
from export.checks.stored import COMPRESSED_FILE
from export.report.data import ReportData, report_data
from export.report.kept_pictures import kept_pictures
from export.report.pages.report import html_report, markdown_report
from export.report.questions import Question
from export.results.answers import KeptPlaces
from export.runtime.core import RuntimeCore
from export.runtime.images import ImageProcessor
from tests import facts
from tests.artifacts import make_artifact
from tests.conftest import shared
from tests.family_cases import Made
from tests.test_front import FAMILIES, THREE_KINDS
from tests.test_html_report import ASKED, Structure
from vtcompress.stages.report import read_report

BORDER = (7, 7, 250)
STEPS: dict[str, tuple[PictureStep, ...]] = {
    "crop": (
        ResizeShorter(edge=96, resample="bicubic"),
        Crop(size=(96, 96)),
    ),
    "crop of less": (ResizeShorter(edge=120, resample="bicubic"), Crop(size=(96, 64))),
    "crop of more": (Resize(size=(60, 70), resample="bicubic"), Crop(size=(96, 97))),
    "pad": (PadToSquare(colour=BORDER), Resize(size=(96, 96), resample="bicubic")),
    "squeezed": (Resize(size=(96, 64), resample="bilinear"),),
    "tiles": (TileByAspect(size=(64, 64), least=1, most=12, resample="bicubic"),),
    "cut tiles": (
        ResizeLonger(edge=200, resample="lanczos"),
        CutTiles(edge=64, resample="lanczos"),
    ),
    "fitted tiles": (
        FitTiles(size=(64, 64), sizes=((64, 128), (128, 64), (128, 128)), resample="bicubic"),
    ),
    "own size": (ResizeToCells(cell=16, least=256, most=16 * 16 * 60, resample="bicubic"),),
}
SIDE = 8
"""Pixels of the squares that are looked at."""


def ramp(height: int, width: int) -> Image.Image:
    """Return a picture whose red grows along it, and whose green grows down; no blue."""
    red = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    green = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    levels = np.stack([red, green, np.zeros((height, width))], axis=-1)
    return Image.fromarray(levels.round().astype(np.uint8))


@pytest.mark.parametrize("size", [(150, 230), (231, 140), (180, 180)])
@pytest.mark.parametrize("name", STEPS)
def test_frames_tell_which_part_of_a_picture_each_square_of_each_tile_shows(
    name: str, size: tuple[int, int]
) -> None:
    """What the pixels themselves say: their colour tells where on the picture they come from."""
    steps, (height, width) = STEPS[name], size
    seen = ImageProcessor(steps)(ramp(height, width)).pixels
    frames = tile_frames(steps, height, width)
    assert len(frames) == len(seen)
    looked = 0
    for frame, pixels in zip(frames, seen, strict=True):
        assert frame.pixels == pixels.shape[1:]
        down, along = frame.height / frame.pixels[0], frame.width / frame.pixels[1]
        for top in range(0, frame.pixels[0] - SIDE + 1, SIDE):
            for left in range(0, frame.pixels[1] - SIDE + 1, SIDE):
                red, green, blue = pixels[:, top : top + SIDE, left : left + SIDE].mean(axis=(1, 2))
                y = frame.top + (top + SIDE / 2) * down
                x = frame.left + (left + SIDE / 2) * along
                reach = SIDE * max(down, along)
                if reach < y < height - reach and reach < x < width - reach:
                    assert abs(y - (green / 255 * (height - 1) + 0.5)) < 1
                    assert abs(x - (red / 255 * (width - 1) + 0.5)) < 1
                    assert blue < 1
                    looked += 1
                elif not (-reach < y < height + reach and -reach < x < width + reach):
                    border = BORDER if name == "pad" else (0, 0, 0)
                    assert np.allclose((red, green, blue), border)
    assert looked > 20


SIZES = {"llava": (60, 100), "internvl": (150, 60), "smolvlm": (90, 140)}
"""Height and width of pictures that each family crops or cuts into tiles."""


def core(made: Made, method: dict[str, Any] | None) -> tuple[RuntimeCore, Manifest]:
    """Return a family with a method in front of its decoder, and what a manifest says of it."""
    entries = [] if method is None else [method]
    recipe = vtcompress.load_recipe("identity").override({"compress": entries})
    plan = make_plan(made.loaded.facts, made.loaded.digest, recipe.methods)
    form = picture_form(made.loaded.processor, plan.model)
    images = ImageProcessor(form.steps or (), form, plan.model.tile_rows)
    runtime = RuntimeCore(TorchSession(compress(made.loaded, plan)), plan.model, None, images)  # type: ignore[arg-type]
    given = {"picture_steps": form.steps, "steps_beside_others": form.steps_beside_others}
    return runtime, Manifest(files={}, **facts.manifest_fields(plan, **given))


@pytest.fixture(scope="module", params=THREE_KINDS)
def made(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Made:
    return Made(FAMILIES[request.param], shared(pytestconfig) / "families")


def cell_on_picture(frame: Frame, grid: tuple[int, int], place: int) -> tuple[slice, slice]:
    """Return the rows and columns of a picture's pixels that a cell shows."""
    row, column = divmod(place, grid[1])
    high, wide = frame.height / grid[0], frame.width / grid[1]
    top, left = frame.top + row * high, frame.left + column * wide
    return slice(round(top), round(top + high)), slice(round(left), round(left + wide))


def test_a_cell_that_changes_on_the_picture_changes_its_own_visual_token_most(made: Made) -> None:
    """So a cell that is drawn is the one that the token at that place stands for."""
    runtime, manifest = core(made, None)
    size, grid = SIZES[made.family.name], manifest.model.token_grid
    assert grid is not None
    picture = np.full((*size, 3), 128, np.uint8)
    frames = tile_frames(manifest.picture_steps or (), *size)

    def rows(pixels: np.ndarray) -> np.ndarray:
        (seen,) = runtime.look([Image.fromarray(pixels)])
        return np.asarray(runtime.session.vision(seen.pixels).features[0])

    plain, right, asked = rows(picture), 0, 0
    assert plain.shape[:2] == (len(frames), grid[0] * grid[1])
    for tile, frame in enumerate(frames):
        for place in range(grid[0] * grid[1]):
            changed = picture.copy()
            changed[cell_on_picture(frame, grid, place)] = (255, 0, 60)
            moved = np.linalg.norm(rows(changed)[tile] - plain[tile], axis=-1)
            right, asked = right + (int(moved.argmax()) == place), asked + 1
    assert right == asked


def test_what_is_drawn_is_what_the_vision_side_kept(made: Made, tmp_path: Path) -> None:
    runtime, manifest = core(made, {"gprune": {"keep": 0.5}})
    size = SIZES[made.family.name]
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    Image.fromarray(noise[::-1]).save(tmp_path / "b.png")
    sample = Sample((tmp_path / "a.png", tmp_path / "b.png"), "what?")
    found = kept_places(runtime, sample)  # type: ignore[arg-type]
    seen = runtime.look([Image.fromarray(noise), Image.fromarray(noise[::-1])])
    assert [one.size for one in found] == [size, size]
    for one, picture in zip(found, seen, strict=True):
        kept = np.asarray(runtime.session.vision(picture.pixels).kept)
        assert one.tiles == tuple(map(tuple, kept.tolist()))
    question = Question(sample, "x", "x", sample.images, 0, found)
    first, second = kept_pictures(question, manifest)
    drawn = [tile.kept for view in first.views for tile in view.tiles]
    assert drawn == [frozenset(places) for places in found[0].tiles]
    assert len(second.views) == len(first.views) == (1 if made.family.name == "llava" else 2)


PHOTOS = 12
"""More than a report shows."""


@pytest.fixture(scope="module")
def artifact(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that keeps half in front of the decoder, with questions on photos that are cropped."""
    folder = tmp_path_factory.mktemp("kept")
    rows = []
    for number in range(PHOTOS):
        noise = np.random.default_rng(number).integers(0, 256, (40, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((640 + number, 400)).save(folder / f"{number}.jpg")
        rows.append({"image": f"{number}.jpg", "question": f"what is {number}"})
    (folder / "held.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    recipe = vtcompress.load_recipe("gprune").override(
        {
            "model.id": str(tiny_model),
            "validate.data": folder / "held.jsonl",
            "validate.max_new_tokens": 2,
        }
    )
    vtcompress.export(recipe, folder / "out", bench_rounds=0)
    return folder / "out"


def test_an_export_stores_what_goes_on_of_the_pictures_that_its_report_shows(
    artifact: Path,
) -> None:
    rows = [json.loads(line) for line in (artifact / "validation/samples.jsonl").open()]
    answers = json.loads((artifact / "validation/compressed.json").read_text())["answers"]
    assert [bool(row.get("small")) for row in rows] == ["kept" in answer for answer in answers]
    shown = [answer["kept"] for answer in answers if "kept" in answer]
    assert len(shown) == 10
    for number, (kept,) in enumerate(shown):
        assert kept["size"] == [400, 640 + rows.index([r for r in rows if r.get("small")][number])]
        (places,) = kept["tiles"]
        assert len(places) == 8
        assert sorted(set(places)) == places
    assert (
        "kept" not in json.loads((artifact / "validation/original.json").read_text())["answers"][0]
    )
    # It is a few numbers: an artifact does not grow by it.
    assert len(json.dumps(shown)) < 1500


def test_a_report_that_is_made_again_from_what_is_stored_is_the_same(artifact: Path) -> None:
    data = read_report(artifact)
    assert html_report(data) == (artifact / "report.html").read_text(encoding="utf-8")
    assert markdown_report(data) == (artifact / "report.md").read_text(encoding="utf-8")
    page = Structure(html_report(data))
    assert len([one for one in page.all("image") if one["href"].startswith("data:")]) == 10
    assert not page.all("img")


def test_without_pictures_nothing_is_stored_of_what_goes_on_and_the_report_says_so(
    artifact: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """What is kept of a picture tells something of it."""
    recipe = vtcompress.load_recipe(artifact / "recipe.yaml").override(
        {
            "model.id": str(tiny_model),
            "validate.data": artifact.parent / "held.jsonl",
            "validate.keep_pictures": "none",
            "validate.samples": 2,
        }
    )
    vtcompress.export(recipe, tmp_path / "out", bench_rounds=0)
    assert '"kept"' not in (tmp_path / "out/validation/compressed.json").read_text()
    assert "is not stored in this artifact: it keeps no pictures" in (
        tmp_path / "out" / "report.md"
    ).read_text(encoding="utf-8")


# What a page draws

GRID = facts.facts(token_grid=(2, 4), visual_tokens=8, image_size=8)
TILED = GRID.model_copy(update={"most_tiles": 3})
HALF = keep_in_front(facts.plan(dead=(5,), model=GRID), 4, "gprune", {"keep": 0.5})
RECIPE = "vtcompress: 2\ncompress:\n- {}: {{keep: 0.5}}\n"
TILES = (TileByAspect(size=(8, 8), least=2, most=2, resample="bicubic"),)
CROP = (ResizeShorter(edge=8, resample="bicubic"), Crop(size=(8, 8)))


def made_up(
    folder: Path,
    steps: tuple[PictureStep, ...] | None,
    tiles: tuple[tuple[int, ...], ...],
    plan: Plan = HALF,
    **changes: Any,
) -> ReportData:
    """Return the report's data of an artifact with such places of its picture, 40 x 33 pixels."""
    kept = [KeptPlaces(size=(40, 33), tiles=tiles)]
    by = plan.front.by if plan.front else "fastv"
    given = {"asked": ASKED, "kept": kept, "recipe": RECIPE.format(by), "picture_steps": steps}
    return read_report(make_artifact(folder, plan=plan, **given | changes))


def drawn_cells(drawing: str) -> list[set[int]]:
    """Return the cells of the grid that each tile of a drawing shades, from its path."""
    found = []
    for path in re.findall(r'<path d="([^"]*)"[^>]*class="left-out"', drawing):
        runs = re.findall(r"M(\d+) (\d+)h(\d+)v1h-(\d+)z", path)
        assert "".join("M{} {}h{}v1h-{}z".format(*run) for run in runs) == path
        assert all(along == back for _, _, along, back in runs)
        found.append(
            {int(y) * 4 + int(x) + i for x, y, along, _ in runs for i in range(int(along))}
        )
    return found


def drawings(page: str) -> list[str]:
    return re.findall(r'<svg [^>]*aria-labelledby="kept-.*?</svg>', page, re.S)


def test_the_cells_that_do_not_go_on_are_shaded_where_the_model_saw_them(tmp_path: Path) -> None:
    page = html_report(made_up(tmp_path / "a", CROP, ((0, 3, 5, 6),)))
    (drawing,) = drawings(page)
    assert drawn_cells(drawing) == [{1, 2, 4, 7}]
    # The crop's square, 33 wide, begins below the part that is cut off, and each cell is half of it high.
    left, top, wide, high = (
        float(v)
        for v in re.findall(
            r'"translate\(([\d.]+) ([\d.]+)\) scale\(([\d.]+) ([\d.]+)\)"', drawing
        )[0]
    )
    assert (left, wide, high) == pytest.approx((0, 33 / 4, 40 * 8 / 9 / 2), abs=0.01)
    assert top == pytest.approx(0, abs=0.01)
    assert re.search(r'<path d="M0 0H33V40H0z[^"]*"[^>]*class="unseen"', drawing)
    found = Structure(page)
    assert "Picture 1 of the question: 4 of 8 visual tokens go on" in found.text
    assert "what is faded the model does not see" in found.text
    assert len(found.all("img")) == 2  # of the questions of which nothing is stored


def test_tiles_and_the_whole_are_two_drawings_of_one_picture(tmp_path: Path) -> None:
    plan = keep_in_front(facts.plan(model=TILED), 4, "gprune", {"keep": 0.5})
    data = made_up(tmp_path / "a", TILES, ((0, 1, 2, 3), (4, 5, 6, 7), (0, 2, 5, 7)), plan)
    first, second = drawings(html_report(data))
    assert drawn_cells(first) == [{4, 5, 6, 7}, {0, 1, 2, 3}]
    assert drawn_cells(second) == [{1, 3, 4, 6}]
    assert first.count("data:image/") == 1
    assert "data:image/" not in second
    (name,) = re.findall(r'<image [^>]*id="([^"]*)"', first)
    assert f'<use href="#{name}">' in second
    said = (
        "in 2 x 1 tiles: 8 of 16 visual tokens go on (top third 4, middle third 0, bottom third 4)"
    )
    assert said in markdown_report(data)
    assert "as a whole: 4 of 8 visual tokens go on" in markdown_report(data)


@pytest.mark.parametrize(
    ("plan", "steps", "words"),
    [
        (keep_in_front(HALF.naive(), 4, "pool", {"keep": 0.5}), CROP, "is the mean of a block of"),
        (keep_in_front(facts.plan(model=facts.facts(image_size=8)), 6, "gprune", {}), CROP,
         "is not known. So the"),
        (keep_at(HALF.naive(), 2, Kept(count=4, of=8, by="fastv")), CROP,
         "Which visual tokens go on at layer 2 is decided in the decoder for each question"),
        (HALF, None, "is not stored in this artifact"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_said(
    tmp_path: Path, plan: Plan, steps: tuple[PictureStep, ...] | None, words: str
) -> None:
    data = made_up(tmp_path / "a", steps, ((0, 1, 2, 3),), plan)
    page = html_report(data)
    assert drawings(page) == []
    assert len(Structure(page).all("img")) == 3
    assert words in markdown_report(data)
    assert words in Structure(page).text


def test_of_a_plan_that_keeps_all_nothing_is_said(tmp_path: Path) -> None:
    data = read_report(make_artifact(tmp_path / "a", asked=ASKED))
    assert "go on" not in markdown_report(data)
    assert drawings(html_report(data)) == []


@pytest.mark.parametrize(
    "tiles", [((0, 1, 2, 8),), ((0, 1, 2, 3), (0, 1, 2, 3)), ()], ids=["place", "tiles", "none"]
)
def test_places_that_do_not_fit_are_refused(
    tmp_path: Path, tiles: tuple[tuple[int, ...], ...]
) -> None:
    data = made_up(tmp_path / "a", CROP, tiles)
    with pytest.raises(ArtifactError, match=r"compressed\.json: kept: places that this model"):
        html_report(data)


def test_a_page_of_many_tiles_stays_small(tmp_path: Path) -> None:
    """Twelve tiles of 16 x 16 cells and the whole, every second cell left out: most runs of cells."""
    grid = facts.facts(token_grid=(16, 16), visual_tokens=256, most_tiles=13, image_size=448)
    plan = keep_in_front(facts.plan(model=grid), 128, "gprune", {"keep": 0.5})
    steps = (TileByAspect(size=(448, 448), least=12, most=12, resample="bicubic"),)
    places = tuple(p for p in range(256) if (p // 16 + p) % 2)
    data = made_up(tmp_path / "a", steps, (places,) * 13, plan)
    first, second = drawings(html_report(data))
    assert len(first) + len(second) < 60_000


@pytest.mark.parametrize(
    "kept",
    [
        {"size": [0, 1], "tiles": [[0]]},
        {"size": [1, 10**30], "tiles": [[0]]},
        {"size": [1, 100_000_000], "tiles": [[0]]},
        {"size": [100_000_000, 1], "tiles": [[-1]]},
        {"size": [40, 33], "tiles": [["x"]]},
        {"size": [40, 33]},
        {"size": [40, 33], "tiles": [[0]], "more": 1},
        7,
    ],
)
@pytest.mark.parametrize("steps", [CROP, TILES])
def test_damaged_places_are_one_of_our_errors_or_drawn(
    kept: object, steps: tuple[PictureStep, ...], tmp_path: Path
) -> None:
    model = GRID if steps is CROP else TILED
    plan = keep_in_front(facts.plan(model=model), 4, "gprune", {"keep": 0.5})
    folder = make_artifact(
        tmp_path / "a",
        plan=plan,
        asked=ASKED,
        recipe=RECIPE.format("gprune"),
        picture_steps=steps,
    )
    path = folder / COMPRESSED_FILE
    stored = json.loads(path.read_text())
    stored["answers"][0]["kept"] = [kept]
    path.write_text(json.dumps(stored))
    with contextlib.suppress(ArtifactError):
        (drawing,) = drawings(
            html_report(report_data(folder, Artifact.open(folder, verify=False).manifest))
        )
        assert drawn_cells(drawing) == [{1, 2, 3, 4, 5, 6, 7}]
