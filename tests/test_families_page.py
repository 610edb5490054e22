"""The table of docs/families.md grows by itself, from what cases showed: a row a family and backend."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from compressor.methods import METHOD_NAMES
from tests import family_matrix
from tests.family_matrix import (
    BEGIN,
    CHOICES,
    CUTS,
    END,
    FACTS,
    GATED,
    HEAD,
    NOT_SHOWN,
    PAGE,
    TAKEN,
    TITLES,
    TORCH,
    YES,
    families_in_order,
    not_shown,
    page_with,
    read_page,
    read_shown,
    rows_of,
    updated,
)

pytest_plugins = ["pytester"]

REASON = "yopo.window: rows have no grid"
EMPTY = f"# Page\n\n{BEGIN}\n{END}\n\nThe end.\n"
Line = tuple[str, str, str, str]


def everything(**changes: str) -> list[Line]:
    """Return lines of a family of which all was shown; changes are outcomes of torch by cut."""
    return [
        (cut, backend, "", changes.get(cut, "passed") if backend == TORCH else "passed")
        for cut in CUTS
        for backend in TITLES
    ]


def record(folder: Path, family: str, lines: Sequence[Line]) -> Path:
    file = folder / "shown" / f"{family}.jsonl"
    file.parent.mkdir(exist_ok=True, parents=True)
    names = ("cut", "backend", "refused", "outcome")
    file.write_text("".join(json.dumps(dict(zip(names, x, strict=True))) + "\n" for x in lines))
    return file


def test_the_page_has_every_family_and_leaves_no_cell_out() -> None:
    page = read_page(PAGE.read_text(encoding="utf-8"))
    assert [*page] == families_in_order()
    for family, rows in page.items():
        assert [row[1] for row in rows] == [*TITLES.values()], family
        assert not_shown(rows) == []
        assert all(len(row) == len(HEAD) and all(row) for row in rows)


def test_the_page_says_of_every_family_which_choices_it_takes() -> None:
    page = read_page(PAGE.read_text(encoding="utf-8"), TAKEN)
    assert [*page] == families_in_order()
    assert all(len(row) == len(TAKEN.head) for (row,) in page.values())


def test_choices_are_written_where_a_run_told_of_all(tmp_path: Path) -> None:
    page = f"{EMPTY}\n{TAKEN.begin}\n{TAKEN.end}\nAnd on.\n"
    told = [(name, FACTS, f"here.{name}: {REASON}", "passed") for name in [*CHOICES][:1]]
    told += [(name, FACTS, "", "passed") for name in [*CHOICES][1:]]
    record(tmp_path, "llava", [*everything(), *told])
    record(tmp_path, "internvl", everything())
    assert TAKEN.begin + "\n" + TAKEN.end in updated(page, tmp_path)
    record(tmp_path, "internvl", [*everything(), *told])
    written = updated(page, tmp_path)
    row = [REASON, *[YES] * (len(CHOICES) - 1)]
    wanted = {name: [[f"`{name}`", *row]] for name in ("llava", "internvl")}
    assert read_page(written, TAKEN) == wanted
    assert len(read_page(written)) == 2
    assert written.endswith("And on.\n")


def test_every_family_has_its_cases() -> None:
    from tests.family_cases import FamilyCases

    for file in Path(__file__).parent.glob("test_family_*.py"):
        importlib.import_module(f"tests.{file.stem}")
    # One class each in the files that fill the page: its records are one file.
    kinds = (kind for kind in FamilyCases.__subclasses__() if "test_family_" in kind.__module__)
    assert sorted(kind.family.name for kind in kinds) == sorted(families_in_order())


def test_the_columns_are_the_cuts_of_the_cases_and_these_use_every_method() -> None:
    from tests.family_cases import cuts

    entries = cuts(Path("x.npy"))
    assert {*entries, *GATED} == {*CUTS}
    used = {name for cut in entries.values() for entry in cut for name in entry}
    # Choices have a table of their own: `tests.test_front`, `tests.test_leaving`, `tests.test_mixture` and
    # `tests.test_growing` hold them in numbers. A search uses the words of others: `tests.test_search`.
    assert used | {"dyvte", *CHOICES} == {*METHOD_NAMES} - {"auto"}


@pytest.mark.parametrize(
    ("outcomes", "cell"),
    [
        (["passed"], YES),
        (["passed", "passed"], YES),
        (["passed", "failed"], NOT_SHOWN),
        (["failed", "passed"], NOT_SHOWN),
        (["skipped"], NOT_SHOWN),
        ([], NOT_SHOWN),
    ],
)
def test_a_cell_says_so_only_if_all_its_cases_passed(
    outcomes: list[str], cell: str, tmp_path: Path
) -> None:
    shown = read_shown(record(tmp_path, "a", [("exit", TORCH, "", x) for x in outcomes]))
    assert shown.pop(("exit", TORCH)) == cell
    assert set(shown.values()) == {NOT_SHOWN}


def test_a_refusal_is_named_on_the_page_once_and_read_back(tmp_path: Path) -> None:
    lines = [x for x in everything() if x[0] != "window"]
    lines += [("window", backend, f"some/file: {REASON}", "passed") for backend in TITLES]
    rows = {name: rows_of(name, read_shown(record(tmp_path, name, lines))) for name in "ab"}
    text = page_with(EMPTY, rows)
    assert text.count(REASON) == 1
    assert text.count("| refused (1) |") == 2 * len(TITLES)
    assert read_page(text) == rows
    assert (text.startswith("# Page\n"), text.endswith("\n\nThe end.\n")) == (True, True)
    assert page_with(text, rows) == text


def test_rows_of_families_that_did_not_run_stay_and_of_those_that_are_gone_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(family_matrix, "families_in_order", lambda: ["b", "a", "c"])
    rows = {name: rows_of(name, read_shown(record(tmp_path, "x", everything()))) for name in "ad"}
    (tmp_path / "shown" / "x.jsonl").unlink()
    record(tmp_path, "b", everything())
    found = read_page(updated(page_with(EMPTY, rows), tmp_path))
    assert [*found] == ["b", "a"]


def test_nothing_is_written_while_a_cell_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no case of a family ran"):
        updated(EMPTY, tmp_path)
    record(tmp_path, "llava", everything(exit="failed"))
    with pytest.raises(SystemExit, match=r"not shown: `llava` exit in torch$"):
        updated(EMPTY, tmp_path)


CASES = """
import pytest
from types import SimpleNamespace
from tests.family_matrix import CUTS, TITLES, judge

class TestToy:
    family = SimpleNamespace(name="toy")

    @pytest.mark.parametrize("backend", TITLES)
    @pytest.mark.parametrize("cut", CUTS)
    def test_a_case(self, cut, backend, shows):
        shows(cut, backend)
        assert cut not in {broken}

    def test_the_page_says_what_these_cases_showed(self, request):
        judge(request, self.family.name)

class TestMore(TestToy):
    family = SimpleNamespace(name="more")

    def test_of_its_own(self, shows):
        shows("exit", "torch", "here: is refused after all")
"""


@pytest.mark.parametrize(
    ("page", "broken", "options", "failed"),
    [
        (everything(), [], [], ["TestMore"]),
        (everything(exit="failed"), [], [], ["TestToy", "TestMore"]),
        (everything(), ["heads"], [], ["TestToy", "TestMore"]),
        ([], [], ["-k", "frozen or page"], []),
        (everything(), [], ["-n2", "--dist=loadscope"], ["TestMore"]),
    ],
    ids=["as shown", "says less", "says more", "a part of the cases", "in two workers"],
)
def test_the_last_case_of_a_class_holds_the_page_to_what_was_shown(
    page: list[Line],
    broken: list[str],
    options: list[str],
    failed: list[str],
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = read_shown(record(pytester.path, "toy", page))
    rows = {name: rows_of(name, shown) for name in ("toy", "more")}
    (pytester.path / "page.md").write_text(page_with(EMPTY, rows))
    conftest = f"""
        from pathlib import Path
        from tests import family_matrix
        from tests.conftest import *
        family_matrix.PAGE = Path({str(pytester.path / "page.md")!r})
        family_matrix._installed = lambda backend: True
    """
    pytester.makeconftest(conftest)
    pytester.makepyfile(test_toy=CASES.replace("{broken}", repr(broken)))
    monkeypatch.setenv("PYTHONPATH", str(family_matrix.ROOT))
    found = pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)
    pages = [line for line in found.outlines if "FAILED" in line and "the_page_says" in line]
    assert [name for name in ("TestToy", "TestMore") if any(name in x for x in pages)] == failed
