"""A method that this file alone defines, registered by an entry point: recipe, plan, profile, reports.

It freezes the layers in front of which visual rows are small. Nothing in the product knows it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from compressor.contract.measure import Measure
from compressor.contract.method import Evidence, Method, MethodWords, NamedLayers, Turn
from compressor.plan.edits import freeze
from compressor.plan.plan import Plan
from compressor.schema.values import Count, KeptLayers
from tests.conftest import shared

ROOT = Path(__file__).parent.parent


def small_rows(full: Any) -> Any:
    """Return the mean magnitude [L] of visual rows at the input of each layer."""
    import torch

    return torch.stack([rows.abs().double().mean() for rows in full.visual])


SMALL = Measure(
    name="toy_magnitude",
    shape=("layers",),
    of=small_rows,
    chooses="layers by magnitude",
    title="magnitude of visual rows",
    unit="mean of |x|",
)


class Toy(Method):
    """Freezes the layers in front of which visual rows are smallest.

    Attributes:
        count: how many.
        never: layers that are not frozen.
    """

    name: ClassVar[str] = "toy"
    words: ClassVar[MethodWords] = MethodWords(
        label="Toy", paper="Toy: Small Rows Say Little, arXiv 0000.00000"
    )
    turn: ClassVar[Turn] = Turn.FREEZE
    measures: ClassVar[tuple[Measure, ...]] = (SMALL,)
    nicknames: ClassVar[tuple[str, ...]] = ("small_rows",)

    count: Count = 1
    never: KeptLayers = ()

    def needs(self) -> tuple[Measure, ...]:
        """Return the magnitude of rows."""
        return self.measures

    def layers_named(self, layers: int) -> tuple[NamedLayers, ...]:  # noqa: ARG002
        """Return the layers that are not frozen."""
        return (NamedLayers("never", self.never),)

    def apply(self, plan: Plan, evidence: Evidence) -> Plan:
        """Return the plan with layers frozen."""
        size = evidence.of(SMALL).mean
        able = [x.index for x in plan.layers if x.visual == "update" and x.index not in self.never]
        return freeze(plan, sorted(able, key=lambda i: size[i])[: self.count], self.name)

    def notes(self, plan: Plan, evidence: Evidence) -> list[str]:
        """Return where there were fewer layers than asked for."""
        frozen = sum(layer.reason == self.name for layer in plan.layers)
        return (
            [f"{evidence.where}.count: only {frozen} can be frozen"] if frozen < self.count else []
        )

    def why_frozen(self, plan: Plan, samples: int | None) -> str:  # noqa: ARG002
        """Return what speaks for the layers."""
        return f"in front of them visual tokens were smallest on {samples} toy prompts"


# Modules that this session has traced before are not traced again: see `tests.traced`.
REMEMBERING = """
import sys
from pathlib import Path
from tests import traced
traced.install(Path(sys.argv.pop(1)))
from vtcompress.cli.main import main
main()
"""


COMMANDS = """
import json, sys
from vtcompress.cli.main import run_command
for asked in json.loads(sys.argv[1]):
    sys.stderr.write(f"code {run_command(asked)}\\0")
"""


def vtcompress(
    site: Path, *arguments: object, cwd: Path, program: tuple[str, ...] = ("-m", "vtcompress")
) -> "subprocess.CompletedProcess[str]":
    """Run a command in a process of its own, in which the toy's package is installed."""
    paths = os.pathsep.join(map(str, (site, ROOT)))
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def installed(folder: Path, value: str = "tests.test_toy_method:Toy") -> Path:
    """Return a folder of packages with one that brings a method."""
    info = folder / "toy_rows-0.3.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-rows\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text(f"[vtcompress.methods]\ntoy = {value}\n")
    return folder


def recipe(folder: Path, entry: str) -> Path:
    path = folder / "toy.yaml"
    path.write_text(f"vtcompress: 2\ncompress:\n  - {entry}\n")
    return path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def artifact(
    site: Path,
    llava: Callable[[str], Path],
    questions: Path,
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    named = recipe(folder, "toy: {count: 1, never: [0]}")
    asked = ["--recipe", named, "--model", llava("clip+llama")]
    output = folder / "artifact"
    data = ["--data", questions, "--bench-rounds", 0, "--output", output]
    program = ("-c", REMEMBERING, str(shared(pytestconfig) / "traced"))
    done = vtcompress(site, "export", *asked, *data, cwd=folder, program=program)
    assert done.returncode == 0, done.stderr
    return output


def test_a_method_of_another_package_goes_from_recipe_to_plan_and_profile(artifact: Path) -> None:
    profile = json.loads((artifact / "profile.json").read_text())
    plan = json.loads((artifact / "plan.json").read_text())
    assert profile["measures"] == ["toy_magnitude"]
    count = len(profile["samples"])
    means = [
        sum(sample["toy_magnitude"][i] for sample in profile["samples"]) / count
        for i in range(profile["layers"])
    ]
    # Layer 0 is never frozen, and nobody reads the rows of the last one.
    able = sorted(range(1, profile["layers"] - 1), key=lambda i: means[i])
    frozen = [x["index"] for x in plan["layers"] if x["reason"] == "toy"]
    assert len(able) > 1
    assert frozen == able[:1]
    assert {x["visual"] for x in plan["layers"] if x["reason"] == "toy"} == {"frozen"}
    assert "- toy:" in (artifact / "recipe.yaml").read_text()
    assert (artifact / "profile.svg").stat().st_size > 1000


def test_reports_say_its_own_words_and_the_package_that_brought_it(artifact: Path) -> None:
    page = (artifact / "report.html").read_text()
    text = (artifact / "report.md").read_text()
    card = (artifact / "README.md").read_text()
    for report in (page, text, card):
        assert "in front of them visual tokens were smallest on" in report
        assert "(method Toy)" in report
        assert "of the package toy-rows 0.3" in report
    assert "Toy: Small Rows Say Little, arXiv 0000.00000" in card
    assert "magnitude of visual rows" in page
    assert "magnitude of visual rows" in text


def test_its_errors_are_those_of_every_method(site: Path, tiny_model: Path, tmp_path: Path) -> None:
    wanted = {
        "toy: {}": "chooses layers by magnitude, but there is no profile",
        "toy: {never: [99]}": "compress[0].toy.never: 99 is outside",
        "small_rows: {}": "did you mean 'toy'?",
    }
    asked = []
    for number, entry in enumerate(wanted):
        (tmp_path / str(number)).mkdir()
        named = recipe(tmp_path / str(number), entry)
        asked.append(["plan", "--recipe", str(named), "--model", str(tiny_model)])
    done = vtcompress(site, json.dumps(asked), cwd=tmp_path, program=("-c", COMMANDS))
    assert done.returncode == 0, done.stderr
    *found, rest = done.stderr.split("\0")
    assert rest == ""
    for said, words in zip(found, wanted.values(), strict=True):
        assert words in said
        assert said.endswith("\ncode 1")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("no_such_module:Toy", "cannot be loaded: ModuleNotFoundError: No module named"),
        ("tests.test_toy_method:SMALL", "is no method"),
        (
            "compressor.methods.shortv:ShortV",
            "has the name shortv of a method that is there already",
        ),
    ],
)
def test_a_package_whose_method_cannot_be_used_is_named(
    value: str, said: str, tmp_path: Path
) -> None:
    site = installed(tmp_path / "site", value)
    named = recipe(tmp_path, "shortv: {frozen: 0.5}")
    done = vtcompress(site, "plan", "--recipe", named, "--model", tmp_path, cwd=tmp_path)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    where = f"package toy-rows: its method {value} (entry point 'toy' of vtcompress.methods)"
    assert f"{where} {said}" in done.stderr
    assert "; remove or upgrade toy-rows\n" in done.stderr
