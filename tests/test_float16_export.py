"""A model whose stream overflows float16, from `export` to what people read; references in float32."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import vtcompress
from compressor.compressed import compress
from compressor.families import load
from compressor.samples.questions import read_samples
from export.artifact.manifest import Manifest
from export.backends.torch_model import TorchSession
from export.checks import fidelity, stored
from export.report import data as report_data
from export.report.pages import model_card, report
from export.report.pages.model_card import Origin
from export.results.fidelity import FidelityReport
from tests.models import Variant, make_llava
from vtcompress.cli import show
from vtcompress.console import Output

DOWN = "layers.0.mlp.down_proj.weight"


class Exported(NamedTuple):
    """A float16 artifact, its model, and the torch side's recording that its fidelity was judged by."""

    model: Path
    folder: Path
    manifest: Manifest
    reference: fidelity.Recording


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, questions: Path) -> Exported:
    """Export a float16 model whose residual stream reaches 1e5 behind its first layer."""
    model = make_llava(tmp_path_factory.mktemp("wide") / "wide", Variant(layers=2, dtype="float16"))
    tensors = load_file(model / "model.safetensors")
    (name,) = (k for k in tensors if k.endswith(DOWN) and "vision" not in k)
    tensors[name] *= 2.0**14
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    recipe = vtcompress.load_recipe("identity").override(
        {
            "model.id": str(model),
            "export.dtype": "float16",
            "validate.data": str(questions),
            "validate.keep_pictures": "all",
            "validate.max_new_tokens": 4,
        }
    )
    references = []
    compare = fidelity.compare

    def keep(reference: fidelity.Recording, *rest: Any) -> FidelityReport:
        references.append(reference)
        return compare(reference, *rest)

    folder = tmp_path_factory.mktemp("artifact") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "compare", keep)
        manifest = vtcompress.export(recipe, folder, bench_rounds=0)
    return Exported(model, folder, manifest, references[0])


def test_the_artifact_passes_both_checks_with_its_wide_nodes_in_float32(exported: Exported) -> None:
    manifest = exported.manifest
    assert manifest.fidelity is not None
    assert manifest.fidelity.passed, manifest.fidelity
    assert manifest.loss is not None
    assert manifest.loss.overall.kl < 1e-3
    assert manifest.ranges is not None
    assert manifest.ranges.prompts == 6
    assert set(manifest.ranges.graphs) == {"vision", "decoder", "baseline_decoder"}
    assert set(manifest.ranges.float32_nodes) == {"decoder", "baseline_decoder"}
    assert manifest.ranges.graphs["decoder"].largest > 1e5
    assert manifest.ranges.graphs["vision"].largest < 1e3
    assert vtcompress.Artifact.open(exported.folder).manifest == manifest


def test_caches_of_fixed_size_hide_no_wide_value(exported: Exported, tmp_path: Path) -> None:
    """Room for one prompt of the fidelity check, which are run for want of data."""
    recipe = vtcompress.load_recipe("identity").override(
        {
            "model.id": str(exported.model),
            "export.dtype": "float16",
            "export.kv_cache": "fixed",
            "export.profiles.max_context": 40,
        }
    )
    manifest = vtcompress.export(recipe, tmp_path / "fixed", bench_rounds=0)
    assert manifest.ranges is not None
    assert manifest.ranges.float32_nodes.keys() == {"decoder", "baseline_decoder"}
    assert manifest.ranges.graphs["decoder"].largest > 1e5
    assert manifest.fidelity is not None
    assert manifest.fidelity.passed, manifest.fidelity


def test_fidelity_is_judged_by_torch_in_float32_not_in_float16(exported: Exported) -> None:
    """The source is float16 here; its weights are computed with in float32 all the same."""
    small = compress(load(str(exported.model)), vtcompress.Plan.load(exported.folder / "plan.json"))
    wanted = fidelity.record(TorchSession(small), small.plan).outputs
    found = exported.reference.outputs
    assert found.keys() == wanted.keys()
    for call, values in wanted.items():
        assert np.abs(found[call] - values).max() < 1e-5, call
    # In float16 it would be another: not even finite here.
    halved = fidelity.record(TorchSession(small.to(torch.float16)), small.plan).outputs
    assert not all(np.isfinite(values).all() for values in halved.values())


def test_loss_compares_with_the_original_in_float32(exported: Exported, questions: Path) -> None:
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    samples, original = stored.stored_original(exported.folder)
    model = LlavaForConditionalGeneration.from_pretrained(exported.model, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(exported.model)
    sample = read_samples(questions)[0]
    parts = [{"type": "image"}, {"type": "text", "text": sample.question}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    picture = Image.open(sample.images[0])
    inputs = processor(text=prompt, images=[picture], return_tensors="pt", add_special_tokens=False)
    with torch.inference_mode():
        logits = model(**inputs).logits[0, -1].numpy()
    assert len(samples) == 6
    assert np.abs(original.logits[0] - logits).max() < 1e-4


def test_reports_tell_how_large_values_get_and_which_nodes_stay_in_float32(
    exported: Exported, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = exported.manifest
    assert manifest.ranges is not None
    nodes = manifest.ranges.float32_nodes["decoder"]
    data = report_data.report_data(exported.folder, manifest)
    show.show_checks(Output(), manifest, data.plan)
    pages = {
        "markdown": report.markdown_report(data),
        "card": model_card.model_card(data, Origin()),
        "html": (exported.folder / "report.html").read_text(encoding="utf-8"),
        "shown": capsys.readouterr().out,
    }
    for name, page in pages.items():
        text = " ".join(page.replace("\\", "").split())
        assert f"decoder: {len(nodes)} nodes stay in float32" in text, name
        assert "layers.0.mlp.down.MatMul" in text, name
        assert "computed in float32 on 6 prompts of questions.jsonl" in text, name
        largest = max(graph.largest for graph in manifest.ranges.graphs.values())
        assert f"{largest:,.0f}" in text, name
    assert "computes in float32, so the figures include what float16 rounds" in pages["markdown"]
    figures = report_data.figures(data)
    assert figures["ranges"]["graphs"]["decoder"]["float32_nodes"] == list(nodes)
