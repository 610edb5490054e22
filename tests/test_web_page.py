"""The page for browsers in headless Chromium: its answers are the runtime's, and it asks nobody else."""

import functools
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vtcompress
from compressor.errors import PackError
from export.artifact.artifact import Artifact
from export.clients.check import runtime_answers
from export.clients.client import CheckQuestion
from tests.browser import Page, browser_page, find_browser
from tests.models import make_picture
from tests.test_pack_clients import WORDS

NAME = "web"
TOKENS = 8
DONE = "[...document.querySelectorAll('.card')].every((card) => card.dataset.state === 'done')"

pytestmark = pytest.mark.filterwarnings("ignore::compressor.errors.ArtifactWarning")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """What `python -m http.server` runs, without its log."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def folder(
    npm: None, packable: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a packed page with the original beside."""
    del npm
    place = tmp_path_factory.mktemp("web") / "page"
    facts = vtcompress.pack(packable("heads, mlp and frozen"), NAME, place)
    assert facts.check.not_run == ""
    assert facts.check.differs == ()
    return place


@pytest.fixture
def page(folder: Path, tmp_path: Path) -> Iterator[Page]:
    """Return the page in a browser, its model loaded."""
    browser = find_browser()
    if browser is None:
        pytest.skip("no browser is installed; install Chromium or name one in VTCOMPRESS_BROWSER")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    try:
        with browser_page(browser, tmp_path / "profile", deadline_s=240) as opened:
            opened.own = address
            opened.open(address)
            opened.until("document.body.dataset.state === 'ready'")
            yield opened
    finally:
        server.shutdown()
        server.server_close()


def ask(page: Page, question: str, picture: Path, tokens: int) -> None:
    page.choose("#picture", picture)
    for field, value in (("question", question), ("most", str(tokens))):
        page.run(f"document.getElementById('{field}').value = {json.dumps(value)}")
    page.until("!document.getElementById('ask').disabled")
    page.run("document.getElementById('ask').click()")


def answers(page: Page) -> list[str]:
    found = page.run("[...document.querySelectorAll('.answer')].map((one) => one.textContent)")
    return [text.strip() for text in found]


def test_ten_pictures_are_answered_as_by_the_runtime_beside_the_original(page, packable, tmp_path):
    """Pictures of ten sizes; the original's answers are those of the artifact that nothing was cut of."""
    asked = []
    for i in range(10):
        picture = make_picture(tmp_path / f"{i}.png", i, (24 + 7 * i, 32 + 11 * (i % 4)))
        asked.append(CheckQuestion(WORDS[i % len(WORDS)], (picture,), TOKENS))
    cut, whole = (
        [one.text.strip() for one in runtime_answers(Artifact.open(packable(name)), asked)]
        for name in ("heads, mlp and frozen", "identity")
    )
    found = []
    for one in asked:
        ask(page, one.question, one.images[0], TOKENS)
        page.until(DONE)
        found.append(tuple(answers(page)))
    assert found == list(zip(cut, whole, strict=True))
    assert len(set(cut)) > 5
    assert cut != whole
    speeds = page.run(
        "[...document.querySelectorAll('[data-figure=speed]')].map((one) => one.textContent)"
    )
    assert all(float(speed) > 0 for speed in speeds)
    assert page.messages == []


def test_an_answer_streams_and_stop_ends_it(page, tmp_path):
    ask(page, "what is this", make_picture(tmp_path / "a.png"), 400)
    text = "document.querySelector('.answer').textContent"
    page.until(f"{text}.length > 20")
    assert page.run("document.querySelector('.card').dataset.state") == "busy"
    page.run("document.getElementById('stop').click()")
    page.until("document.body.dataset.state === 'ready'")
    assert answers(page)[1] == "Not asked."
    tokens = page.run("document.querySelector('[data-figure=tokens]').textContent")
    assert 0 < int(tokens) < 400
    assert page.messages == []


def test_every_field_has_a_label_and_narrow_screens_need_no_scrolling(page):
    page.call(
        "Emulation.setDeviceMetricsOverride",
        width=360, height=700, deviceScaleFactor=1, mobile=True,
    )  # fmt: skip
    assert page.run("document.documentElement.scrollWidth") <= 360
    unnamed = page.run(
        "[...document.querySelectorAll('input, textarea, progress')]"
        ".filter((one) => one.labels.length === 0).map((one) => one.id)"
    )
    assert unnamed == []
    assert page.run("document.documentElement.lang") == "en"


def test_the_page_needs_the_npm_packages_and_says_so(packable, tmp_path, monkeypatch):
    monkeypatch.delenv("NODE_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        PackError, match="onnxruntime-web into the page, and they are not"
    ) as failure:
        vtcompress.pack(packable("identity"), NAME, tmp_path / "page")
    assert "npm install @huggingface/transformers" in str(failure.value)
    assert list(tmp_path.iterdir()) == []
