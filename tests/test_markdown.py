"""Whatever the values of a document are, in its Markdown none of them is Markdown, HTML or a second line."""

import re

import pytest

from compressor.samples.questions import Sample
from export.report import document as doc
from export.report.document import Block, Document, Section
from export.report.questions import Question
from export.report.render.markdown import markdown
from export.results.verdict import Verdict

HOSTILE = "<img src=x>\n\n# [a](b) `c` *d* | e\x1b[2J"
ASKED = Question(Sample((), HOSTILE, HOSTILE), HOSTILE, HOSTILE)
BLOCKS: dict[str, Block] = {
    "words": doc.Words(HOSTILE),
    "outcome": doc.Outcome(HOSTILE, Verdict.FAILED, HOSTILE),
    "bullets": doc.Bullets((HOSTILE, doc.Outcome(HOSTILE, Verdict.PASSED, HOSTILE)), bad=True),
    "table": doc.Table(HOSTILE, (HOSTILE, HOSTILE), [(HOSTILE, HOSTILE)]),
    "headline": doc.Headline(((HOSTILE, HOSTILE),)),
    "cards": doc.Cards((ASKED,)),
    "group": doc.Group(HOSTILE, [doc.Words(HOSTILE)]),
    "beside": doc.Beside([[doc.Words(HOSTILE)]]),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_no_value_of_a_block_is_markdown(name: str) -> None:
    page = markdown(Document(HOSTILE, HOSTILE, (Section("k", "s", HOSTILE, [BLOCKS[name]]),)))
    assert "img src=x" in page
    bare = re.sub(r"\\.", "", page)  # without what is escaped
    assert not re.search(r"[<>\[\]`\x1b]|\*d|\w.*#", bare)
    begins = ("# img", "## img", "### img", "- img", "- **img", "|", "**img", "img")
    assert all(line.startswith(begins) for line in bare.split("\n") if line)
    rows = [line.count("|") for line in bare.split("\n") if line.startswith("|")]
    assert len(set(rows)) <= 1
