"""Report and comparison in a real headless browser: nothing refused, nothing cut off, everything readable.

Needs an installed Chromium. `VTCOMPRESS_AXE` may name an axe.min.js, which is then run too. With
`VTCOMPRESS_PICTURES` the pages are left in that folder as pictures for people to look at.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.report.compare.comparison import compare_artifacts
from export.report.compare.page import html_comparison
from export.report.pages.report import html_report
from tests import facts
from tests.artifacts import make_artifact
from tests.browser import browser_page, find_browser
from tests.test_compare import with_kept, with_speed
from tests.test_html_report import ASKED, HOSTILE, PROFILE
from tests.test_report_exits import exits_profile
from tests.test_report_yopo import CUT, MASKED, RECIPE, RECIPE_MASKED, SCORED, measured_of
from tests.test_wording import ARTIFACTS as WORDED
from vtcompress.stages.report import read_report

BROWSER = find_browser()
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium found; install one or name it in VTCOMPRESS_BROWSER"
)
NAMES = ["report", "bare", "exit", "gates", "yopo", "masked", "kept", "hostile", "compare"]
VIEWS = [(width, dark) for width in (390, 1280) for dark in (False, True)]
PROFILE_OF_EXITS = exits_profile("layer_contribution", "exit_kl")
LONG = "a-very-long-word-without-a-place-to-break-it" * 6

# Texts whose contrast with what is behind them is below 4.5, or which have no size.
CONTRAST = """
(() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const luminance = c => {
    const [r, g, b] = c.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c.slice(0, 3);
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own || ['title', 'desc', 'STYLE'].includes(e.tagName)) continue;
    const style = getComputedStyle(e);
    if (e.closest('details:not([open])') && e.tagName !== 'SUMMARY') continue;
    const ink = parse(e instanceof SVGElement ? style.fill : style.color).slice(0, 3);
    const [a, b] = [luminance(ink), luminance(behind(e))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) found.push([ratio, e.textContent.slice(0, 40)]);
  }
  return found;
})()
"""

# Words of drawings that leave their drawing.
CUT_OFF = """
[...document.querySelectorAll('svg text')].filter(t => {
  const [a, b] = [t.getBoundingClientRect(), t.closest('svg').getBoundingClientRect()];
  return a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1 || a.top < b.top - 1;
}).map(t => t.textContent)
"""
AXE = "axe.run().then(r => JSON.stringify(r.violations.map(v => [v.id, v.nodes.map(n => n.html)])))"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    kinds = [facts.figures("count", exact_match=0.5), facts.figures(LONG)]
    judged = facts.loss((), kinds, max_kl=0.5, min_agreement=0.8)
    missed = facts.loss(("mean KL is 2",), kinds, max_kl=0.001)
    everything = {
        "profile": PROFILE,
        "measured": facts.measured(),
        "fidelity": facts.fidelity(),
    }
    hostile = [(HOSTILE, HOSTILE, LONG, LONG, HOSTILE), *ASKED]
    artifacts = {
        "report": make_artifact(folder / "a", asked=ASKED, loss=judged, **everything),
        "bare": make_artifact(folder / "b"),
        "kept": make_artifact(folder / "kept", **WORDED["kept in front"]),
        "exit": make_artifact(
            folder / "exit",
            dead=(3,),
            exit_layer=4,
            recipe="vtcompress: 1\ncompress:\n- visual_exit: {max_kl: 0.05}\n",
            **(everything | {"profile": PROFILE_OF_EXITS, "measured": facts.measured(4)}),
        ),
        "gates": make_artifact(
            folder / "gates",
            gates=facts.gates(),
            loss=judged.model_copy(update={"exits": ((2, 5), (4, 1))}),
            **(everything | {"measured": facts.measured(2)}),
        ),
        "yopo": make_artifact(
            folder / "yopo",
            plan=CUT,
            recipe=RECIPE,
            **(everything | {"profile": SCORED, "measured": measured_of(CUT)}),
        ),
        "masked": make_artifact(folder / "masked", plan=MASKED, recipe=RECIPE_MASKED),
        "hostile": make_artifact(
            folder / "c", asked=hostile, loss=missed, model=facts.facts(name=LONG), **everything
        ),
    }
    made = {name: html_report(read_report(path)) for name, path in artifacts.items()}
    several = [
        make_artifact(folder / name, measured=with_speed(speed), loss=with_kept(kept))
        for name, speed, kept in (("slow", 1.2, 1.0), (LONG[:120], 1.1, 0.9), ("fast", 2.4, 0.8))
    ]
    several.append(
        make_artifact(
            folder / "leaves",
            dead=(3,),
            exit_layer=4,
            measured=with_speed(2.0),
            loss=with_kept(0.95),
        )
    )
    several.append(
        make_artifact(
            folder / "may leave",
            gates=facts.gates(),
            measured=with_speed(1.6),
            loss=with_kept(0.97),
        )
    )
    made["compare"] = html_comparison(compare_artifacts(several))
    cut = [
        make_artifact(
            folder / f"llava-1.5-7b-yopo-{name}",
            plan=CUT,
            recipe=RECIPE,
            loss=with_kept(0.9),
            **(everything | {"profile": SCORED, "measured": measured_of(CUT)}),
        )
        for name in ("float32", "float16", "bfloat16")
    ]
    made["three"] = html_comparison(compare_artifacts(cut))
    paths = {}
    for name, text in made.items():
        paths[name] = folder / f"{name}.html"
        paths[name].write_text(text, encoding="utf-8")
    return paths


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_quiet_fits_and_can_be_read(
    name: str, pages: dict[str, Path], tmp_path: Path
) -> None:
    assert BROWSER is not None
    with browser_page(BROWSER, tmp_path / "profile") as page:
        for width, dark in VIEWS:
            page.open(pages[name], width=width, dark=dark)
            view = f"{name} at {width} px, {'dark' if dark else 'light'}"
            assert page.run("document.documentElement.scrollWidth") <= width, view
            assert page.run(CONTRAST) == [], view
            assert page.run(CUT_OFF) == [], view
            assert page.run("document.scripts.length") == 0, view
            pictures = page.run("[...document.images].map(i => i.naturalWidth)")
            assert all(pictures), view
            background = page.run("getComputedStyle(document.body).backgroundColor")
            assert background == ("rgb(21, 24, 29)" if dark else "rgb(255, 255, 255)"), view
            if axe := os.environ.get("VTCOMPRESS_AXE"):
                page.run(Path(axe).read_text(encoding="utf-8") + "; 1")
                assert json.loads(page.run(AXE)) == [], view
            keep(page, f"{name}-{width}-{'dark' if dark else 'light'}")
        assert page.messages == []


# Tables that are wider than their place.
WIDER = """
[...document.querySelectorAll('.scroll')].filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1)
  .map(e => e.getAttribute('aria-label'))
"""
# Where one that is too wide for a phone stands in the page, scrolled to a share of its width.
PLACE = """
(() => {
  const e = document.querySelector('.scroll[aria-label^="Export fidelity"]');
  e.scrollLeft = %s * e.scrollWidth;
  const b = e.getBoundingClientRect();
  return [b.left + scrollX, b.top + scrollY, b.right + scrollX, b.bottom + scrollY];
})()
"""


def test_three_artifacts_stand_side_by_side_at_1280_pixels(
    pages: dict[str, Path], tmp_path: Path
) -> None:
    assert BROWSER is not None
    with browser_page(BROWSER, tmp_path / "profile") as page:
        page.open(pages["three"], width=1280)
        assert page.run(WIDER) == []
        page.open(pages["compare"], width=390)
        assert page.run(WIDER) == ["Artifacts"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_table_that_scrolls_shows_a_shadow_where_there_is_more(
    dark: bool, pages: dict[str, Path], tmp_path: Path
) -> None:
    assert BROWSER is not None
    page_ink = 24 if dark else 255

    def edges(share: float) -> tuple[int, int]:
        """How much the strip at the left and at the right edge differs from the page."""
        left, top, right, bottom = page.run(PLACE % share)
        page.picture(tmp_path / "page.png")
        with Image.open(tmp_path / "page.png") as image:
            grey = np.asarray(image.convert("L")).astype(int)
        rows = slice(int(top) + 2, int(bottom) - 2)
        strips = grey[rows, int(left) + 1], grey[rows, int(right) - 2]
        return tuple(int(abs(np.median(strip) - page_ink)) for strip in strips)

    with browser_page(BROWSER, tmp_path / "profile") as page:
        page.open(pages["report"], width=390, dark=dark)
        at_start, between, at_end = edges(0), edges(0.2), edges(1)
        assert (at_start[0] < 8, at_start[1] > 20) == (True, True), at_start
        assert min(between) > 20, between
        assert (at_end[0] > 20, at_end[1] < 8) == (True, True), at_end


def test_printed_pages_are_light_and_show_every_layers_figures(
    pages: dict[str, Path], tmp_path: Path
) -> None:
    assert BROWSER is not None
    with browser_page(BROWSER, tmp_path / "profile") as page:
        page.open(pages["report"], dark=True)
        page.call("Emulation.setEmulatedMedia", media="print")
        assert page.run("getComputedStyle(document.body).color") == "rgb(27, 29, 34)"
        assert page.run(CONTRAST) == []
        assert page.run("getComputedStyle(document.querySelector('nav')).display") == "none"
        page.pdf(tmp_path / "print.pdf")
        content = (tmp_path / "print.pdf").read_bytes()
        assert content.startswith(b"%PDF")
        assert page.messages == []


def test_requests_and_errors_would_be_seen(tmp_path: Path) -> None:
    """The net catches: a page with an error, an outside picture and a pale word."""
    assert BROWSER is not None
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<body><p style='color:#ccc'>pale</p><svg width=10><text x=50>out</text></svg>"
        "<img src='http://127.0.0.1:9/x.png'><script>undefined_name()</script>",
        encoding="utf-8",
    )
    with browser_page(BROWSER, tmp_path / "profile") as page:
        page.open(bad)
        assert [word for _, word in page.run(CONTRAST)] == ["pale"]
        assert page.run(CUT_OFF) == ["out"]
        assert any(m.startswith("exception") for m in page.messages)
        assert any(m.startswith("request: http://127.0.0.1:9") for m in page.messages)


def keep(page: "object", name: str) -> None:
    """Leave a picture of the page where the environment asks for it."""
    if folder := os.environ.get("VTCOMPRESS_PICTURES"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.picture(Path(folder) / f"{name}.png")  # type: ignore[attr-defined]
