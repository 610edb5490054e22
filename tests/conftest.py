"""Shared fixtures; models are made and modules traced once a session. Counts of reliability are summed up."""

import gc
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from compressor.telemetry import switch_off
from tests.slow import SLOW

# One thread a process: the tests run side by side, and tiny matrices gain nothing from more.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The exporter computes with names of axes: by default sympy keeps a thousand results, an export has more.
os.environ.setdefault("SYMPY_CACHE_SIZE", "20000")
switch_off()  # tests import onnxruntime themselves
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # tests import openvino themselves

COUNT = "reliability count"
# Files that take the most processor seconds come first, so that two workers end together.
LONGEST = (
    "golden", "kill", "digits", "cut_graphs", "float16_cuts", "engines", "fixed_cache",
    "streaming", "exit_artifacts", "float16_export", "silence", "export", "rewrite", "report_yopo",
    "report_exits", "wheel", "sweep", "gate_training", "gate_stage", "identity", "openvino_cuts", "generate",
    "readme", "cli", "build", "modes",
)  # fmt: skip
Run = Callable[..., tuple[int, str, str]]
Shows = Callable[..., None]
Builds = Callable[[str, str, str, str], dict[str, float]]
SHOWN, BUILT = "cell of docs/families.md", "engine of docs/families.md"


def shared(config: pytest.Config) -> Path:
    """Return the folder that all workers of this session share."""
    base: Path = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    return base.parent if hasattr(config, "workerinput") else base


def made_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Return a folder that the first worker who wants it makes; it is not to be changed."""
    from filelock import FileLock

    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            (half := folder.with_name(f"{folder.name}.half")).mkdir(exist_ok=True)
            make(half)
            half.rename(folder)
    return folder


@pytest.hookimpl(tryfirst=True)  # before `-m` is asked
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow, and put the longest files first; the order within a file stays."""
    for item in items:
        if any(name in item.nodeid for name in SLOW):
            item.add_marker("slow")
    places: dict[str, float] = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    families = sorted({i.path.name for i in items if i.path.name.startswith("test_family_")})
    # Side by side two families that trace the same would wait for each other.
    places |= {name: place + 0.5 for place, name in enumerate(families)}

    def place(name: str) -> float:
        return places.get(name, max(len(LONGEST), len(families)))

    items.sort(key=lambda item: place(item.path.name))
    _put_last(items, "test_the_page_says_what_these_cases_showed")


def _put_last(items: list[pytest.Item], name: str) -> None:
    """Put what judges the cases of a class behind those that its subclass adds."""
    for item in [item for item in items if item.name == name]:
        end = max(at for at, other in enumerate(items) if other.parent is item.parent)
        items.insert(end, items.pop(items.index(item)))


def pytest_collection_finish() -> None:
    """Let the garbage collector leave alone what imports have made: it looks at all of it again and again.

    And let it look less often: an export makes so many objects that a tenth of it went into looking.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Put the export that remembers in place of torch's, once torch is loaded."""
    if "torch" in sys.modules:
        from tests import traced

        traced.install(shared(item.config) / "traced")


@pytest.fixture(scope="session")
def llava(pytestconfig: pytest.Config) -> Callable[[str], Path]:
    """Return a function from the name of a variant to its model folder."""
    from tests.models import VARIANTS, make_llava

    def get(name: str = "clip+llama") -> Path:
        folder = shared(pytestconfig) / "models" / f"llava{list(VARIANTS).index(name)}"
        return made_once(folder, lambda half: make_llava(half, VARIANTS[name]))

    return get


@pytest.fixture(scope="session")
def questions(pytestconfig: pytest.Config) -> Path:
    """Return a jsonl file of six questions with pictures beside it. Not to be changed."""
    from tests.models import make_questions

    return (
        made_once(shared(pytestconfig) / "made" / "questions", make_questions) / "questions.jsonl"
    )


@pytest.fixture(scope="session")
def tiny_model(pytestconfig: pytest.Config) -> Path:
    """Return a model folder with two decoder layers: the cheapest that has a layer to freeze."""
    from tests.models import Variant, make_llava

    folder = shared(pytestconfig) / "models" / "tiny"
    return made_once(folder, lambda half: make_llava(half, Variant(layers=2)))


@pytest.fixture(scope="session")
def tiny_artifact(tiny_model: Path, questions: Path, pytestconfig: pytest.Config) -> Path:
    """Return an artifact of the tiny model, identity recipe, with stored answers. Not to be changed."""
    import vtcompress

    recipe = vtcompress.load_recipe("identity").override(
        {
            "model.id": str(tiny_model),
            "validate.data": questions,
            "validate.max_new_tokens": 4,
            "validate.keep_pictures": "all",
        }
    )

    def make(half: Path) -> None:
        vtcompress.export(recipe, half / "tiny", bench_rounds=0)

    return made_once(shared(pytestconfig) / "made" / "tiny", make) / "tiny"


@pytest.fixture(scope="session")
def plain_artifact(llava: Callable[[str], Path], pytestconfig: pytest.Config) -> Path:
    """Return an artifact of four layers, identity recipe, without data. Not to be changed."""
    return _exported(llava, pytestconfig, "artifact", ())


@pytest.fixture(scope="session")
def plain_exit(llava: Callable[[str], Path], pytestconfig: pytest.Config) -> Path:
    """Return `plain_artifact` with an exit at layer 2 of 4. Not to be changed."""
    return _exported(llava, pytestconfig, "exit", [{"visual_exit": {"layer": 2}}])


@pytest.fixture(scope="session")
def packable(
    llava: Callable[[str], Path],
    plain_artifact: Path,
    plain_exit: Path,
    pytestconfig: pytest.Config,
) -> Callable[[str], Path]:
    """Return a function from the name of a cut to an artifact of four layers. Not to be changed."""
    import numpy as np

    def get(name: str) -> Path:
        if name in ("identity", "exit"):
            return plain_artifact if name == "identity" else plain_exit
        if name == "keep k":
            return _exported(llava, pytestconfig, "pack_kept", [{"random": {"keep": 0.5}}])
        if name == "int4":
            return _exported(llava, pytestconfig, "pack_int4", (), {"export.weights": "int4"})
        mask = shared(pytestconfig) / "pack_mask.npy"
        kept = np.ones((4, 4), bool)  # of two groups
        kept[1, :2] = kept[2, 2:] = False
        np.save(mask, kept)
        cuts = {"heads": {"mask": str(mask)}, "mlp_ratio": 2}
        return _exported(
            llava, pytestconfig, "pack_cut", [{"yopo": cuts}, {"shortv": {"layers": [3]}}]
        )

    return get


@pytest.fixture(scope="session")
def npm() -> None:
    """Let clients from npm be found, or skip, with the reason."""
    from tests.npm import find_clients

    find_clients()


def _exported(
    llava: Callable[[str], Path],
    config: pytest.Config,
    name: str,
    compress: Sequence[dict[str, Any]],
    keys: dict[str, Any] | None = None,
) -> Path:
    from tests.runtimes import exported

    def make(half: Path) -> None:
        exported(llava("clip+llama"), half / name, compress=compress, keys=keys)

    return made_once(shared(config) / "made" / name, make) / name


@pytest.fixture(scope="class")
def made(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Any:
    """Return what there is of the tiny family that a class of `tests.family_cases` names."""
    from tests.family_cases import Made

    return Made(request.cls.family, shared(pytestconfig) / "families")


@pytest.fixture(scope="class")
def short(made: Any) -> Any:
    """Return what there is of that family's first layers."""
    from tests.family_shorts import Short

    return Short(made)


@pytest.fixture
def shows(request: pytest.FixtureRequest) -> Shows:
    """Return a function that says which cell of docs/families.md a case is about, before the case looks.

    `(cut, backend)`; with a third, how that is refused.
    """

    def say(cut: str, backend: str, refused: str = "") -> None:
        told = {"cut": cut, "backend": backend, "refused": refused}
        request.node.user_properties.append((SHOWN, told))

    return say


@pytest.fixture
def builds(request: pytest.FixtureRequest) -> Builds:
    """Return a function that says which engine of docs/families.md a case builds, before it does.

    `(family, model, pictures, graph)`; it returns where the case puts its figures.
    """

    def say(family: str, model: str, pictures: str, graph: str) -> dict[str, float]:
        figures: dict[str, float] = {}
        told = {"line": (family, model, pictures), "graph": graph, "figures": figures}
        request.node.user_properties.append((BUILT, told))
        return figures

    return say


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note what became of a case for each cell that it is about, in a file for each family."""
    report = yield
    for key, cell in item.user_properties if call.when == "call" else ():
        if key not in (SHOWN, BUILT):
            continue
        family = item.cls.family.name if key == SHOWN else cell["line"][0]
        file = shared(item.config) / ("shown" if key == SHOWN else "widths") / f"{family}.jsonl"
        file.parent.mkdir(exist_ok=True)
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({**cell, "outcome": report.outcome}) + "\n")
    return report


@pytest.fixture(autouse=True)
def _forgotten_hub() -> None:
    """Let every test ask its own hub: a process remembers what one answered."""
    from compressor.families import hub

    for remembered in (hub.fetched, hub._unanswered, hub._say_cached):
        remembered.cache_clear()


@pytest.fixture
def vt(capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command line and gives exit code, stdout and stderr."""
    from vtcompress.cli.main import run_command

    def call(*arguments: object) -> tuple[int, str, str]:
        code = run_command([str(a) for a in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Callable[[str, int], None]:
    """Return a function that adds to a count of the summary line, such as `("kills", 50)`."""

    def add(what: str, number: int) -> None:
        # User properties travel with the report from pytest-xdist's workers.
        request.node.user_properties.append((COUNT, (what, number)))

    return add


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what the reliability tests that passed have counted."""
    total: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        for key, value in getattr(report, "user_properties", ()):
            if key == COUNT and report.when == "call":
                total[value[0]] += value[1]
    if total:
        shown = ", ".join(f"{number:,} {what}" for what, number in sorted(total.items()))
        terminalreporter.write_line(f"reliability: {shown}")
