"""Export fidelity by layer: the verdict of whole graphs, with one layer's weights in memory at a time.

Both checks are run on the same artifact, as it was written and with faults planted in its weight file.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import pytest

import vtcompress
from compressor.compressed import compress
from compressor.decoder.by_layer import cannot_part
from compressor.families import load
from compressor.plan.plan import Plan
from compressor.progress import SILENT
from export.artifact.artifact import Artifact
from export.checks.bfloat16 import open_for_checks
from export.checks.by_layer.check import BEHIND, compare_by_layer
from export.checks.by_layer.pieces import Pieces
from export.checks.by_layer.reference import read_reference
from export.graphs.spec import WEIGHTS_FILE, in_order
from export.report.sections.checks import by_layer_words
from export.results.fidelity import FidelityReport
from export.results.verdict import Verdict
from tests import test_family_llava, test_family_qwen3_vl
from tests.family_cases import HEAD_MASK, cuts
from tests.test_streaming import first_layers, recipe_of
from vtcompress.stages.validate import check_fidelity, fidelity_limits, record_torch

LAYERS = 4
Vt = Callable[..., tuple[int, str, str]]


class Exported(NamedTuple):
    """A streamed artifact and what it was made of."""

    model: Path
    artifact: Path
    recipe: vtcompress.Recipe
    plan: Plan

    def whole(self, artifact: Path) -> FidelityReport:
        """Check an artifact with the compressed model in memory, as an export without streaming does."""
        graphs = Artifact.open(self.artifact).manifest.graphs
        small = compress(load(str(self.model)), self.plan)
        session = open_for_checks(artifact, graphs, "float32")
        return check_fidelity(session, graphs, self.plan, record_torch(small), self.recipe)

    def by_layer(self, artifact: Path) -> FidelityReport:
        """Check it layer by layer."""
        graphs = Artifact.open(self.artifact).manifest.graphs
        small = compress(load(str(self.model), outline=True), self.plan)
        limits = fidelity_limits(self.recipe)
        reference = read_reference(small, self.recipe.export, None)
        return compare_by_layer(
            reference, artifact, graphs, "float32", self.plan, limits, None, SILENT
        )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The first layers of the bundled model, one of them frozen."""
    folder = tmp_path_factory.mktemp("by-layer")
    model = first_layers(folder / "model", LAYERS)
    recipe = recipe_of(model, [{"shortv": {"layers": [1]}}])
    vtcompress.export(recipe, folder / "artifact", stream=True)
    return Exported(
        model, folder / "artifact", recipe, Plan.load(folder / "artifact" / "plan.json")
    )


def with_fault(exported: Exported, folder: Path, weight: str) -> Path:
    """Copy an artifact and turn the numbers of one stored weight of its decoder round."""
    shutil.copytree(exported.artifact, folder)
    stored = ir.load(folder / "decoder.onnx").graph.initializers[weight].const_value
    assert isinstance(stored, ir.ExternalTensor)
    data = np.memmap(folder / WEIGHTS_FILE, np.float32, "r+", stored.offset, (stored.length // 4,))
    data[:] = data[::-1].copy()
    data.flush()
    return folder


def test_what_passes_whole_passes_by_layer(exported: Exported) -> None:
    whole, found = exported.whole(exported.artifact), exported.by_layer(exported.artifact)
    assert (whole.verdict, found.verdict) == (Verdict.PASSED, Verdict.PASSED)
    assert Artifact.open(exported.artifact).manifest.fidelity == found
    assert not whole.layers
    names = [one.call.split(":")[0] for one in found.layers]
    assert names == [*(f"layer {i}" for i in range(LAYERS)), BEHIND]
    # Nothing but rounding, in every layer and kind of call.
    assert all(0 < one.max_relative < 1e-5 for one in found.layers)


@pytest.mark.parametrize("layer", [0, 1, LAYERS - 1])
def test_a_fault_fails_both_checks_and_its_layer_is_named(
    layer: int, exported: Exported, tmp_path: Path
) -> None:
    spoiled = with_fault(exported, tmp_path / "spoiled", f"layers.{layer}.mlp.up.weight")
    whole, found = exported.whole(spoiled), exported.by_layer(spoiled)
    assert (whole.verdict, found.verdict) == (Verdict.FAILED, Verdict.FAILED)
    assert found.worst_layer is not None
    assert found.worst_layer.call.startswith(f"layer {layer}: ")
    blamed = {line.split(":")[0] for line in found.failures if line.startswith(("layer", BEHIND))}
    assert blamed == {f"layer {layer}"}
    assert found.failures[0].startswith(f"layer {layer}: ")
    # The logits of the whole chain are judged beside it.
    assert {line.split(":")[0] for line in found.failures} > blamed
    assert f"layer {layer}: " in " ".join(by_layer_words(found))


def test_a_fault_in_keys_alone_is_found_in_its_layer(exported: Exported, tmp_path: Path) -> None:
    spoiled = with_fault(exported, tmp_path / "spoiled", "layers.1.key.weight")
    found = exported.by_layer(spoiled)
    assert found.worst_layer is not None
    assert "layer 1: " in found.worst_layer.call
    assert found.verdict is Verdict.FAILED


def test_a_fault_behind_the_layers_is_said_to_be_there(exported: Exported, tmp_path: Path) -> None:
    found = exported.by_layer(with_fault(exported, tmp_path / "spoiled", "head.weight"))
    assert found.worst_layer is not None
    assert found.worst_layer.call.startswith(f"{BEHIND}: ")
    assert found.failures[0].startswith(f"{BEHIND}: ")


def test_a_piece_holds_its_own_weights_alone(exported: Exported) -> None:
    graphs = Artifact.open(exported.artifact).manifest.graphs
    (spec,) = in_order(graphs, "decoder")
    pieces = Pieces(exported.artifact, spec, LAYERS)
    for layer in (0, 2, None):
        asked = {t.name for t in pieces.open(layer).graph.session.get_inputs()}
        pasts = {name.split(".")[1] for name in asked if name.startswith("past_key_values")}
        assert pasts == (set() if layer is None else {str(layer)})


@pytest.mark.parametrize(
    ("cases", "settings"),
    [
        (
            test_family_llava.TestLlava,
            {"export.kv_cache": "fixed", "export.profiles.max_context": 64, "export.logits": "all"},
        ),
        (test_family_qwen3_vl.TestQwen3Vl, {"export.dtype": "bfloat16"}),
    ],
)
def test_all_cuts_pass_by_layer(cases: Any, settings: dict[str, Any], tmp_path: Path) -> None:
    """Exit, heads apart, narrow MLPs, windows, fixed caches; rows added behind layers, three axes."""
    np.save(tmp_path / "mask.npy", HEAD_MASK)
    cases.family.make(tmp_path / "model")
    entries = cuts(tmp_path / "mask.npy", cases.family.grid is not None)["all"]
    recipe = recipe_of(tmp_path / "model", entries, "float32").override(settings)
    found = vtcompress.export(recipe, tmp_path / "out", stream=True).fidelity
    assert found is not None
    assert found.passed, found.failures
    assert len(found.layers) == len(Plan.load(tmp_path / "out" / "plan.json").layers) + 1


def test_plans_that_decide_between_layers_are_said_to_be_unchecked(
    tiny_model: Path, questions: Path, tmp_path: Path, vt: Vt
) -> None:
    options = ("--recipe", "fastv", "--set", "compress.fastv.layer=1", "--model", tiny_model,
               "--validate-data", questions)  # fmt: skip
    code, _, err = vt("export", *options, "--output", tmp_path / "out", "--stream")
    assert code == 0, err
    assert (
        "export fidelity is not checked: which visual rows there are is decided between layers (at layer 1)"
        in err
    )
    assert "compression loss is not measured: which visual rows there are is decided" in err
    manifest = Artifact.open(tmp_path / "out").manifest
    assert (manifest.fidelity, manifest.loss, manifest.verdict) == (None, None, Verdict.NOT_RUN)
    assert cannot_part(Plan.load(tmp_path / "out" / "plan.json"))
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert (
        "Export fidelity was not checked: which visual rows there are is decided between" in report
    )


def test_the_manifest_of_whole_graphs_tells_no_layers(exported: Exported) -> None:
    stored = json.loads((exported.artifact / "manifest.json").read_text(encoding="utf-8"))
    assert len(stored["fidelity"]["layers"]) == LAYERS + 1
    whole = Artifact.open(exported.artifact).manifest.fidelity
    assert whole is not None
    assert "layers" not in whole.model_copy(update={"layers": ()}).model_dump()
