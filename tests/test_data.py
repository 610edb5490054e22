"""Questions from jsonl: what is read, what is refused and in which words, what is drawn, what is digested."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import DataError
from compressor.samples.questions import Sample, choose, data_digest, notes_on, read_samples


def written(folder: Path, *rows: Any, name: str = "data.jsonl") -> Path:
    """Write rows (dicts as JSON, texts as they are) and the pictures a.png and sub/b.png beside them."""
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "a.png").write_bytes(b"picture a")
    (folder / "sub" / "b.png").write_bytes(b"picture b")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def problems(path: Path) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        read_samples(path)
    return caught.value.problems


def test_a_question_is_read_with_its_picture_relative_to_the_file(tmp_path, monkeypatch):
    path = written(
        tmp_path, {"image": "sub/b.png", "question": "What?", "answer": "b", "kind": "letter"}
    )
    monkeypatch.chdir(tmp_path.parent)
    (sample,) = read_samples(path)
    assert sample.images[0].read_bytes() == b"picture b"
    assert (sample.question, sample.answer, sample.kind) == ("What?", "b", "letter")


def test_answer_and_kind_may_be_left_out_or_null(tmp_path):
    path = written(
        tmp_path,
        {"image": "a.png", "question": "q"},
        {"image": "a.png", "question": "q", "answer": None, "kind": None},
    )
    assert [(s.answer, s.kind) for s in read_samples(path)] == [(None, ""), (None, "")]


def test_a_list_of_pictures_keeps_its_order(tmp_path):
    path = written(tmp_path, {"image": ["sub/b.png", "a.png", "sub/b.png"], "question": "q"})
    (sample,) = read_samples(path)
    assert [p.name for p in sample.images] == ["b.png", "a.png", "b.png"]


@pytest.mark.parametrize("row", [{"question": "q"}, {"question": "q", "image": []}])
def test_a_question_without_picture_is_text_only(tmp_path, row):
    assert read_samples(written(tmp_path, row))[0].images == ()


def test_blank_lines_are_passed_over_and_still_counted(tmp_path):
    path = written(tmp_path, "", {"question": "q"}, "   ", "no json")
    assert problems(path) == (f"{path}:4: not JSON",)


def test_all_problems_of_all_lines_are_named_at_once_with_their_line_numbers(tmp_path):
    path = written(
        tmp_path,
        {"image": "a.png", "question": "fine"},
        {"image": "gone.png", "question": " ", "answer": {"a": 7}, "kind": ["x"], "img": 1},
        "[1, 2]",
        {"image": {"file": "a.png"}, "question": "q"},
        {"image": ["a.png", 5], "question": None},
    )
    assert problems(path) == (
        f"{path}:2: image: {tmp_path / 'gone.png'}: no such file",
        f"{path}:2: question: is empty",
        f"{path}:2: answer: must be a text, a number, true or false, or a list of these",
        f"{path}:2: kind: must be a text",
        f"{path}:3: not a JSON object",
        f"{path}:4: image: must be a file name or a list of file names",
        f"{path}:5: image: must be a file name or a list of file names",
        f"{path}:5: question: must be a text",
    )


@pytest.mark.parametrize(
    ("count", "last"), [(20, "not JSON"), (21, "and 1 more"), (300, "and 280 more")]
)
def test_no_more_than_twenty_problems_are_listed_and_the_rest_counted(tmp_path, count, last):
    path = written(tmp_path, *["no json"] * count)
    lines = problems(path)
    assert len(lines) == min(count, 21)
    assert lines[0] == f"{path}:1: not JSON"
    assert lines[-1].endswith(f": {last}")


@pytest.mark.parametrize(
    ("name", "said"), [("a\0.png", "another one"), ("x.png" * 1000, "a shorter one")]
)
def test_a_name_that_no_file_can_have_is_told_with_the_remedy(tmp_path, name, said):
    (line,) = problems(written(tmp_path, {"image": name, "question": "q"}))
    assert line.endswith(f"; choose {said}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "is empty; leave it out, or null, for a question without a picture"),
        ("sub", "{folder}/sub: is a folder; name a picture in it"),
        (
            "https://a.org/7.jpg",
            "'https://a.org/7.jpg' is an address: download the picture and name the file",
        ),
        (
            "file:///a/7.jpg",
            "'file:///a/7.jpg' is an address: download the picture and name the file",
        ),
        (
            "data:image/png;base64,iVBORw0KGgo=",
            "is a picture's content, not a file's name: save it as a file",
        ),
        (
            "iVBORw0KGgo" * 40,
            "is a picture's content, not a file's name: save it as a file and name that",
        ),
        ("sub\\b.png", "{folder}/sub\\b.png: no such file; write / instead of \\"),
        ("~nobody-has-this-name/a.png", "{folder}/~nobody-has-this-name/a.png: no such file"),
    ],
)
def test_what_is_no_file_of_a_picture_is_said_for_what_it_is(tmp_path, name, said):
    (line,) = problems(written(tmp_path, {"image": name, "question": "q"}))
    assert line.startswith(f"{tmp_path}/data.jsonl:1: image: ")
    assert said.format(folder=tmp_path) in line
    assert len(line) < 300


def test_a_tilde_is_the_home_folder_and_null_is_no_picture(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "sub"))
    path = written(
        tmp_path, {"image": "~/b.png", "question": "q"}, {"image": None, "question": "r"}
    )
    one, other = read_samples(path)
    assert one.images == (tmp_path / "sub" / "b.png",)
    assert other.images == ()


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (7, ("7",)),
        (0.50, ("0.5",)),
        (True, ("yes", "Yes", "true", "True")),
        (False, ("no", "No", "false", "False")),
        (["two", 2, "two", " "], ("two", "2", "two")),
        ([], ()),
        (None, ()),
        ("x", ("x",)),
    ],
)
def test_numbers_truth_and_lists_are_read_as_answers(tmp_path, answer, right):
    (sample,) = read_samples(written(tmp_path, {"question": "q", "answer": answer}))
    assert sample.answers == right
    assert sample.answer == (right[0] if right else None)


def test_a_number_stays_as_it_was_written(tmp_path):
    path = written(tmp_path, '{"question": "q", "answer": 0.50, "kind": 3}')
    (sample,) = read_samples(path)
    assert (sample.answer, sample.kind) == ("0.50", "3")
    assert problems(written(tmp_path, '{"question": 3, "image": 4}')) == (
        f"{path}:1: image: must be a file name or a list of file names",
        f"{path}:1: question: must be a text",
    )


@pytest.mark.parametrize("answer", [{"answer": "x"}, [["x"]], [{"answer": "x"}]])
def test_an_answer_of_another_form_is_refused(tmp_path, answer):
    (line,) = problems(written(tmp_path, {"question": "q", "answer": answer}))
    assert line.endswith(": answer: must be a text, a number, true or false, or a list of these")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"images": ["a.png"], "question": "q"},
            ["image: missing; this line has 'images': call it 'image'"],
        ),
        (
            {"image": "a.png", "prompt": "q"},
            ["question: missing; this line has 'prompt': call it 'question'"],
        ),
        (
            {"image_path": "a.png", "Query": "q"},
            [
                "image: missing; this line has 'image_path': call it 'image'",
                "question: missing; this line has 'Query': call it 'question'",
            ],
        ),
        (
            {"imgae": "a.png", "question": "q"},
            ["image: missing; this line has 'imgae': call it 'image'"],
        ),
        ({"image": "a.png"}, ["question: must be a text"]),
    ],
)
def test_a_key_of_another_data_set_is_told_what_it_is_called_here(tmp_path, row, said):
    path = written(tmp_path, row)
    assert problems(path) == tuple(f"{path}:1: {line}" for line in said)


def test_keys_that_are_not_read_are_noted_once_with_their_count_and_what_is_near_them(tmp_path):
    rows = [{"id": i, "image": "a.png", "question": f"q{i}", "label": "x"} for i in range(3)]
    path = written(tmp_path, *rows, {"question": "r", "images": []} | {"image": "a.png"})
    samples = read_samples(path)
    assert [len(sample.images) for sample in samples] == [1] * 4
    assert notes_on([*samples, *samples]) == (
        f"{path}: keys that are not read: 'id' (3), 'label' (3; did you mean 'answer'?), 'images' (1) "
        "(read: image, question, answer, kind)",
    )
    answered = written(tmp_path, *({**row, "answer": "y"} for row in rows))
    assert "did you mean" not in notes_on(read_samples(answered))[0]
    assert notes_on(read_samples(written(tmp_path, {"question": "q"}))) == ()


def test_questions_that_are_there_twice_are_noted_and_keys_that_are_given_twice_refused(tmp_path):
    path = written(tmp_path, {"question": "q"}, {"question": "r"}, {"question": "q", "answer": "x"})
    assert notes_on(read_samples(path)) == (f"{path}: 1 of 3 questions are there more than once",)
    path = written(tmp_path, '{"question": "q", "answer": "x", "answer": "y"}')
    assert problems(path) == (f"{path}:1: answer: given 2 times; keep one",)


def test_a_mark_of_byte_order_is_no_part_of_the_first_line(tmp_path):
    path = tmp_path / "bom.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"question": "q"}\n')
    assert [s.question for s in read_samples(path)] == ["q"]


def test_a_json_list_is_called_one(tmp_path):
    path = written(tmp_path, '[\n {"question": "q"},\n {"question": "r"}\n]')
    assert problems(path) == (
        f"{path}: a JSON list; write one JSON object a line, without [ ] and commas",
    )


def test_the_digest_knows_every_right_answer_and_that_of_one_is_what_it_was(tmp_path):
    one, two, three = (
        data_digest(read_samples(written(tmp_path, {"question": "q", "answer": answer})))
        for answer in ("x", ["x"], ["x", "y"])
    )
    assert one == two != three


def test_deeply_nested_json_is_no_json_rather_than_a_crash(tmp_path):
    path = written(tmp_path, "[" * 100_000)
    assert problems(path) == (f"{path}:1: not JSON",)


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"question": "q"}\n{"question": "größer?"}'.encode("latin-1"))
    assert problems(path) == (f"{path}:2: not UTF-8 text; save the file as UTF-8",)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_questions_is_refused(tmp_path, text):
    path = tmp_path / "empty.jsonl"
    path.write_text(text)
    assert problems(path) == (f"{path}: no questions in it; one JSON object a line is needed",)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    path = tmp_path / "none.jsonl"
    assert problems(path) == (f"{path}: no such file",)
    assert problems(tmp_path) == (
        f"{tmp_path}: is a folder, not a file; name a file, or put the right one in its place",
    )


def test_an_absurdly_large_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = written(tmp_path, {"question": "q"})
    monkeypatch.setattr("compressor.disk.opening.MAX_TEXT_BYTES", 3)
    (line,) = problems(path)
    assert line.startswith(f"{path}: larger than")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_only_a_line_feed_ends_a_line(tmp_path, separator):
    row = json.dumps({"question": f"one{separator}two"}, ensure_ascii=False)
    assert read_samples(written(tmp_path, row))[0].question == f"one{separator}two"


def test_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "crlf.jsonl"
    path.write_bytes(b'{"question": "q"}\r\n{"question": "r"}\r\n')
    assert [s.question for s in read_samples(path)] == ["q", "r"]


def some_samples(count: int) -> list[Sample]:
    return [Sample((), f"question {i}") for i in range(count)]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32))
def test_a_draw_has_the_wanted_size_and_keeps_the_file_order(have, count, seed):
    samples = some_samples(have)
    drawn = choose(samples, count, seed)
    assert len(drawn) == min(count, have)
    places = [samples.index(s) for s in drawn]
    assert places == sorted(set(places))
    assert choose(samples, count, seed) == drawn


def test_a_draw_is_the_seeds_and_does_not_touch_the_global_generator():
    samples = some_samples(50)
    random.seed(1)
    state = random.getstate()
    draws = {choose(samples, 10, seed) for seed in range(20)}
    assert len(draws) == 20
    assert random.getstate() == state
    assert choose(samples, 10, 0) != tuple(samples[:10])


def test_without_a_count_all_are_taken():
    samples = some_samples(5)
    assert choose(samples, None, 3) == tuple(samples) == choose(samples, 5, 3)


def two_samples(folder: Path) -> list[Sample]:
    path = written(
        folder,
        {"image": ["a.png", "sub/b.png"], "question": "q", "answer": "x", "kind": "k"},
        {"question": "r"},
    )
    return list(read_samples(path))


def test_the_digest_is_the_same_for_the_same_data_in_another_folder(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = data_digest(two_samples(tmp_path / "one"))
    assert first == data_digest(two_samples(tmp_path / "two"))
    assert len(first) == 64
    assert set(first) <= set("0123456789abcdef")


def test_the_digest_changes_with_pictures_words_and_order(tmp_path):
    first, second = two_samples(tmp_path)
    digests = [
        data_digest(samples)
        for samples in (
            [first, second],
            [second, first],
            [first],
            [first, second, second],
            [Sample(first.images[::-1], "q", "x", "k"), second],
            [Sample(first.images[:1], "q", "x", "k"), second],
            [Sample(first.images, "Q", "x", "k"), second],
            [Sample(first.images, "q", "y", "k"), second],
            [Sample(first.images, "q", None, "k"), second],
            [Sample(first.images, "q", "x", "l"), second],
            [Sample(first.images, "qx", "", "k"), second],
        )
    ]
    (tmp_path / "a.png").write_bytes(b"picture A")
    digests.append(data_digest([first, second]))
    assert len(set(digests)) == len(digests)


def test_halves_of_characters_are_refused_since_no_file_can_hold_them(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(
        json.dumps({"question": "\ud800", "answer": "a\udfff"}) + "\n", encoding="utf-8"
    )
    with pytest.raises(DataError) as caught:
        read_samples(path)
    assert caught.value.problems == (
        f"{path}:1: question: not valid Unicode",
        f"{path}:1: answer: not valid Unicode",
    )


@pytest.mark.parametrize("size", [7, 64, 100, 256, 300])
def test_more_samples_of_a_seed_hold_the_fewer_ones(size):
    samples = [Sample((), f"question {number}") for number in range(size)]
    before: set[Sample] = set()
    for count in (1, 3, 6, 24, 64, 128, 512):
        drawn = choose(samples, count, seed=5)
        assert len(drawn) == min(count, size)
        assert before <= set(drawn)
        assert list(drawn) == [sample for sample in samples if sample in set(drawn)]
        before = set(drawn)


TURNS = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a cat"}]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question_id": 7, "text": "q"}, "question: missing; this line has 'text': call it 'question'"),
        ({"question_id": "7"}, "question: must be a text"),
        ({"questions": 3}, "question: must be a text"),
        *(
            (
                {name: TURNS},
                f"question: missing; this line has {name!r}, a list of turns: give the user's words as "
                "'question' and the reply as 'answer'",
            )
            for name in ("conversations", "messages")
        ),
        ({"question": ""}, "question: is empty"),
        ({"question": " \n"}, "question: is empty"),
    ],
)  # fmt: skip
def test_a_hint_at_another_name_works_if_it_is_followed(tmp_path, row, said):
    assert problems(written(tmp_path, row)) == (f"{tmp_path}/data.jsonl:1: {said}",)


@pytest.mark.parametrize(
    ("answer", "read", "noted"),
    [
        ("", (), True),
        ("   ", (), True),
        ([""], (), True),
        ([None], (), True),
        ([None, "1"], ("1",), True),
        (["1", " "], ("1",), True),
        (None, (), False),
        ([], (), False),
        ("1", ("1",), False),
    ],
)
def test_a_blank_answer_is_none_everywhere_and_is_counted(tmp_path, answer, read, noted):
    samples = read_samples(written(tmp_path, {"question": "q", "answer": answer}))
    assert samples[0].answers == read
    words = "answers that are blank or null count as none, in 1 of 1 questions"
    assert notes_on(samples) == ((f"{tmp_path}/data.jsonl: {words}",) if noted else ())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"image,question\na.png,what?\nb.png,who?\n", "looks like a table (CSV); write one JSON object a"),
        (b"image\tquestion\na.png\twhat?\n", "looks like a table (CSV); write one JSON object a line"),
        (b'{\n  "image": null,\n  "question": "q"\n}\n', "one JSON document; write one JSON object a line"),
        (b'{"data": [{"question": "q"}]}\n', "one JSON document; write one JSON object a line"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0", "is no text file; a .jsonl file of questions is needed"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_told_in_one_line(tmp_path, content, said):
    path = tmp_path / "data.x"
    path.write_bytes(content)
    (line,) = problems(path)
    assert line.startswith(f"{path}: {said}")
