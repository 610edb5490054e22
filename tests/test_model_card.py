"""The model card: front matter that Hugging Face reads, the licence taken over, and nothing promised."""

import re
from pathlib import Path

import pytest
import yaml

from compressor.methods import METHODS
from export.report.pages.model_card import Origin, licence_of, model_card
from tests import facts
from tests.artifacts import RECIPE, make_artifact
from vtcompress.stages.report import origin_of, read_report

NOWHERE = Origin()


def card(tmp_path, origin=NOWHERE, **changes):
    return model_card(read_report(make_artifact(tmp_path / "artifact", **changes)), origin)


def front_of(text):
    start, front, _ = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(front)


def merged() -> str:
    """Return front matter of twenty lines that hold a million keys once its aliases are followed."""
    lines = ["license: mit", "a0: &a0 {x: 1}"]
    lines += [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}], b: *a{i - 1}}}" for i in range(1, 25)]
    return "\n".join(["---", *lines, "---", ""])


def test_the_front_matter_names_base_model_licence_library_task_and_tags(tmp_path):
    origin = Origin("owner/model", {"license": "llama2"})
    assert front_of(card(tmp_path, origin)) == {
        "base_model": "owner/model",
        "license": "llama2",
        "library_name": "vtcompress",
        "pipeline_tag": "image-text-to-text",
        "tags": ["vtcompress", "onnx", "multimodal", "visual-token-compression", "shortv"],
    }


def test_a_local_model_without_licence_names_neither(tmp_path):
    text = card(tmp_path)
    assert not front_of(text).keys() & {"base_model", "license"}
    assert "named no licence" in text
    assert "named no licence" not in card(tmp_path / "b", Origin(licence={"license": "mit"}))


def test_method_recipe_figures_and_limits_stand_in_the_card(tmp_path):
    text = card(
        tmp_path,
        measured=facts.measured(),
        fidelity=facts.fidelity(),
        loss=facts.loss((), [facts.figures("count")], max_kl=1),
    )
    assert "shortv (frozen: 0.5)" in text
    assert f"```yaml\n{RECIPE}```" in text
    assert "| prefill | 1.60 x (1.55 to 1.65) | measured |" in text
    assert "| prefill MFLOPs | 2.00 x | predicted |" in text
    assert "its graphs, 7 outputs): max abs 3.00e-06" in text
    assert "| count | 8 |" in text
    assert "vtcompress generate . --image" in text
    assert "weight file does not shrink" in text
    assert "Never run on a GPU." in text


def test_an_artifact_without_checks_claims_none(tmp_path):
    text = card(tmp_path)
    assert "Export fidelity: not run." in text
    assert "Compression loss: not run, there was no validation data." in text
    assert "passed" not in text
    assert "No time was measured." in text


def test_a_hostile_name_ends_neither_front_matter_nor_page(tmp_path):
    name = "x\n---\nlicense: mit\n<script>"
    model = facts.facts(name=name)
    text = card(tmp_path, Origin("a: b #/c'", {"license": "'---'"}), model=model)
    assert front_of(text)["license"] == "'---'"
    assert front_of(text)["base_model"] == "a: b #/c'"
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "\n# x --- license: mit" in text


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# x\n", {"license": "apache-2.0"}),
        (
            "---\nlicense: other\nlicense_name: n\nlicense_link: l\ntags: [a]\n---\n",
            {"license": "other", "license_name": "n", "license_link": "l"},
        ),
        ("---\nlicense: [mit, apache-2.0]\n---\n", {"license": ["mit", "apache-2.0"]}),
        ("---\nlicense: 3\n---\n", {}),
        ("---\nlicense: []\n---\n", {}),
        ('---\nlicense: "a\\n---\\nb: c"\n---\n', {}),
        ("---\nlicense: mit\n", {}),
        ("# license: mit\n", {}),
        ("---\nlicense: !!python/object/apply:os.system [x]\n---\n", {}),
        ("---\n- a\n---\n", {}),
        pytest.param(merged(), {}, id="aliases"),
        pytest.param(f"---\nlicense: mit\ntags: {'[' * 5000}{']' * 5000}\n---\n", {}, id="nested"),
        ("---\n{\n---\n", {}),
        ("", {}),
    ],
)
def test_the_licence_is_taken_from_the_front_matter_alone(tmp_path, readme, licence):
    (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    assert licence_of(tmp_path) == licence


def test_a_folder_without_a_card_names_no_licence(tmp_path):
    assert licence_of(tmp_path) == {}
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert licence_of(tmp_path) == {}


def test_only_a_hub_id_is_a_base_model(tmp_path):
    assert origin_of("owner/model", tmp_path).hub_id == "owner/model"
    for local in (None, str(tmp_path), "/no/such/folder", "./x", "~/x"):
        assert origin_of(local, tmp_path).hub_id is None


def test_every_method_names_its_paper_as_the_readme_does(tmp_path):
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    papers = [method.words.paper for method in METHODS if method.words.paper]
    without = {method.name for method in METHODS if not method.words.paper}
    assert without == {"auto", "skip", "random", "pool"}  # this project's own, and baselines
    for paper in papers:
        title = paper.split(": ", 1)[1].rsplit(", arXiv ", 1)[0]
        assert f'{title}"' in readme
        assert re.search(r", arXiv \d{4}\.\d{5}$", paper)
    assert f"- {METHODS[0].words.paper}" in card(tmp_path)
