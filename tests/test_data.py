"""Questions from jsonl: what is read, what is refused and in which words, what is drawn, what is digested."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.calibration.data import Sample, choose, data_digest, read_samples
from compressor.errors import DataError


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
        {"image": "gone.png", "question": " ", "answer": 7, "kind": ["x"], "img": 1},
        "[1, 2]",
        {"image": {"file": "a.png"}, "question": "q"},
        {"image": ["a.png", 5], "question": None},
    )
    assert problems(path) == (
        f"{path}:2: img: unknown key; known: image, question, answer, kind",
        f"{path}:2: question: must be a text",
        f"{path}:2: answer: must be a text",
        f"{path}:2: kind: must be a text",
        f"{path}:2: image: {tmp_path / 'gone.png'}: no such file",
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


@pytest.mark.parametrize("name", ["a\0.png", "x" * 5000, "sub", ""])
def test_a_name_that_cannot_be_a_picture_is_a_missing_file(tmp_path, name):
    (line,) = problems(written(tmp_path, {"image": name, "question": "q"}))
    assert line.endswith(": no such file")


def test_deeply_nested_json_is_no_json_rather_than_a_crash(tmp_path):
    path = written(tmp_path, "[" * 100_000)
    assert problems(path) == (f"{path}:1: not JSON",)


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes('{"question": "größer?"}'.encode("latin-1"))
    assert problems(path) == (f"{path}: not UTF-8 text",)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_questions_is_refused(tmp_path, text):
    path = tmp_path / "empty.jsonl"
    path.write_text(text)
    assert problems(path) == (f"{path}: no questions in it; one JSON object a line is needed",)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    path = tmp_path / "none.jsonl"
    assert problems(path) == (f"{path}: no such file",)
    assert problems(tmp_path) == (f"{tmp_path}: Is a directory",)


def test_an_absurdly_large_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = written(tmp_path, {"question": "q"})
    monkeypatch.setattr("compressor.files.MAX_TEXT_BYTES", 3)
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
