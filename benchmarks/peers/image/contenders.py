"""Who makes the graphs from pixels to logits. Each is made in a process of its own."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.decoder_models import FROZEN_SHARE
from benchmarks.peers.contenders import HUGGING_FACE, IDENTITY, Contender, Runs, ours
from benchmarks.peers.exporters import Exporter, decoder_sample, export
from benchmarks.peers.image.model import load_torch, question

WHOLE, PIECES, ARTIFACT, RECIPE = "whole", "pieces", "artifact", "recipe.yaml"
EMBEDDING = "embedding.npy"
TOWER, PROJECTOR, DECODER = "image_encoder", "multi_modal_projector", "decoder"


def contenders() -> tuple[Contender, ...]:
    """Return all, the reference first."""
    by_openvino = partial(_whole, "openvino"), partial(_pieces, "openvino")
    f32: Runs = "openvino f32"
    return (
        Contender("torch eager", "torch", _torch, HUGGING_FACE, "torch"),
        Contender("transformers, ONNX whole", "onnx-whole", partial(_whole, "onnx"), WHOLE),
        Contender("transformers, ONNX pieces", "onnx", partial(_pieces, "onnx"), PIECES),
        Contender("transformers, ONNX fused pieces", "fused", partial(_pieces, "fused"), PIECES),
        Contender("transformers, OpenVINO whole", "ov-whole", by_openvino[0], WHOLE, "openvino"),
        Contender("transformers, OpenVINO f32 whole", "ov-whole", by_openvino[0], WHOLE, f32),
        Contender("transformers, OpenVINO pieces", "ov", by_openvino[1], PIECES, "openvino"),
        Contender("transformers, OpenVINO f32 pieces", "ov", by_openvino[1], PIECES, f32),
        *ours(_ours, ARTIFACT),
    )


def frozen_layers(layers: int) -> range:
    """Return which layers are frozen; the visual rows of the last, which nobody reads, are in every plan."""
    return range(layers - round(FROZEN_SHARE * layers), layers - 1)


def _torch(folder: Path, layers: int, vocab: int) -> None:
    """Do nothing: torch reads the model's folder."""


def _whole(kind: Exporter, folder: Path, layers: int, vocab: int) -> None:  # noqa: ARG001 - in the folder
    """Export one graph, which can do a prefill alone: a decode step has no pixels."""
    export(kind, load_torch(folder), _call(folder), folder / WHOLE)


def _pieces(kind: Exporter, folder: Path, layers: int, vocab: int) -> None:  # noqa: ARG001
    """Export tower, projector and decoder, with which an answer can be had whole.

    `export_for_generation` leaves tower and projector out: `generate` runs them before it calls the model,
    whose call is what it looks at. The table of embeddings is in no graph that takes rows.
    """
    from transformers.exporters.utils import decompose_multimodal

    model = load_torch(folder)
    text: Any = model.config.text_config
    parts = decompose_multimodal(model, _call(folder))
    for name in (TOWER, PROJECTOR):
        export(kind, *parts[name], folder / PIECES / name)
    export(kind, model, decoder_sample(text), folder / PIECES / DECODER)
    embedding: Any = model.get_input_embeddings()
    np.save(folder / PIECES / EMBEDDING, embedding.weight.detach().numpy())


def _call(folder: Path) -> dict[str, Any]:
    """Return what the model is called with for a picture's first token."""
    import torch

    asked = question(folder)
    ids = torch.from_numpy(asked.ids)[None]
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.from_numpy(asked.pixels),
        "logits_to_keep": 1,
    }


def _ours(name: str, kind: str, folder: Path, layers: int, vocab: int) -> None:  # noqa: ARG001
    """Export by the public API, its checks of the graphs included."""
    import vtcompress

    methods: list[dict[str, object]] = []
    if name != IDENTITY:
        methods.append({"shortv": {"layers": [*frozen_layers(layers)]}})
    if name == "half":
        methods.append({"random": {"keep": 0.5}})
    recipe = {
        "vtcompress": 2,
        "model": {"id": str(folder / HUGGING_FACE)},
        "compress": methods,
        "export": {"weights": kind, "selftest": False},
    }
    (folder / RECIPE).write_text(yaml.safe_dump(recipe), encoding="utf-8")
    read = vtcompress.load_recipe(folder / RECIPE)
    vtcompress.export(read, folder / ARTIFACT, bench_rounds=0, progress=False)
