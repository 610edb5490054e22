"""The HTML report: one file that needs nothing else, readable by machines and people, safe with any words."""

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from compressor.errors import ArtifactError, ProfileError
from compressor.samples.questions import Sample
from compressor.samples.small_pictures import LARGEST_PICTURE, small_picture
from export.report.data import figures
from export.report.pages.report import html_report, markdown_report
from export.report.questions import (
    Question,
    chosen_questions,
    stored_questions,
)
from tests import facts
from tests.artifacts import make_artifact
from tests.models import make_picture
from vtcompress.stages.report import read_report

VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = "<script>alert(1)</script>\"'&{{ 7 * 7 }}</style></svg>\x00\x1b[31m\u202e"
PROFILE = facts.profile([[0.5, 0.001, 0.25, 0.25, 0.003, 0.0]])


class Structure(HTMLParser):
    """Collects what tests ask of a page; complains about tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words, self.headings = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open and re.fullmatch("h[1-6]", self.open[-1]):
            self.headings.append((int(self.open[-1][1]), data))

    def all(self, tag):
        return [attributes for name, attributes, _ in self.tags if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


ASKED = (
    ("how many?", "count", "3", "3", "4"),
    ("which?", "pick", "red", "a red car", "a red bus"),
    ("is it?", "yes or no", "yes", "yes", "yes"),
)


def page(tmp_path, **changes):
    folder = make_artifact(tmp_path / "artifact", **changes)
    return html_report(read_report(folder))


@pytest.fixture
def full(tmp_path):
    return page(
        tmp_path,
        profile=PROFILE,
        asked=ASKED,
        measured=facts.measured(),
        fidelity=facts.fidelity(),
        loss=facts.loss((), [facts.figures("count"), facts.figures("pick")], max_kl=0.5),
    )


def test_the_page_needs_nothing_but_itself(full):
    assert "<script" not in full
    assert not re.search(r"url\(\s*['\"]?(?!#)", full)
    assert "@import" not in full
    for tag, attributes, _ in Structure(full).tags:
        for name, value in attributes.items():
            if name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
                assert value.startswith(("data:image/", "#")), (tag, name, value)
    policy = next(m["content"] for m in Structure(full).all("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'; img-src data:;")
    addresses = set(re.findall(r"https?://[^\s\"'<]+", full))
    assert addresses == {"http://www.w3.org/2000/svg"}


def test_landmarks_language_title_and_width_are_told(full):
    found = Structure(full)
    assert found.all("html") == [{"lang": "en"}]
    for landmark in ("header", "main", "footer", "nav"):
        assert len(found.all(landmark)) == 1
    assert any(m.get("name") == "viewport" for m in found.all("meta"))
    assert "owner/little-model, compressed: report" in found.text
    for section in found.all("section"):
        assert section.keys() & {"aria-label", "aria-labelledby"}


def test_headings_come_in_order_and_lead_from_what_was_done_to_the_recipe(full):
    levels = [level for level, _ in Structure(full).headings]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    titles = [title for level, title in Structure(full).headings if level == 2]
    assert titles == [
        "In short",
        "Layers: what visual and text tokens do",
        "Speed: predicted and measured",
        "Check 1: export fidelity",
        "Check 2: compression loss",
        "Sample questions",
        "Ladder of checks",
        "Made with",
        "Recipe",
    ]


def test_identifiers_are_used_once_and_every_reference_has_its_target(full):
    found = Structure(full)
    names = [a["id"] for _, a, _ in found.tags if "id" in a]
    assert len(names) == len(set(names))
    wanted = {a["href"][1:] for a in found.all("a")}
    for _, attributes, _ in found.tags:
        for key in ("aria-labelledby", "aria-describedby"):
            wanted |= set(attributes.get(key, "").split())
    assert wanted <= set(names)
    assert set(re.findall(r"url\(#([^)]+)\)", full)) <= set(names)


def test_every_table_has_a_caption_and_every_head_a_scope(full):
    found = Structure(full)
    assert len(found.all("table")) == len(found.all("caption")) >= 6
    assert {head.get("scope") for head in found.all("th")} == {"col", "row"}
    for tag, attributes, inside in found.tags:
        if tag == "table":
            assert inside[-1] == "div"
        if attributes.get("role") == "region":
            assert attributes["tabindex"] == "0"
            assert attributes["aria-label"]


def test_every_drawing_is_an_image_with_title_and_description(full):
    drawings = re.findall(r"<svg.*?</svg>", full, re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        root = ET.fromstring(drawing)
        assert root.get("role") == "img"
        title, description, *_ = list(root)
        assert title.tag.endswith("title")
        assert description.tag.endswith("desc")
        assert title.text
        assert len(description.text) > 20


def test_pictures_have_sizes_and_say_what_they_are(full):
    images = Structure(full).all("img")
    assert len(images) == 3
    for image in images:
        assert image["src"].startswith("data:image/png;base64,")
        assert (image["width"], image["height"]) == ("33", "40")
        assert image["alt"] == "Picture 1 of the question"


def test_without_timing_checks_and_calibration_the_page_says_so(tmp_path):
    found = Structure(page(tmp_path))
    assert (
        "2.00 x less work for reading of picture and question (prefill), predicted; no time was measured"
        in found.text
    )
    assert "answers kept: not checked, there was no validation data" in found.text
    assert len(re.findall(r"(?:files|answers)\): . not run", found.text)) == 2
    assert "Times: not measured." in found.text
    assert "not chosen by calibration" in found.text
    assert "None: compression loss was not run." in found.text


def test_without_right_answers_the_headline_tells_the_agreement(tmp_path):
    unknown = facts.figures(answered=0, exact_match=None, exact_match_original=None)
    loss = facts.loss().model_copy(update={"overall": unknown})
    text = Structure(page(tmp_path, loss=loss)).text
    assert (
        "87.5% of first answer tokens equal to the original's; right answers are not known" in text
    )


def test_an_original_without_a_right_answer_keeps_nothing_to_divide_by(tmp_path):
    none_right = facts.figures(exact_match=0.0, exact_match_original=0.0)
    loss = facts.loss().model_copy(update={"overall": none_right})
    text = Structure(page(tmp_path, loss=loss)).text
    assert "equal to the original's, which gave no right answer" in text


def test_failures_stand_in_their_own_check(tmp_path):
    text = page(tmp_path, fidelity=facts.fidelity(["prefill: shape"]), loss=facts.loss(["mean KL"]))
    first = text.split('id="fidelity"')[1].split('id="loss"')[0]
    second = text.split('id="loss"')[1].split('id="questions"')[0]
    assert "prefill: shape" in first
    assert "mean KL" not in first
    assert "<li>✗ mean KL</li>" in second
    assert "prefill: shape" not in second
    # Twice in the head, once in each check, and once on the ladder: its rung is export fidelity.
    assert text.count("✗ failed") == 5
    assert "✗ failed" in text.split('id="ladder"')[1].split('id="questions"')[0]


def test_questions_come_differences_first_with_the_differing_words_marked(full):
    cards = full.split('<ul class="cards">')[1]
    order = [cards.index(f"<bdi>{q}</bdi>") for q in ("how many?", "which?", "is it?")]
    assert order == sorted(order)
    assert "<bdi>a red <mark>car</mark></bdi>" in cards
    assert "<bdi>a red <mark>bus</mark></bdi>" in cards
    assert '<dd class="bad">≠ different: was right, is wrong</dd>' in cards
    assert '<dd class="changed">≠ different: both wrong</dd>' in cards
    assert "= same answer" in cards
    assert "2 of 3 answers differ. 3 are shown" in full


def test_whatever_recipe_data_and_model_say_is_shown_as_it_is(tmp_path):
    profile = PROFILE.model_copy(update={"data": HOSTILE, "model": HOSTILE})
    fidelity = facts.fidelity([HOSTILE])
    loss = facts.loss((HOSTILE,), [facts.figures(HOSTILE)])
    text = page(
        tmp_path,
        model=facts.facts(name=HOSTILE, architecture=HOSTILE),
        recipe="vtcompress: 1\n# <script>alert(2)</script></code></pre>\n",
        profile=profile,
        asked=[(HOSTILE,) * 5, (HOSTILE, HOSTILE, None, HOSTILE, "x")],
        tools={"vtcompress": HOSTILE, HOSTILE: HOSTILE},
        measured=facts.measured().model_copy(update={"processor": HOSTILE}),
        fidelity=fidelity.model_copy(
            update={"worst_abs": fidelity.worst_abs.model_copy(update={"call": HOSTILE})}
        ),
        loss=loss.model_copy(update={"data": HOSTILE}),
    )
    found = Structure(text)  # every tag is closed in order, so nothing got out of its place
    assert found.all("script") == []
    assert len(found.all("style")) == 1
    assert "\x00" not in text
    assert "\x1b" not in text
    assert "49" not in found.headings[0][1]
    shown = "<script>alert(1)</script>\"'&{{ 7 * 7 }}</style></svg>"
    assert found.headings[0][1].startswith(shown)
    assert text.count("&lt;script&gt;alert(1)") >= 12
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ET.fromstring(drawing)


def test_a_long_answer_is_cut_in_the_page(tmp_path):
    long = "word " * 2000
    text = page(tmp_path, asked=[("q", "k", None, long, long + "end")], loss=facts.loss())
    assert len(text) < 60_000
    assert "…" in text


def test_large_pictures_are_made_small_and_broken_ones_are_said_to_be(tmp_path):
    shown = small_picture(make_picture(tmp_path / "large.png", size=(900, 600)))
    assert shown is not None
    assert max(shown.width, shown.height) == LARGEST_PICTURE
    assert shown.uri.startswith("data:image/jpeg;base64,")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert small_picture(tmp_path / "broken.png") is None
    folder = make_artifact(tmp_path / "a", asked=ASKED, loss=facts.loss())
    data = read_report(folder)
    (folder / "validation" / "images" / "a.png").write_bytes(b"no picture")
    assert html_report(data).count("(a picture that cannot be shown)") == 3


def test_a_picture_outside_the_artifact_is_refused(tmp_path):
    make_picture(tmp_path / "secret.png")
    folder = make_artifact(tmp_path / "a", asked=ASKED[:1])
    samples = folder / "validation" / "samples.jsonl"
    row = json.loads(samples.read_text()) | {"image": ["../../secret.png"]}
    samples.write_text(json.dumps(row))
    with pytest.raises(ArtifactError, match="is not in the artifact; do not use"):
        stored_questions(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("samples.jsonl", "{"),
        ("compressed.json", "[]"),
        ("compressed.json", '{"answers": [{"text": 1}]}'),
        ("original.json", '{"answers": []}'),
        ("original.json", "[" * 100_000),
    ],
)
def test_broken_answers_are_one_error(tmp_path, name, content):
    folder = make_artifact(tmp_path / "a", asked=ASKED)
    (folder / "validation" / name).write_text(content)
    with pytest.raises(ArtifactError):
        stored_questions(folder)


def test_lost_answers_come_first_and_kinds_take_turns():
    def asked(kind, right, original, compressed):
        return Question(Sample((), "q", right, kind), original, compressed)

    lost_a = [asked("a", "1", "1", "2")] * 3
    lost_b = asked("b", "1", "1", "3")
    won = asked("a", "1", "2", "1")
    same = asked("c", "1", "1", "1")
    chosen = chosen_questions([same, won, *lost_a, lost_b])
    assert [q.sample.kind for q in chosen] == ["a", "b", "a", "a", "a", "c"]
    assert chosen[1] is lost_b
    assert chosen[-2:] == (won, same)
    assert len(chosen_questions([same] * 30)) == 10


@pytest.mark.parametrize("broken", [[], [[0.5, 0.1]]])
def test_a_profile_that_does_not_fit_the_plan_is_one_error(tmp_path, broken):
    profile = facts.profile(broken, layers=2 if broken else 6, total=1)
    folder = make_artifact(tmp_path / "a", profile=profile)
    with pytest.raises(ArtifactError, match="does not fit"):
        read_report(folder)


def test_contributions_that_are_no_numbers_are_refused_and_not_drawn(tmp_path):
    with pytest.raises(ProfileError, match="sample 0: layer_contribution: NaN or infinite"):
        page(tmp_path, profile=facts.profile([[float("nan"), float("inf"), 0.1, 0.2, 0.0, 0.3]]))


def test_figures_for_dashboards_are_plain_json(tmp_path):
    folder = make_artifact(
        tmp_path / "a",
        profile=PROFILE,
        asked=ASKED,
        measured=facts.measured(),
        fidelity=facts.fidelity(),
        loss=facts.loss(),
    )
    document = json.loads(json.dumps(figures(read_report(folder)), allow_nan=False))
    assert document["exact_match_kept"] == 0.75
    assert document["methods"] == [{"shortv": {"frozen": 0.5}}]
    assert document["layers"][1]["reason"] == "shortv"
    assert document["layers"][1]["contribution"] == 0.001
    assert document["layers"][1]["flops"] < document["layers"][1]["flops_original"]
    assert (document["questions"], document["answers_equal"]) == (3, 1)
    assert figures(read_report(make_artifact(Path(tmp_path / "b"))))["loss"] is None


def test_columns_have_the_same_headings_in_both_reports(tmp_path, full):
    """Of tables that both hold, found by their first two headings."""
    markdown = markdown_report(read_report(tmp_path / "artifact"))
    tables = re.findall(r"^\| (.+) \|\n\| ---", markdown, re.MULTILINE)
    heads = [re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', t) for t in full.split("<thead>")[1:]]
    shared = 0
    for line in tables:
        names = line.split(" | ")
        for head in heads:
            if head[:2] == names[:2]:
                shared += 1
                assert head == names
    assert shared >= 3
