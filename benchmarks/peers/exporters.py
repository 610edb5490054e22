"""transformers' own exporters, as a user calls them."""

import contextlib
import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Exporter = Literal["onnx", "fused", "openvino"]
"""For ONNX as it is and fused for ONNX Runtime, and for OpenVINO, which makes caches a state inside."""
PAST, ROWS = 5, 7


def export(kind: Exporter, model: Any, sample: dict[str, Any], folder: Path) -> None:
    """Write one graph of a model or a part of it.

    Args:
        kind: of the exporter.
        model: a torch module.
        sample: what its forward pass is called with.
        folder: for the files, `model.onnx` or `openvino_model.xml` and weights beside.
    """
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        _exported(kind, model, sample).save_pretrained(folder)


def _exported(kind: Exporter, model: Any, sample: dict[str, Any]) -> Any:
    if kind == "openvino":
        from transformers.exporters.configs import OpenVINOConfig
        from transformers.exporters.exporter_openvino import OpenVINOExporter

        return OpenVINOExporter().export(model, sample, OpenVINOConfig(dynamic=True))
    from transformers.exporters.configs import OnnxConfig
    from transformers.exporters.exporter_onnx import OnnxExporter

    config = OnnxConfig(dynamic=True, ort_fusions="cpu" if kind == "fused" else None)
    return OnnxExporter().export(model, sample, config)


def decoder_sample(config: "PreTrainedConfig") -> dict[str, Any]:
    """Return a call whose graph does for prefill and decode: embeddings in, logits of the last row out.

    Args:
        config: of the decoder.
    """
    import torch
    from transformers import DynamicCache

    past = DynamicCache(config=config)
    keys = torch.randn(1, config.num_key_value_heads, PAST, config.head_dim)
    for layer in range(config.num_hidden_layers):
        past.update(keys, keys, layer)
    return {
        "inputs_embeds": torch.randn(1, ROWS, config.hidden_size),
        "attention_mask": torch.ones(1, PAST + ROWS, dtype=torch.long),
        "position_ids": torch.arange(PAST, PAST + ROWS)[None],
        "past_key_values": past,
        "logits_to_keep": 1,
    }
