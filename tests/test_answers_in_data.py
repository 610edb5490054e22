"""Right answers of the data and questions without pictures, from the file to the figures."""

import numpy as np

from compressor.families import load
from compressor.samples.questions import Sample, read_samples
from export.checks.loss import LossLimits, compare, measure_answers
from export.checks.original import measure_original
from export.checks.stored import COMPRESSED_FILE, SAMPLES_FILE, store_original, write_answers
from export.report.questions import stored_questions
from export.results.answers import Answer, Answers
from export.runtime.runtime import Runtime


def said(text):
    return Answers((Answer(token_ids=(1,), text=text),), np.zeros((1, 4), np.float32), 8)


def test_any_of_several_right_answers_is_right_and_all_are_stored(tmp_path):
    sample = Sample((), "how many?", "2", "", ("two", "a pair"))
    report = compare([sample], said("two"), said("3"), LossLimits(), "x.jsonl")
    assert (report.overall.exact_match_original, report.overall.exact_match) == (1.0, 0.0)
    store_original(tmp_path, [sample], said("two"))
    (again,) = read_samples(tmp_path / SAMPLES_FILE)
    assert again.answers == sample.answers
    write_answers(tmp_path / COMPRESSED_FILE, said("3"))
    (asked,) = stored_questions(tmp_path)
    assert (asked.right, asked.outcome) == ("2 or two or a pair", "lost")


def test_a_question_without_a_picture_is_answered_by_both_sides_alike(tiny_model, tiny_artifact):
    samples = [Sample((), "what is it"), Sample((), "is this red")]
    original = measure_original(load(str(tiny_model)), samples, 4)
    found = measure_answers(Runtime.load(tiny_artifact), samples, 4)
    assert np.abs(original.logits - found.logits).max() < 1e-4
    assert [a.token_ids for a in original.answers] == [a.token_ids for a in found.answers]
