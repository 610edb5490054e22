"""Vision graphs of real widths, built for TensorRT-RTX ahead of time; no engine is run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vtcompress
from compressor.families.model_class.own_size import OwnSizeFamily
from export.backends.tensorrt.maker import Maker
from export.backends.tensorrt.targets import TARGETS
from export.graphs.limits import limits_of
from export.graphs.profiles import profiles_of
from export.graphs.spec import vision_graph
from export.writer.weights import SharedWeights
from export.writer.write import export_vision, save_graph
from tests.facts import dims, facts


def build_vision(family: OwnSizeFamily, config: Any, most: int, folder: Path) -> None:
    """Build the float16 tower of a configuration for pictures of all sizes, up to `most` visual tokens."""
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")
    cell = family.cell(config)
    decoder = dims(hidden=config.text_config.hidden_size)
    model = facts(decoder, visual_tokens=most, cell=cell, image_size=cell, token_grid=None)
    torch.manual_seed(0)
    vision = family.vision(config, image_size=cell).half()
    spec = vision_graph(model, "float16")
    with SharedWeights(folder) as weights:
        save_graph(export_vision(SimpleNamespace(vision=vision), spec), folder / spec.file, weights)
    limits = limits_of(vtcompress.load_recipe("identity").export.profiles, model)
    (profile,) = profiles_of(spec, limits)
    assert profile.least["height"] == cell < profile.most["height"]
    engine = folder / "vision.engine"
    maker = Maker.of(TARGETS["tensorrt-rtx"], ["SM86"])
    maker.build_engine(folder / spec.file, [profile], spec, engine, b"")
    assert engine.stat().st_size > (folder / "weights.bin").stat().st_size
