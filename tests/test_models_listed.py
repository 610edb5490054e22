"""`vtcompress models`: what can be compressed and by what, as families and methods tell it themselves."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

import vtcompress
from compressor.contract.method import Evidence
from compressor.families import known, supported
from compressor.families.llama_text import TEXT_MODEL_TYPES
from compressor.methods import METHOD_NAMES, METHODS
from tests.conftest import Run
from tests.facts import facts
from tests.test_toy_family import ToyFamily, register  # noqa: F401 - a fixture

Register = Callable[..., None]


def test_every_type_is_listed_with_its_decoders_and_every_method(vt: Run) -> None:
    code, out, _ = vt("--json", "models")
    assert code == 0
    found = json.loads(out)
    assert found == list(vtcompress.models())
    assert [kind for family in found for kind in family["model_types"]] == list(supported())
    for listed, family in zip(found, known.families(), strict=True):
        assert (listed["family"], listed["package"]) == (family.name, None)
        assert listed["decoders"] == list(family.decoders)
        assert [method["name"] for method in listed["methods"]] == list(METHOD_NAMES)


def test_quiet_is_a_type_a_line_and_loud_a_row(vt: Run) -> None:
    assert vt("-q", "models")[1].splitlines() == list(supported())
    out = vt("models")[1]
    for word in (*supported(), *TEXT_MODEL_TYPES, *METHOD_NAMES):
        assert word in out


def test_a_family_of_a_package_is_listed_with_it(
    register: Register,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    vt: Run,
) -> None:
    monkeypatch.setattr(ToyFamily, "no_grid", "rows are arranged anew")
    register("ToyFamily")
    *_, toy = vtcompress.models()
    assert (toy["family"], toy["package"]) == ("toy", "toy-families")
    for method in toy["methods"]:
        (kind,) = [kind for kind in METHODS if kind.name == method["name"]]
        assert method["without"] == list(kind.by_grid)
        assert bool(method["why"]) == bool(kind.by_grid)
        # A method that has to be given such a key cannot do without it.
        assert method["applies"] != any(kind.model_fields[k].is_required() for k in kind.by_grid)
    shown = " ".join(vt("models")[1].split())
    names = [method["name"] for method in toy["methods"] if not method["applies"]]
    assert {"divprune", "pool"} <= {*names}
    assert f"not {', '.join(names)}: rows are arranged anew" in re.sub(r"[│ ]+", " ", shown)
    row = next(line for line in vt("models")[1].splitlines() if "toy-families" in line)
    assert "not told" in row
    assert "window" in vt("models")[1]


def test_a_key_that_reads_the_grid_is_refused_where_there_is_none() -> None:
    asked: dict[str, Any] = {"window": 3, "keep": 0.5, "layer": 2, "weights": "x.safetensors"}
    of_grid = [(method, key) for method in METHODS for key in method.by_grid]
    assert {key for _, key in of_grid} == set(asked)
    for method, key in of_grid:
        entry = method.model_validate({key: asked[key]})
        line, *_ = entry.problems(facts(token_grid=None, cell=2), Evidence(where="here"))
        assert line.startswith(f"here.{key}: ")
