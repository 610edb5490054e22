"""Engines of Qwen's models at real widths, ahead of time: pictures of sizes of their own, and of one size."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch

import vtcompress
from compressor.facts import ModelFacts
from compressor.families.qwen_vl.family import Qwen2VlFamily, Qwen25VlFamily, QwenVlFamily
from compressor.plan.edits import identity_plan
from export.backends.tensorrt.maker import Maker
from export.backends.tensorrt.targets import TARGETS
from export.graphs.limits import limits_of
from export.graphs.profiles import profiles_of
from export.graphs.spec import vision_graph
from export.writer.weights import SharedWeights
from export.writer.write import export_vision, save_graph
from tests.decoders import write_decoder

pytestmark = pytest.mark.matrix  # builds of real widths

CELL = 28
PROFILES = vtcompress.load_recipe("identity").export.profiles
TEXT: dict[str, Any] = {
    "num_hidden_layers": 2,
    "vocab_size": 4096,
    "max_position_embeddings": 32768,
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [16, 24, 24],
    },
}
# Of 2B and of 3B parameters, but for the vocabulary.
WIDTHS: dict[str, tuple[QwenVlFamily, dict[str, Any], dict[str, Any]]] = {
    "Qwen2VL": (
        Qwen2VlFamily(),
        {"depth": 2, "hidden_size": 1536},
        {
            "hidden_size": 1536,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "intermediate_size": 8960,
        },
    ),
    "Qwen2_5_VL": (
        Qwen25VlFamily(),
        {
            "depth": 2,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "out_hidden_size": 2048,
            "fullatt_block_indexes": [1],
        },
        {
            "hidden_size": 2048,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "intermediate_size": 11008,
        },
    ),
}
SIZES = {
    "sizes of their own": {"shortest_edge": 4 * CELL**2, "longest_edge": 256 * CELL**2},
    "one size": {"height": 13 * CELL, "width": 18 * CELL},
}


def wide(name: str, size: dict[str, int]) -> tuple[QwenVlFamily, Any, ModelFacts]:
    import transformers

    family, vision, text = WIDTHS[name]
    config = getattr(transformers, f"{name}Config")(vision_config=vision, text_config=TEXT | text)
    facts = family.facts(config, name)
    saved = {"image_processor_type": "Qwen2VLImageProcessor", "size": size}
    return family, config, family.with_pictures(facts, saved)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", WIDTHS)
def test_the_tower_of_real_width_builds_for_tensorrt_rtx(
    name: str, sizes: str, tmp_path: Path
) -> None:
    """Two layers, float16; those of Qwen2.5-VL attend in windows, and everywhere."""
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")
    family, config, facts = wide(name, SIZES[sizes])
    torch.manual_seed(0)
    vision = family.vision(config, image_size=facts.image_size).half()
    spec = vision_graph(facts, "float16")
    with SharedWeights(tmp_path) as weights:
        graph = export_vision(SimpleNamespace(vision=vision), spec)
        save_graph(graph, tmp_path / spec.file, weights)
    (profile,) = profiles_of(spec, limits_of(PROFILES, facts))
    if facts.sizes_differ:
        sides = [profile.least["height"], profile.typical["width"], profile.most["width"]]
        assert sides == [CELL, 16 * CELL, 32 * CELL]  # a square of 256 cells, and twice its side
    else:
        assert set(profile.most) == {"images"}
        written = onnx.load(tmp_path / spec.file, load_external_data=False).graph
        # Positions and angles are constants.
        assert not {node.op_type for node in written.node} & {"Range", "Cos", "Sin"}
    engine = tmp_path / "vision.engine"
    Maker.of(TARGETS["tensorrt-rtx"], ("SM86",)).build_engine(
        tmp_path / spec.file, [profile], spec, engine, b""
    )
    assert engine.stat().st_size > (tmp_path / "weights.bin").stat().st_size


@pytest.mark.parametrize("name", WIDTHS)
def test_the_decoder_of_real_width_builds_for_tensorrt_rtx(name: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")
    _, _, facts = wide(name, SIZES["sizes of their own"])
    (spec,) = write_decoder(tmp_path, identity_plan(facts, "0" * 64))
    profiles = profiles_of(spec, limits_of(PROFILES, facts))
    assert max(profile.most["visual"] for profile in profiles) == 256
    engine = tmp_path / "decoder.engine"
    Maker.of(TARGETS["tensorrt-rtx"], ("SM86",)).build_engine(
        tmp_path / spec.file, profiles, spec, engine, b""
    )
    assert engine.stat().st_size > (tmp_path / "weights.bin").stat().st_size
