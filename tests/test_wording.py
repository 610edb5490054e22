"""What reports say, word for word, one file a section; `python -m tests.test_wording` writes them anew.

Read the difference before it is committed: a sentence that changed for one artifact may be wrong for another.
"""

import contextlib
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from compressor.families.pictures.steps import Resize
from compressor.plan.edits import grow_at, keep_at, keep_in_front, leave_out, run_some
from compressor.plan.growth import Growth
from compressor.plan.kept import Kept, Running
from export.artifact.manifest import KnownFacts
from export.checks.known.report import PARTS
from export.report.compare.comparison import compare_artifacts
from export.report.compare.page import comparison_document
from export.report.document import Block, Chart, Document, Group, Section, flat
from export.report.pages.model_card import Origin, model_card
from export.report.pages.report import report_document
from export.report.render.markdown import markdown
from export.report.search.page import search_document
from export.report.sweep.page import sweep_document
from export.results.answers import KeptPlaces
from export.results.quantization import QuantizationLoss, QuantizationReport
from tests import facts
from tests.artifacts import make_artifact
from tests.searches import SEARCHES
from tests.sweeps import SWEEPS
from tests.test_html_report import ASKED, PROFILE
from tests.test_report_exits import exits_profile
from tests.test_report_yopo import BARE, CUT, MASKED, RECIPE, RECIPE_MASKED, SCORED, measured_of
from vtcompress.cli import show
from vtcompress.console import Output
from vtcompress.stages.report import read_report

SNAPSHOTS = Path(__file__).parent / "snapshots"
KINDS = [facts.figures("count", exact_match=0.5), facts.figures("pick")]
JUDGED = facts.loss((), KINDS, max_kl=0.5, min_agreement=0.8)
MISSED = facts.loss(("mean KL is 2",), KINDS, max_kl=0.001)
MEASURED = {"profile": PROFILE, "measured": facts.measured(), "fidelity": facts.fidelity()}
EXITS = exits_profile("layer_contribution", "exit_kl")
GRID = facts.facts(token_grid=(3, 4))
KEPT = keep_in_front(facts.plan(dead=(5,), model=GRID), 6, "gprune", {"keep": 0.5})
LEAVING = keep_at(
    leave_out(facts.plan(dead=(5,)), {1: ("mlp",)}, "skip"),
    2,
    Kept(count=6, of=12, by="fastv", asked={"layer": 2}),
)
GROWING = grow_at(
    keep_in_front(facts.plan(dead=(5,)), 4, "random", {"keep": 0.34, "seed": 0}),
    4,
    Growth(count=12, of=4, by="wico_plus"),
)
RUN = Running(count=5, of=12, by="gamma_mod", asked={"keep": 0.45}, outputs=2)
SOME_RUN = run_some(facts.plan(dead=(5,)), {2: RUN, 3: RUN, 5: RUN})
WHOLE = QuantizationReport(
    weights="int4",
    block=32,
    float_bytes=8 << 20,
    stored_bytes=1 << 20,
    loss=QuantizationLoss(
        source="8 questions of heldout.jsonl",
        rows=8,
        kl=0.0021,
        kl_worst=0.013,
        agreement=0.875,
        largest=0.42,
    ),
)
KNOWN = KnownFacts(selftest_format=1, pictures=4, parts=PARTS, layers=6)
ARTIFACTS: dict[str, dict[str, Any]] = {
    "frozen": {"asked": ASKED, "loss": JUDGED, "selftest": KNOWN, **MEASURED},
    "nothing measured": {},
    "weights in whole numbers": {"asked": ASKED, "loss": JUDGED, "quantization": WHOLE, **MEASURED},
    "exit": MEASURED
    | {
        "selftest": KNOWN.model_copy(update={"parts": ("preprocessing", "prompt", "vision")}),
        "dead": (3,),
        "exit_layer": 4,
        "recipe": "vtcompress: 1\ncompress:\n- visual_exit: {max_kl: 0.05}\n",
        "profile": EXITS,
        "measured": facts.measured(4),
    },
    "gates": MEASURED
    | {
        "gates": facts.gates(),
        "loss": JUDGED.model_copy(update={"exits": ((2, 5), (4, 1))}),
        "measured": facts.measured(2),
    },
    "cuts": MEASURED
    | {"plan": CUT, "recipe": RECIPE, "profile": SCORED, "measured": measured_of(CUT)},
    "masked cuts": {"plan": MASKED, "recipe": RECIPE_MASKED},
    "frozen in no head": {"plan": BARE, "recipe": RECIPE},
    "kept in front": MEASURED
    | {
        "plan": KEPT,
        "asked": ASKED,
        "kept": [KeptPlaces(size=(40, 33), tiles=((0, 1, 4, 5, 7, 10),))],
        "picture_steps": (Resize(size=(4, 4), resample="bicubic"),),
        "recipe": "vtcompress: 2\ncompress:\n- gprune: {keep: 0.5}\n",
        "measured": facts.measured().model_copy(
            update={"visual": 6, "kv_layers": (70,) * 6, "kv_bytes": facts.CACHE_ROW * 70 * 6}
        ),
    },
    "leaving at a layer": MEASURED
    | {
        "plan": LEAVING,
        "asked": ASKED,
        "recipe": "vtcompress: 2\ncompress:\n- fastv: {layer: 2}\n- skip: {operators: {mlp: [1]}}\n",
        "measured": facts.measured().model_copy(
            update={
                "kv_layers": (76, 76, 70, 70, 70, 70),
                "kv_bytes": facts.CACHE_ROW * (2 * 76 + 4 * 70),
            }
        ),
    },
    "growing at a layer": MEASURED
    | {
        "plan": GROWING,
        "recipe": "vtcompress: 2\ncompress:\n- random: {keep: 0.34}\n- wico_plus: {layer: 4}\n",
        "measured": facts.measured().model_copy(
            update={
                "visual": 4,
                "kv_layers": (68, 68, 68, 68, 76, 76),
                "kv_bytes": facts.CACHE_ROW * (4 * 68 + 2 * 76),
            }
        ),
    },
    "some run": MEASURED
    | {
        "plan": SOME_RUN,
        "recipe": "vtcompress: 2\ncompress:\n- gamma_mod: {keep: 0.45, dense: [0, 1, 4]}\n",
        "measured": facts.measured().model_copy(
            update={
                "kv_layers": (76, 76, 69, 69, 76, 69),
                "kv_bytes": facts.CACHE_ROW * 3 * (76 + 69),
            }
        ),
    },
    "failed": MEASURED
    | {"asked": ASKED, "loss": MISSED, "fidelity": facts.fidelity(["prefill: shape"])},
}


def drawings(blocks: Sequence[Block]) -> Iterator[str]:
    """Yield what is said of drawings, which Markdown leaves out."""
    for block in flat(blocks):
        if isinstance(block, Group):
            yield from drawings(block.blocks)
        elif isinstance(block, Chart):
            title, description, *_ = list(ET.fromstring(str(block.drawing)))
            yield f"Drawing: {title.text}\n\n{description.text}\n\n{block.caption}\n"
            yield from (f"- {word}: {meaning}" for word, meaning in block.legend)


def section_words(section: Section) -> str:
    """Return everything that a section says."""
    text = markdown(Document("", "", (section,))).removeprefix("# \n\n")
    return "\n".join([text, *drawings(section.blocks)]).strip()


def all_words() -> dict[str, str]:
    """Return what every file of `snapshots/` should hold."""
    found: dict[str, dict[str, str]] = {}
    with TemporaryDirectory() as place:
        folders = {name: Path(place) / name.replace(" ", "-") for name in ARTIFACTS}
        for name, given in ARTIFACTS.items():
            data = read_report(make_artifact(folders[name], **given))
            for section in report_document(data).sections:
                found.setdefault(f"report-{section.key}", {})[name] = section_words(section)
            card = model_card(data, Origin("owner/model", {"license": "mit"}))
            found.setdefault("card", {})[name] = card
            found.setdefault("console", {})[name] = console(data)
        comparison = comparison_document(compare_artifacts(list(folders.values())))
        for section in comparison.sections:
            found.setdefault("compare", {})[section.key] = section_words(section)
    for name, report in SWEEPS.items():
        words = [section_words(section) for section in sweep_document(report).sections]
        found.setdefault("sweep", {})[name] = "\n\n".join(words)
    for name, search in SEARCHES.items():
        words = [section_words(section) for section in search_document(search).sections]
        found.setdefault("search", {})[name] = "\n\n".join(words)
    return {
        key: "\n\n".join(f"<!-- {name} -->\n\n{text.strip()}" for name, text in texts.items())
        + "\n"
        for key, texts in found.items()
    }


def console(data: Any) -> str:
    """Return what the command line prints, without the frames of tables."""
    with contextlib.redirect_stdout(io.StringIO()) as stream:
        if data.profile is not None:
            show.show_profile(Output(), data.profile)
        show.show_plan(Output(), data.plan, data.manifest.dtype)
        with contextlib.redirect_stderr(io.StringIO()):
            show.show_checks(Output(), data.manifest, data.plan)
    lines = (
        re.sub(r"[━─┏┓┗┛┳┻┡┩╇└┘┴]+", "", line).rstrip() for line in stream.getvalue().splitlines()
    )
    return "\n".join(line for line in lines if line)


@pytest.fixture(scope="module")
def words() -> dict[str, str]:
    return all_words()


KEYS = sorted(path.stem for path in SNAPSHOTS.glob("*.md"))


@pytest.mark.parametrize("key", KEYS)
def test_a_section_says_what_its_snapshot_says(key: str, words: dict[str, str]) -> None:
    assert words[key] == (SNAPSHOTS / f"{key}.md").read_text(encoding="utf-8"), (
        "if this is meant: python -m tests.test_wording, and read the difference"
    )


def test_every_section_has_its_snapshot_and_every_snapshot_its_section(
    words: dict[str, str],
) -> None:
    assert sorted(words) == KEYS
    assert len(KEYS) == 15


def test_snapshots_hold_words_of_every_artifact() -> None:
    """Nothing is compared with an empty file, and no two artifacts are mixed up."""
    for key in KEYS:
        parts = re.split(r"<!-- (.*) -->", (SNAPSHOTS / f"{key}.md").read_text(encoding="utf-8"))
        assert all(len(text.strip()) > 10 for text in parts[2::2]), key
        assert key in ("compare", "search", "sweep") or parts[1::2] == list(ARTIFACTS), key


if __name__ == "__main__":
    SNAPSHOTS.mkdir(exist_ok=True)
    for old in SNAPSHOTS.glob("*.md"):
        old.unlink()
    for name, content in all_words().items():
        (SNAPSHOTS / f"{name}.md").write_text(content, encoding="utf-8")
