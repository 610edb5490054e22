"""A processor that does not fit, and questions that cannot be asked, are refused before weights are read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vtcompress
from compressor.errors import DataError, ModelError, VtcompressError
from compressor.families import registry
from compressor.progress import SILENT
from compressor.recipe import Recipe
from compressor.samples.scores import EXACT
from tests.models import make_picture
from vtcompress.cli.main import run_command as run_cli
from vtcompress.stages import validate

Fault = Callable[[Path], None]
STAGES = ("export", "calibrate", "plan", "compress", "train-gates")


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny model that a test may change; like a hub id's, its weights are not here."""
    weights = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(tiny_model, tmp_path / "changed", ignore=weights))


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where weights are fetched or read, be it for a digest alone."""
    find = registry.local_folder

    def read(*_: Any, **__: Any) -> Any:
        pytest.fail("weights were read")

    def found(*place: Any, weights: bool = True, **options: Any) -> Path:
        return find(*place, weights=weights, **options) if not weights else read()

    monkeypatch.setattr("compressor.families.registry.local_folder", found)
    monkeypatch.setattr("compressor.families.registry.equal", read)
    monkeypatch.setattr("compressor.families.folder.digest", read)
    monkeypatch.setattr("compressor.families.registry.digest", read)
    monkeypatch.setattr("compressor.families.llava.family.LlavaFamily.original", read)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def config(**changes: Any) -> Fault:
    return lambda folder: edit(folder / "config.json", lambda c: c.update(changes))


def processor(**changes: Any) -> Fault:
    return lambda folder: edit(folder / "processor_config.json", lambda c: c.update(changes))


def images(**changes: Any) -> Fault:
    return lambda folder: edit(
        folder / "processor_config.json", lambda c: c["image_processor"].update(changes)
    )


def no_image_token(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace('"<image>"', '"<img>"'))


def newer_name(folder: Path) -> None:
    edit(folder / "config.json", lambda c: c.pop("image_token_index"))
    config(image_token_id=7)(folder)


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def bad_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}")


def template(text: str) -> Fault:
    def change(folder: Path) -> None:
        (folder / "chat_template.jinja").write_text(text)

    return change


def template_in(name: str, text: str) -> Fault:
    def change(folder: Path) -> None:
        no_template(folder)
        path = folder / name
        content = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**content, "chat_template": text}))

    return change


def tokenizer(**changes: Any) -> Fault:
    return lambda folder: edit(folder / "tokenizer_config.json", lambda c: c.update(changes))


def no_number(key: str, value: Any) -> tuple[Fault, tuple[str, ...]]:
    return processor(**{key: value}), (
        f"processor_config.json: {key}: {value!r} is not allowed; one whole number", "remove the key",
    )  # fmt: skip


NO_PICTURE = ": the chat template cannot ask a question with a picture: "
NONE_WRITTEN = (
    f"{NO_PICTURE}wrote 0 image tokens '<image>' for 1 images; put the template of the",
)
IMAGES = "processor_config.json: image_processor"
SMALL = {"height": 16, "width": 16}
FOLDERS: dict[str, tuple[Fault, tuple[str, ...]]] = {
    "another image token in the configuration": (
        config(image_token_index=7),
        ("config.json: image_token_index: 7", "tokenizer.json", "'<image>' has the id 4", "'what'"),
    ),
    "another image token under its newer name": (
        newer_name, ("config.json: image_token_id: 7", "'<image>' has the id 4"),
    ),
    "no image token in the tokenizer": (
        no_image_token, ("tokenizer.json: the image token '<image>' is not one of its tokens",),
    ),
    "an image token without a row in the table": (
        lambda folder: edit(
            folder / "config.json", lambda c: c["text_config"].update(vocab_size=4)
        ),
        ("config.json: image_token_index: 4 has no row in the embedding table of 4",),
    ),
    "a crop that is not the tower's size": (
        images(size={"shortest_edge": 16}, crop_size=SMALL),
        (f"{IMAGES}: gives pictures of 16 x 16", "takes 32 x 32: correct size and crop"),
    ),
    "an image processor that the runtime does not know": (
        images(image_processor_type="ViTImageProcessor", size={"height": 32, "width": 32}),
        (f"{IMAGES}: image_processor_type: ViTImageProcessor", "is not supported"),
    ),
    "an image processor that cuts pictures in tiles": (
        images(image_processor_type="LlavaNextImageProcessor", image_grid_pinpoints=[[32, 64]]),
        (f"{IMAGES}: image_processor_type: LlavaNext", "gives several pictures for one"),
    ),
    "an option that the runtime does not know": (
        images(do_pad=True, pad_size={"height": 32, "width": 32}),
        (f"{IMAGES}: pad_size: ", "padding to a fixed size is not supported"),
    ),
    "pictures of many shapes": (
        images(do_center_crop=False),
        (f"{IMAGES}: size: {{'shortest_edge': 32}}: gives images of different", "without a crop"),
    ),
    "no chat template": (no_template, ("changed: no chat template",)),
    "a chat template that cannot be compiled": (
        bad_template, ("chat_template.jinja: line 1: the chat template cannot be compiled",),
    ),
    "a chat template without pictures": (template("hi"), ("/chat_template.jinja", *NONE_WRITTEN)),
    "an empty chat template": (template(""), ("/chat_template.jinja", *NONE_WRITTEN)),
    "a chat template that includes another": (
        template("{% include 'a' %}"), (f"chat_template.jinja{NO_PICTURE}", "no loader", "; put the"),
    ),
    "a chat template that raises": (
        template("{{ raise_exception('no;\nx') }}"),
        (f"chat_template.jinja{NO_PICTURE}cannot write this conversation: no;; put the template",),
    ),
    "a chat template that loses the question": (
        template("<image>"), (f"chat_template.jinja{NO_PICTURE}", "lost the text 'What is"),
    ),
    "one in the tokenizer's file": (
        template_in("tokenizer_config.json", "hi"), ("/tokenizer_config.json", *NONE_WRITTEN),
    ),
    "one in the processor's file": (
        template_in("processor_config.json", "hi"), ("/processor_config.json", *NONE_WRITTEN),
    ),
    "one in its older file": (
        template_in("chat_template.json", "hi"), ("/chat_template.json", *NONE_WRITTEN),
    ),
    "one in the tokenizer's file that cannot be compiled": (
        template_in("tokenizer_config.json", "{% for m in messages %}"),
        ("/tokenizer_config.json: line 1: the chat template cannot be compiled",),
    ),
    "no patch size": no_number("patch_size", 0),
    "a patch size that is text": no_number("patch_size", "8"),
    "a patch size whose square is right": no_number("patch_size", -8),
    "class tokens that are text": no_number("num_additional_image_tokens", "1"),
    "class tokens that are no number": no_number("num_additional_image_tokens", True),
    "an image processor of no name": (
        images(image_processor_type="FooImageProcessor"),
        (f"{IMAGES}: image_processor_type: 'FooImageProcessor' cannot be used; put", "CLIPImage"),
    ),
    "an image processor that is a list": (
        processor(image_processor=[1]), ("processor_config.json: image_processor is [1], which is no",),
    ),
    "a mean that is text": (
        images(image_mean="x"), (f"{IMAGES}: image_mean: 'x': must be one number or three",),
    ),
    "a size that is none": (
        images(size={}), (f"{IMAGES}: size: {{}} cannot be used: ", "; correct it"),
    ),
    "a length that is text": (
        tokenizer(model_max_length="x"),
        ("tokenizer_config.json: model_max_length: 'x' cannot be used: ", "; correct it"),
    ),
    "another patch size in the processor": (
        processor(patch_size=16), ("processor_config.json: gives 4 image tokens", "give 16: correct"),
    ),
    "another strategy in the processor": (
        processor(vision_feature_select_strategy="full"), ("gives 17 image tokens", "give 16"),
    ),
    "no class token in the processor": (
        processor(num_additional_image_tokens=0), ("gives 15 image tokens", "give 16"),
    ),
}  # fmt: skip


def run(stage: str, recipe: Recipe, tmp_path: Path, questions: Path) -> None:
    if stage == "export":
        vtcompress.export(recipe, tmp_path / "out")
    elif stage == "calibrate":
        vtcompress.calibrate(recipe, tmp_path / "profile.json")
    elif stage == "plan":
        vtcompress.plan(recipe)
    elif stage == "compress":
        vtcompress.compress(recipe, None, tmp_path / "out")  # type: ignore[arg-type]
    else:
        gates = recipe.override({"compress": [{"dyvte": {}}]})
        vtcompress.train_gates(gates, questions, tmp_path / "gates.safetensors")


def refused(stage: str, recipe: Recipe, tmp_path: Path, questions: Path) -> tuple[str, ...]:
    with pytest.raises((ModelError, DataError)) as caught:
        run(stage, recipe, tmp_path, questions)
    assert isinstance(caught.value, VtcompressError)
    assert not {"out", "profile.json", "gates.safetensors"} & {p.name for p in tmp_path.iterdir()}
    return caught.value.problems


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("name", FOLDERS)
def test_a_processor_that_does_not_fit_is_one_line_before_weights_are_read(
    name: str, folder: Path, questions: Path, tmp_path: Path
) -> None:
    fault, words = FOLDERS[name]
    fault(folder)
    recipe = vtcompress.load_recipe("identity").override(
        {"model.id": str(folder), "calibrate.data": questions}
    )
    for stage in STAGES:
        (line,) = refused(stage, recipe, tmp_path, questions)
        assert "\n" not in line
        assert str(folder) in line
        assert "/tmp" not in line.replace(str(tmp_path), "")
        for word in words:
            assert word in line
    _, found = vtcompress.inspect(folder)["problems"]  # the first: there are no weights here
    assert found == line


@pytest.mark.usefixtures("no_weights")
def test_a_chat_template_need_not_take_a_question_without_a_picture(folder: Path) -> None:
    written = (folder / "chat_template.jinja").read_text()
    picture = (
        "{% if messages[0]['content'][0]['type'] != 'image' %}{{ raise_exception('x') }}{% endif %}"
    )
    template(picture + written)(folder)
    (weights,) = vtcompress.inspect(folder)["problems"]
    assert "the weights are not here" in weights


def with_rows(path: Path, rows: dict[int, dict[str, Any]]) -> Path:
    """Write six good questions, with others in some lines."""
    make_picture(path.parent / "a.png")
    good = {"image": "a.png", "question": "what is this", "answer": "red"}
    lines = [json.dumps(good | rows.get(number, {})) for number in range(1, 7)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def broken_picture(tmp_path: Path) -> None:
    picture = make_picture(tmp_path / "half.png")
    picture.write_bytes(picture.read_bytes()[:300])


ROWS: dict[str, tuple[dict[int, dict[str, Any]], tuple[str, ...]]] = {
    "too long": (
        {5: {"question": "what " * 600}}, (":5: its prompt takes ", "of the model's 512 positions"),
    ),
    "the image token as text": (
        {3: {"question": "what is <image> this"}}, (":3: question: contains '<image>' 1 times",),
    ),
    "a token without an embedding": (
        {4: {"question": "what is <new>"}}, (":4: ", "without an embedding: '<new>' (id 48)"),
    ),
    "more pictures than fit": (
        {2: {"image": ["a.png"] * 40}}, (":2: its prompt takes ", "give fewer pictures"),
    ),
    "a picture that is cut off": ({6: {"image": "half.png"}}, (":6: image: ", "half.png: the image is")),
}  # fmt: skip


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("place", ["calibrate", "validate", "float16", "gates", "gates held out"])
def test_questions_that_cannot_be_asked_are_named_by_file_and_line_all_at_once(
    place: str, folder: Path, questions: Path, tmp_path: Path
) -> None:
    add_token(folder, "<new>")
    broken_picture(tmp_path)
    rows = {number: row for rows, _ in ROWS.values() for number, row in rows.items()}
    data = with_rows(tmp_path / "asked.jsonl", rows)
    recipe = vtcompress.load_recipe("identity").override({"model.id": str(folder)})
    values: dict[str, dict[str, Any]] = {
        "calibrate": {"calibrate.data": data},
        "validate": {"validate.data": data},
        "float16": {"calibrate.data": data, "export.dtype": "float16"},
        "gates held out": {"validate.data": data},
    }
    recipe = recipe.override(values.get(place, {}))
    stage = {"calibrate": "calibrate", "gates": "train-gates", "gates held out": "train-gates"}
    learnt = data if place == "gates" else questions
    problems = refused(stage.get(place, "export"), recipe, tmp_path, learnt)
    assert len(problems) == len(ROWS)
    for _, words in ROWS.values():
        (line,) = [line for line in problems if f"asked.jsonl{words[0]}" in line]
        assert all(word in line for word in words)


def add_token(folder: Path, text: str) -> None:
    """Give the tokenizer a token that the model has no row for."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.add_tokens([text]) == 1
    tokenizer.save_pretrained(folder)


@pytest.mark.usefixtures("no_weights")
def test_a_long_answer_must_fit_behind_the_prompt(folder: Path, tmp_path: Path) -> None:
    data = with_rows(tmp_path / "asked.jsonl", {2: {"question": "what " * 480}})
    changes = {"model.id": str(folder), "validate.data": data}
    for tokens, fits in ((4, True), (64, False)):
        recipe = vtcompress.load_recipe("identity").override(
            changes | {"validate.max_new_tokens": tokens}
        )
        if fits:
            with pytest.raises(pytest.fail.Exception, match="weights were read"):
                vtcompress.export(recipe, tmp_path / "out")
            continue
        (line,) = refused("export", recipe, tmp_path, data)
        assert "64 new tokens do not fit" in line
        assert "validate.max_new_tokens" in line


@pytest.mark.usefixtures("no_weights")
def test_questions_must_fit_into_a_fixed_cache(folder: Path, tmp_path: Path) -> None:
    data = with_rows(tmp_path / "asked.jsonl", {2: {"question": "what " * 60}})
    recipe = vtcompress.load_recipe("identity").override(
        {
            "model.id": str(folder),
            "validate.data": data,
            "validate.max_new_tokens": 4,
            "export.kv_cache": "fixed",
            "export.profiles.max_context": 64,
        }
    )
    (line,) = refused("export", recipe, tmp_path, data)
    assert "asked.jsonl:2: its prompt takes 79 of the 64 rows of the KV cache" in line
    assert "export.profiles.max_context" in line


@pytest.mark.usefixtures("no_weights")
def test_the_processor_is_checked_at_the_image_size_that_is_asked_for(
    folder: Path, tmp_path: Path
) -> None:
    # 64 x 64 pixels are 64 visual tokens: the question fits at 32 x 32 alone.
    data = with_rows(tmp_path / "asked.jsonl", {2: {"question": "what " * 470}})
    changes = {"model.id": str(folder), "validate.data": data, "validate.max_new_tokens": 4}
    recipe = vtcompress.load_recipe("identity").override(changes)
    with pytest.raises(pytest.fail.Exception, match="weights were read"):
        vtcompress.export(recipe, tmp_path / "out")
    (line,) = refused("export", recipe.override({"export.image_size": 64}), tmp_path, data)
    assert "asked.jsonl:2: its prompt takes 537 of the model's 512 positions" in line


class Said:
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def track(self, items: Any, *_: Any) -> Any:
        return items


@pytest.mark.usefixtures("no_weights")
def test_tokens_beyond_the_table_that_no_question_uses_are_told_and_stop_nothing(
    folder: Path, questions: Path, tmp_path: Path
) -> None:
    add_token(folder, "<new>")
    recipe = vtcompress.load_recipe("identity").override(
        {"model.id": str(folder), "validate.data": questions}
    )
    said = Said()
    with pytest.raises(pytest.fail.Exception, match="weights were read"):
        vtcompress.export(recipe, tmp_path / "out", progress=said)
    (note,) = [line for line in said.lines if line.startswith("note:")]
    assert "1 tokens without a row in the embedding table of 48: '<new>' (id 48)" in note


def test_an_export_of_a_compressed_model_reads_its_questions_first(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = vtcompress.load_recipe("identity").override({"model.id": str(tiny_model)})
    small = vtcompress.compress(recipe, vtcompress.plan(recipe), tmp_path / "small")
    monkeypatch.setattr(
        "compressor.compressed.load_compressed", lambda *_, **__: pytest.fail("weights were read")
    )
    data = with_rows(tmp_path / "asked.jsonl", {3: {"question": "what " * 600}})
    asked = recipe.override({"validate.data": data})
    with pytest.raises(DataError, match=r"asked\.jsonl:3: its prompt takes .* of the model's 512"):
        vtcompress.export(asked, tmp_path / "out", compressed=small)
    edit(small / "processor_config.json", lambda c: c.update(patch_size=16))
    with pytest.raises(ModelError, match="gives 4 image tokens for a picture"):
        vtcompress.export(asked, tmp_path / "out", compressed=small)


@pytest.mark.usefixtures("no_weights")
def test_other_data_is_read_before_the_original_is_measured_on_it(
    folder: Path, tmp_path: Path
) -> None:
    data = with_rows(tmp_path / "asked.jsonl", {3: {"question": "what " * 600}})
    recipe = vtcompress.load_recipe("identity")
    with pytest.raises(DataError, match=r"asked\.jsonl:3: its prompt takes"):
        validate._measure_again(None, recipe, str(folder), data, EXACT, "cpu", SILENT)  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_weights")
def test_inspect_tells_what_is_wrong_with_a_processor(
    folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config(image_token_index=7)(folder)
    assert run_cli(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "image_token_id" in out
    assert f"problem: {folder / 'config.json'}: image_token_index: 7 is not the image token" in out
    weights, _ = vtcompress.inspect(folder)["problems"]
    assert "the weights are not here" in weights, "the fixture took them away"
    assert "problems" not in vtcompress.inspect(tiny_model)
