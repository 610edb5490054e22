"""The profile: saved, grown, averaged, and refused where it does not belong."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor.errors import ProfileError, VtcompressError
from compressor.profile import Profile, SampleScore
from tests import facts

ROWS = ((0.5, 1e-9, 0.0), (0.25, 3e-9, 1.0), (0.125, 0.1, 2.0))


def saved(folder, **changes):
    path = folder / "profile.json"
    document = facts.profile(ROWS).model_dump(mode="json") | changes
    path.write_text(json.dumps(document))
    return path


def problems(call):
    with pytest.raises(ProfileError) as caught:
        call()
    return caught.value.problems


def test_a_saved_profile_comes_back_equal(tmp_path):
    profile = facts.profile(ROWS, text=(7, 9, 11), total=5)
    profile.save(tmp_path / "p.json")
    assert Profile.load(tmp_path / "p.json") == profile
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


def test_a_profile_grows_sample_by_sample_until_it_is_complete(tmp_path):
    path = tmp_path / "p.json"
    profile = facts.profile(ROWS[:1], total=3)
    for row in ROWS[1:]:
        assert not profile.complete
        grown = profile.with_sample(SampleScore(visual=12, text=8, layer_contribution=row))
        assert len(grown.samples) == len(profile.samples) + 1
        grown.save(path)
        profile = Profile.load(path)
    assert profile.complete
    assert [s.layer_contribution for s in profile.samples] == list(ROWS)


@given(
    st.integers(1, 5).flatmap(
        lambda layers: st.lists(
            st.lists(st.floats(0, 100), min_size=layers, max_size=layers), min_size=1, max_size=9
        )
    )
)
def test_layer_contribution_is_the_mean_over_the_samples(rows):
    mean = facts.profile(rows).mean("layer_contribution")
    np.testing.assert_allclose(mean, np.mean(np.array(rows), axis=0), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize(
    ("text", "median"), [((7,), 7), ((9, 1, 5), 5), ((8, 2, 4, 6), 4), ((3, 3, 90), 3)]
)
def test_typical_text_rows_is_a_t_that_occurred(text, median):
    profile = facts.profile([[0.0]] * len(text), text=text)
    assert profile.typical_text_rows() == median


def test_a_profile_of_the_same_model_belongs(tmp_path):
    facts.profile(ROWS).check_belongs(tmp_path, model_digest=facts.DIGEST)


def test_a_profile_of_another_model_is_refused_in_one_line(tmp_path):
    path = tmp_path / "p.json"
    lines = problems(lambda: facts.profile(ROWS).check_belongs(path, model_digest="a" * 64))
    assert lines == (
        f"{path}: measured on another model (named owner/little-model, digest 0123456789ab, not "
        "aaaaaaaaaaaa); remove it or calibrate anew",
    )


def test_a_missing_profile_is_refused(tmp_path):
    path = tmp_path / "none.json"
    assert problems(lambda: Profile.load(path)) == (f"{path}: no such file",)


def test_a_profile_of_a_newer_format_is_refused_with_a_remedy(tmp_path):
    path = saved(tmp_path, profile_format=3)
    (line,) = problems(lambda: Profile.load(path))
    assert line.startswith(f"{path}: profile_format: ")
    assert line.endswith("; make it anew with `vtcompress calibrate`")


def test_every_broken_field_is_named_at_once(tmp_path):
    path = saved(tmp_path, total=0, layers="many", colour="red")
    named = [
        line.removeprefix(f"{path}: ").split(":")[0]
        for line in problems(lambda: Profile.load(path))
    ]
    assert sorted(named) == ["colour", "layers", "total"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"profile"'])
def test_a_file_that_is_no_profile_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "p.json"
    path.write_text(text)
    (line,) = problems(lambda: Profile.load(path))
    assert line.startswith(f"{path}: profile: ")
    assert "\n" not in line


@pytest.mark.parametrize("changes", [{"layers": 4}, {"layers": 2}, {"total": 2}])
def test_a_profile_that_contradicts_itself_is_refused(tmp_path, changes):
    path = saved(tmp_path, **changes)
    assert problems(lambda: Profile.load(path)) == (
        f"{path}: inconsistent; make it anew with `vtcompress calibrate`",
    )


def test_a_profile_that_cannot_be_written_is_an_error_that_names_the_file(tmp_path):
    path = tmp_path / "p.json"
    path.mkdir()
    with pytest.raises(VtcompressError) as caught:
        facts.profile(ROWS).save(path)
    assert str(caught.value) == f"{path}: cannot write: Is a directory; choose another place"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_around_a_file_are_made_and_a_file_among_them_is_named(tmp_path):
    path = tmp_path / "new" / "folder" / "p.json"
    facts.profile(ROWS).save(path)
    assert Profile.load(path) == facts.profile(ROWS)
    with pytest.raises(VtcompressError) as caught:
        facts.profile(ROWS).save(path / "p.json")
    assert str(caught.value) == f"{path}: cannot write: File exists; choose another place"


def test_an_interrupted_save_leaves_the_old_profile_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "p.json"
    old = facts.profile(ROWS[:1], total=3)
    old.save(path)

    def interrupt(_handle):
        raise KeyboardInterrupt

    monkeypatch.setattr("compressor.disk.files.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        facts.profile(ROWS).save(path)
    assert Profile.load(path) == old
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_profile_whose_values_are_no_numbers_is_refused(tmp_path, value):
    """Nothing can be ranked by them; versions of before ranked them."""
    facts.profile((ROWS[0], (0.5, float(value), 0.0))).save(tmp_path / "p.json")
    (line,) = problems(lambda: Profile.load(tmp_path / "p.json"))
    assert "sample 1: layer_contribution: NaN or infinite; make it anew" in line


def test_a_head_through_which_text_reads_pictures_alone_has_an_infinite_score():
    score = SampleScore(visual=1, text=1, head_score=((1.0, float("inf")),))
    assert score.no_numbers == ()
    assert SampleScore(visual=1, text=1, head_score=((float("nan"),),)).no_numbers == (
        "head_score",
    )


def test_older_profiles_have_empty_values_of_what_was_not_measured(tmp_path):
    path = saved(tmp_path)
    document = json.loads(path.read_text())
    for sample in document["samples"]:
        sample |= {"exit_kl": [], "gate_margin": [], "head_score": []}
    document["neuron_activity"] = []
    newer = Profile.load(path)
    path.write_text(json.dumps(document))
    assert Profile.load(path) == newer


def test_a_profile_of_what_no_method_here_measures_is_refused(tmp_path):
    path = saved(tmp_path, measures=["toy_magnitude"])
    (problem,) = problems(lambda: Profile.load(path))
    assert "holds toy_magnitude, which no method here measures; install the package" in problem
