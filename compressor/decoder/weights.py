"""Fills the compressed decoder with the original's weights, sharing their memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.decoder.model import Decoder
from compressor.errors import ModelError
from compressor.gate_file import GateFile
from compressor.plan import Plan

# Our names of a layer's parameters -> names in a Hugging Face Llama-like decoder.
LAYER_SOURCES = {
    "input_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}

# Where DyVTE's released code keeps its gates, below the language model.
GATES_SOURCE = "visual_gates_router"


@dataclass(frozen=True)
class LoadedGates:
    """Gates read from a file.

    Attributes:
        layers: that have one, ascending.
        width: hidden width W.
        digest: sha256 of the file.
        tensors: float32, named as in `source_of`.
    """

    layers: tuple[int, ...]
    width: int
    digest: str
    tensors: dict[str, Tensor]


def load_gates(file: GateFile, layers: Sequence[int]) -> LoadedGates:
    """Load the gates of some layers, in float32.

    Args:
        file: that was checked for these layers.
        layers: ascending.
    """
    from safetensors import safe_open

    tensors = {}
    with safe_open(file.path, framework="pt") as stored:
        for (layer, part), name in file.names.items():
            if layer in layers:
                tensors[f"{GATES_SOURCE}.{layer}.{part}.weight"] = stored.get_tensor(name).float()
    return LoadedGates(tuple(layers), file.width, file.digest, tensors)


def source_of(name: str) -> tuple[str, bool]:
    """Return the source tensor of one decoder parameter, and whether it is stored transposed.

    Source names are relative to the language model (`layers.0...`, `norm.weight`), except for
    `lm_head.weight` and `embed_tokens.weight`.
    """
    if name == "tied_head":
        return "embed_tokens.weight", False
    if name == "head.weight":
        return "lm_head.weight", True
    if name == "norm.weight":
        return name, False
    owner, index, rest = name.split(".", 2)
    if owner == "gates":
        return f"{GATES_SOURCE}.{index}.{rest}", True
    module, leaf = rest.rsplit(".", 1)
    matrix = leaf == "weight" and not module.endswith("norm")
    return f"layers.{index}.{LAYER_SOURCES[module]}.{leaf}", matrix


def decoder_from(plan: Plan, tensors: Mapping[str, Tensor], *, logits: str = "last") -> Decoder:
    """Build the plan's decoder on the original's tensors, without copying them.

    Args:
        plan: decides every layer.
        tensors: the original's, named as in `source_of`, linear weights [out, in].
        logits: as in `Decoder`.

    Raises:
        ModelError: tensors are missing or of another shape; all are listed.
    """
    with torch.device("meta"):
        decoder = Decoder(plan, logits=logits)
    decoder.inv_freq = torch.tensor(plan.model.decoder.rope_inv_freq, dtype=torch.float32)
    problems, filled = [], {}
    for name, parameter in decoder.named_parameters():
        source, transposed = source_of(name)
        if source not in tensors:
            problems.append(f"{source}: missing from the model's weights")
            continue
        tensor = tensors[source].detach()
        tensor = tensor.T if transposed else tensor
        if tensor.shape != parameter.shape:
            problems.append(
                f"{source}: shape {tuple(tensor.shape)}, expected {tuple(parameter.shape)}"
            )
        filled[name] = tensor
    if problems:
        raise ModelError(problems)
    for name, tensor in filled.items():
        owner, leaf = decoder.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False))
    return decoder.eval()
