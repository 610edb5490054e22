"""What the documents say is there is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
# Files of this repository; `python -m` names modules with dots.
FILES = re.compile(
    r"(?<![\w/$])((?:tests|benchmarks|compressor|export|vtcompress|recipes|examples|docs)/[\w./-]+)"
)
MODULES = re.compile(r"python -m ((?:tests|benchmarks)(?:\.\w+)+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = {name.rstrip("./") for name in FILES.findall(text)}
    named |= {f"{name.replace('.', '/')}.py" for name in MODULES.findall(text)}
    missing = sorted(
        name
        for name in named
        if not (ROOT / name).exists()
        and not (ROOT / name.removesuffix(".py") / "__main__.py").exists()
    )
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = sorted(link for link in links if not (page.parent / link).exists())
    assert missing == []
