"""What the runtime takes as pictures: paths, PIL images, arrays and bytes, one or several; nothing else."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from compressor.errors import DataError
from compressor.samples import data_url
from compressor.samples.pictures import pictures_of, read_picture
from export.runtime.images import ImageProcessor, SeenPicture, looked_at
from export.runtime.runtime import Runtime
from tests.models import make_picture
from tests.runtimes import in_torch

FORMS: dict[str, Callable[[Path], Any]] = {
    "str": str,
    "Path": Path,
    "bytes": Path.read_bytes,
    "data URL": lambda path: (
        f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    ),
    "PIL image": Image.open,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "open file": lambda path: path.open("rb"),
    "array": lambda path: np.asarray(Image.open(path).convert("RGB")),
}


@pytest.fixture(scope="module")
def runtime(llava: Callable[[str], Path]) -> Runtime:
    return in_torch(llava("clip+llama"), [1])


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("given")
    return [make_picture(folder / f"{i}.png", seed=i) for i in range(2)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("several", [False, True], ids=["one", "a list"])
def test_every_form_of_a_picture_gives_the_same_answer_in_every_call(
    form: str, several: bool, runtime: Runtime, paths: list[Path]
) -> None:
    made = [FORMS[form](path) for path in paths[: 1 + several]]
    given = made if several else made[0]
    listed = paths[: 1 + several]
    expected = runtime.answer("what is it", listed, max_new_tokens=3)
    answers = [
        runtime.answer("what is it", given, max_new_tokens=3).text,
        "".join(runtime.generate("what is it", given, max_new_tokens=3)),
        "".join(runtime.chat().ask("what is it", given, max_new_tokens=3)),
        runtime.prefill_image(given).answer("what is it", max_new_tokens=3).text,
        next(runtime.answers([("what is it", given)], max_new_tokens=3))[1].text,
    ]
    assert set(answers) == {expected.text}
    seen, others = runtime.look(given), runtime.look(listed)
    for one, other in zip(seen, others, strict=True):
        assert np.array_equal(one.pixels, other.pixels)


def test_the_second_turn_of_a_chat_takes_one_picture_as_well(
    runtime: Runtime, paths: list[Path]
) -> None:
    turns = [("what is it", paths[0]), ("and this", paths[1])]
    alone, listed = runtime.chat(), runtime.chat()
    for asked, path in turns:
        one = "".join(alone.ask(asked, str(path), max_new_tokens=3))
        assert one == "".join(listed.ask(asked, [path], max_new_tokens=3))


def test_an_iterator_of_pictures_is_read_once(runtime: Runtime, paths: list[Path]) -> None:
    given = runtime.answer("what", iter(paths), max_new_tokens=2)
    assert given.text == runtime.answer("what", paths, max_new_tokens=2).text


def test_bytes_of_a_photograph_are_turned_upright_as_its_file_is(tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4), "red").save(path, exif=exif)
    assert read_picture(path.read_bytes(), "x").size == read_picture(path, "x").size == (4, 8)


def test_a_lone_name_is_a_file_not_letters(runtime: Runtime) -> None:
    with pytest.raises(DataError, match=r"^photo\.jpg: no such file"):
        runtime.answer("hi", "photo.jpg")


REFUSED: dict[str, tuple[Any, str]] = {
    "a number": (7, "images: a int is no picture"),
    "a mapping": ({"image": "x.png"}, "images: a dict is no picture"),
    "a set, which has no order": ({"x.png"}, "images: a set is no picture"),
    "none in a list": ([__file__, None], "images[1]: None is no picture"),
    "floats": (np.zeros((4, 4, 3)), "images[0]: an array [4, 4, 3] of float64; a picture is [H, W, 3]"),
    "grey": (np.zeros((4, 4), np.uint8), "images[0]: an array [4, 4] of uint8"),
    "transparency": (np.zeros((4, 4, 4), np.uint8), "images[0]: an array [4, 4, 4] of uint8"),
    "channels first": (np.zeros((3, 4, 4), np.uint8), "images[0]: an array [3, 4, 4] of uint8"),
    "a batch": (np.zeros((2, 4, 4, 3), np.uint8), "images[0]: an array [2, 4, 4, 3] of uint8"),
    "no rows": (np.zeros((0, 4, 3), np.uint8), "images[0]: an array [0, 4, 3] of uint8"),
    "a row of numbers": (range(9), "images: a range is no picture; give a path"),
    "a text file": (io.StringIO("x"), "images[0]: a StringIO gives text; open the file with mode 'rb'"),
    "a list of lists": ([["x.png"]], "images[0]: a list is no picture"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_picture_is_refused_by_place_and_kind(name: str, runtime: Runtime) -> None:
    given, words = REFUSED[name]
    for ask in (runtime.answer, runtime.generate, runtime.chat().ask):
        with pytest.raises(DataError) as caught:
            ask("what", given)
        assert str(caught.value).startswith(words)
    with pytest.raises(DataError):
        runtime.prefill_image(given)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "images[0]: "), (b"hello", "images[0]: is no image"), (b"\x89PNG\r\n", "images[0]: ")],
)
def test_bytes_that_are_no_image_are_named_by_place(
    content: bytes, words: str, runtime: Runtime
) -> None:
    with pytest.raises(DataError) as caught:
        runtime.answer("what", content)
    assert str(caught.value).startswith(words)


def test_all_that_is_no_picture_is_named_at_once() -> None:
    with pytest.raises(DataError) as caught:
        pictures_of([__file__, 3, None])  # type: ignore[list-item]
    assert [line.partition(":")[0] for line in caught.value.problems] == ["images[1]", "images[2]"]


def test_none_is_no_picture(runtime: Runtime) -> None:
    assert pictures_of(None) == ()
    asked = runtime.answer("what", None, max_new_tokens=2)
    assert asked.text == runtime.answer("what", max_new_tokens=2).text


def test_a_file_object_is_read_from_its_beginning_as_often_as_it_is_given(
    paths: list[Path],
) -> None:
    written = io.BytesIO()
    Image.open(paths[0]).save(written, "PNG")  # and stands at its end
    for _ in range(2):
        (one,) = pictures_of(written)
        assert np.array_equal(read_picture(one, "x"), Image.open(paths[0]).convert("RGB"))


def test_a_file_object_that_cannot_be_read_is_named_by_place(tmp_path: Path) -> None:
    with (tmp_path / "w").open("wb") as file, pytest.raises(DataError) as caught:
        pictures_of([__file__, file])
    (line,) = caught.value.problems
    assert line.startswith("images[1]: a BufferedWriter cannot be read")


def test_a_long_list_of_what_is_no_picture_is_cut_off() -> None:
    with pytest.raises(DataError) as caught:
        pictures_of([3] * 1000)  # type: ignore[list-item]
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "images: and 980 more"


NO_FILES: dict[str, tuple[str | Path, str]] = {
    "an address": ("https://x.org/y.png", "'https://x.org/y.png' is an address: download the picture"),
    "a path of an address": (Path("https://x.org/y.png"), "'https:/x.org/y.png' is an address: download"),
    "base64": ("iVBORw0KGgo=" * 30, "'iVBORw0KGgo"),
    "an empty name": (" ", "the name of a picture is empty"),
    "a folder": ("/", "/: is a folder; name a picture in it"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_FILES)
def test_a_name_that_is_no_file_is_judged_as_in_data(name: str, runtime: Runtime) -> None:
    given, words = NO_FILES[name]
    with pytest.raises(DataError) as caught:
        runtime.answer("what", given)
    (line,) = caught.value.problems
    assert line.startswith(words)


def test_an_image_token_in_a_question_is_told_of_the_question(runtime: Runtime) -> None:
    asks = (runtime.answer, runtime.generate, runtime.chat().ask)
    for ask in asks:
        with pytest.raises(DataError) as caught:
            ask(f"what {runtime.prompter.image_token}")
        assert str(caught.value).startswith("question: contains '")


def closed_before_it_was_read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image


def with_its_file_closed(path: Path) -> Image.Image:
    with path.open("rb") as file:
        return Image.open(file)


def closed_itself(path: Path) -> Image.Image:
    image = Image.open(path).convert("RGB")
    image.close()
    return image


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("closed", [closed_before_it_was_read, with_its_file_closed, closed_itself])
def test_a_closed_image_is_named_by_place_with_the_remedy(
    closed: Callable[[Path], Image.Image], mode: str, tmp_path: Path
) -> None:
    Image.new(mode, (8, 6)).save(tmp_path / "a.png")
    (picture,) = pictures_of(closed(tmp_path / "a.png"))
    with pytest.raises(DataError) as caught:
        read_picture(picture, "images[0]")
    (line,) = caught.value.problems
    assert line == (
        "images[0]: the image, or its file, was closed; call its load() before closing it, or give the path"
    )


def test_an_image_that_was_read_before_it_was_closed_is_a_picture(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        image.load()
    (picture,) = pictures_of(image)
    assert read_picture(picture, "images[0]").getpixel((0, 0)) == (255, 0, 0)


def test_an_open_image_that_is_cut_off_is_called_damaged_not_closed(tmp_path: Path) -> None:
    content = make_picture(tmp_path / "a.png").read_bytes()
    (tmp_path / "half.png").write_bytes(content[: len(content) // 2])
    with Image.open(tmp_path / "half.png") as image, pytest.raises(DataError, match="damaged"):
        read_picture(image, "images[0]")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("data:image/png;base64,@@@@", "images[0]: its base64 is damaged"),
        ("data:image/png;base64,", "images[0]: holds no bytes"),
        ("data:image/png,abc", "images[0]: is no data URL of a picture"),
        ("data:text/html;base64,YWJj", "images[0]: is no data URL of a picture"),
        ("DATA:", "images[0]: is no data URL of a picture"),
    ],
)
def test_a_data_url_that_holds_no_picture_is_refused_without_its_content(
    url: str, problem: str
) -> None:
    with pytest.raises(DataError) as caught:
        pictures_of(url)
    assert caught.value.problems[0].startswith(problem)
    assert "@@" not in str(caught.value)


def test_a_data_url_has_the_bound_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    content = base64.b64encode(bytes(100)).decode()
    assert data_url.data_url_content(f"data:image/png;base64,{content}", "it", 100) == bytes(100)
    monkeypatch.setattr(base64, "b64decode", lambda *_, **__: pytest.fail("it was decoded"))
    with pytest.raises(DataError, match="it: is too long"):
        data_url.data_url_content(f"data:image/png;base64,{content}", "it", 90)


def test_what_a_model_does_not_take_is_told_by_the_name_of_the_picture(tmp_path: Path) -> None:
    """Steps of a model know no names; with two pictures nobody would know which is meant."""
    file, rows = tmp_path / "wide.png", np.zeros((1, 1, 3, 2, 2), np.float32)
    Image.new("RGB", (9, 2)).save(file)
    small = Image.new("RGB", (2, 2))

    def alone(image: Image.Image) -> SeenPicture:
        if image.width > 8:
            raise DataError(["image: 9 x 2 pixels: crop it"])
        return SeenPicture(rows[0], 1, "", beside_others=DataError(["image: cannot stand beside"]))

    for given, line in (
        ([small, file], f"{file}: 9 x 2 pixels: crop it"),
        ([small, np.zeros((2, 9, 3), np.uint8)], "images[1]: 9 x 2 pixels: crop it"),
        ([small, small], "images[0]: cannot stand beside"),
    ):
        with pytest.raises(DataError) as caught:
            looked_at(given, cast("ImageProcessor", alone))
        assert caught.value.problems == (line,)
