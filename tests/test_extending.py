"""The examples of docs/extending.md run as they stand there, and no others."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import vtcompress

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def block(heading: str) -> str:
    """Return the Python of a section of the page."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return str(code)


def run(heading: str) -> Any:
    """Return a module of a section's Python."""
    module = ModuleType(f"extending_{heading.rsplit(maxsplit=1)[-1]}")
    sys.modules[module.__name__] = module  # where pydantic and pickle look for it
    exec(compile(block(heading), f"extending.md: {heading}", "exec"), vars(module))
    return module


def install(site: Path, heading: str) -> None:
    """Write a package of a section's Python, with the entry points of the page."""
    (points,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    wanted = "vtcompress.methods" if heading == "A method" else "vtcompress.families"
    (line,) = re.findall(rf'"{wanted}"\]\n(.*)', points)
    info = site / "my_package-0.1.dist-info"
    info.mkdir(parents=True)
    (site / "my_package.py").write_text(block(heading), encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[{wanted}]\n{line.replace(chr(34), '')}\n")


def test_the_method_is_a_key_of_recipes_and_plans(tiny_model: Path, tmp_path: Path) -> None:
    install(tmp_path / "site", "A method")
    recipe = tmp_path / "own.yaml"
    recipe.write_text("vtcompress: 2\ncompress:\n  - every_nth: {n: 3}\n")
    paths = os.pathsep.join(map(str, (tmp_path / "site", ROOT)))
    asked = ["plan", "--recipe", recipe, "--model", tiny_model, "--output", tmp_path / "plan.json"]
    done = subprocess.run(
        [sys.executable, "-m", "vtcompress", "--json", *map(str, asked)],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    layers = json.loads(done.stdout)["plan"]["layers"]
    assert [(layer["visual"], layer["reason"]) for layer in layers] == [
        ("frozen", "every_nth"),
        ("frozen", "dead"),
    ]


def test_the_family_is_the_smallest_file_whole() -> None:
    folder = ROOT / "compressor" / "families" / "llava"
    assert block("A family") == (folder / "vipllava.py").read_text(encoding="utf-8")


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the page's family be another package's, as it is not one of this tool's own."""
    from compressor.families import known

    own = tuple(place for place in known.BUILT_IN if not place.endswith(":VipLlavaFamily"))
    assert len(own) == len(known.BUILT_IN) - 1
    monkeypatch.setattr(known, "BUILT_IN", own)
    install(tmp_path / "site", "A family")
    monkeypatch.syspath_prepend(tmp_path / "site")
    known.families.cache_clear()
    yield
    known.families.cache_clear()


@pytest.mark.usefixtures("family")
def test_the_family_reads_its_models_as_transformers_does(tmp_path: Path) -> None:
    from compressor.families import load
    from tests.test_family_vipllava import make
    from vtcompress.stages.checks.rewrite import check_rewrite

    make(tmp_path / "model")
    facts = vtcompress.inspect(tmp_path / "model")
    assert (facts["family"], facts["family_package"]) == ("vipllava", "my-package")
    assert check_rewrite(load(str(tmp_path / "model"))).passed


def test_the_backend_answers_as_the_others_do(tiny_artifact: Path) -> None:
    from export.backends import registry

    backend = run("A backend").Plain()
    registry.register(backend)
    try:
        found = vtcompress.Runtime.load(tiny_artifact, backend="plain").answer("what is this")
    finally:
        del registry.BACKENDS[backend.name]
    wanted = vtcompress.Runtime.load(tiny_artifact).answer("what is this")
    assert found.token_ids == wanted.token_ids
    assert next(iter(backend.probe()))["version"]


def test_the_pass_changes_the_graphs_that_it_applies_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    from compressor.decoder import decoder_from
    from compressor.schema.sections import ExportSection
    from export.graphs.spec import decoder_graph
    from export.writer.passes import order
    from export.writer.weights import SharedWeights
    from export.writer.write import export_decoder, save_graph
    from tests.cuts import tensors_of
    from tests.decoders import plan_of

    signed = run("A graph pass").Signed()
    monkeypatch.setattr(order, "PASSES", (*order.PASSES, signed))
    plan = plan_of("identity")
    spec = decoder_graph(plan, "float32", "last")
    with SharedWeights(tmp_path) as weights:
        made = export_decoder(decoder_from(plan, tensors_of(plan)), spec)
        save_graph(made, tmp_path / spec.file, weights)
    graph = onnx.load(tmp_path / spec.file, load_external_data=False)
    assert {entry.key: entry.value for entry in graph.metadata_props}["signed"] == "by my lab"
    assert order.pass_words([spec], ExportSection()) == (signed.words,)
