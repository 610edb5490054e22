"""Fills the compressed decoder with the original's weights, sharing their memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressor.decoder.model import Decoder
from compressor.disk.gate_file import GateFile
from compressor.errors import ModelError
from compressor.plan.plan import Plan

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
    if rest == "output_bias":
        return f"layers.{index}.{LAYER_SOURCES['output']}.bias", False
    module, leaf = whole_module(rest).rsplit(".", 1)
    matrix = leaf == "weight" and not module.endswith("norm")
    return f"layers.{index}.{LAYER_SOURCES[module]}.{leaf}", matrix


PARTS = {
    "seen.": "",
    "unseen.": "",
    "heads.": "",
    "mlp.first.": "mlp.",
    "mlp.rest.": "mlp.",
}
"""Beginnings of the names of a cut layer's parameters, and those of the whole that they are part of."""


def whole_module(name: str) -> str:
    """Return the name of a layer's parameter without the part it belongs to: `seen.query` is `query`."""
    part = next((p for p in PARTS if name.startswith(p)), None)
    return name if part is None else PARTS[part] + name.removeprefix(part)


@dataclass(frozen=True)
class Slice:
    """The part of a source tensor that a parameter holds, in the parameter's layout.

    Attributes:
        axis: that is cut.
        chosen: places along it, in order.
    """

    axis: int
    chosen: tuple[int, ...]

    def of(self, tensor: Tensor) -> Tensor:
        """Return the part: a view where the places follow each other, otherwise a copy.

        A tensor that lacks a place comes back as it is; its shape then tells.
        """
        first, count = min(self.chosen, default=0), len(self.chosen)
        if max(self.chosen, default=-1) >= tensor.shape[self.axis]:
            return tensor
        if self.chosen == tuple(range(first, first + count)):
            return tensor.narrow(self.axis, first, count)
        return tensor.index_select(self.axis, torch.tensor(self.chosen).to(tensor.device))


def slice_of(name: str, plan: Plan) -> Slice | None:
    """Return which part of its source a decoder parameter holds; None: all of it.

    Decided from the plan alone, before any weight is loaded.
    """
    if not name.startswith("layers."):
        return None
    _, index, rest = name.split(".", 2)
    layer, dims = plan.layers[int(index)], plan.model.decoder
    part = next((p for p in PARTS if rest.startswith(p)), None)
    if part in (None, "heads."):
        return None
    module, leaf = whole_module(rest).rsplit(".", 1)
    out = module in ("output", "mlp.down")
    if out and leaf == "bias":
        return None
    axis = 0 if out or leaf == "bias" else 1
    if part.startswith("mlp"):
        kept = layer.neurons or ()
        return Slice(axis, _either(part == "mlp.first.", kept, dims.intermediate, 1))
    width = dims.head_dim * (dims.heads // dims.kv_heads if module in ("query", "output") else 1)
    kept = tuple(range(dims.kv_heads)) if layer.groups is None else layer.groups
    return Slice(axis, _either(part == "seen.", kept, dims.kv_heads, width))


@dataclass(frozen=True)
class Part:
    """A parameter as a part of its source tensor.

    Attributes:
        tensor: in the parameter's layout.
        axis: along which parts are joined.
        transposed: whether the source is stored the other way round.
    """

    tensor: Tensor
    axis: int
    transposed: bool


def parts_by_source(decoder: Decoder, plan: Plan) -> dict[str, list[Part]]:
    """Return a decoder's parameters by the source tensor they come from, parts in their stored order."""
    found: dict[str, list[Part]] = {}
    for name, parameter in decoder.named_parameters():
        source, transposed = source_of(name)
        part = slice_of(name, plan)
        found.setdefault(source, []).append(
            Part(parameter.detach(), 0 if part is None else part.axis, transposed)
        )
    return found


def joined_parts(decoder: Decoder, plan: Plan) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Return how the naive decoder's parameters are joined of the plan's: axis and lengths, by name."""
    sources = {
        source: (parts[0].axis, tuple(part.tensor.shape[part.axis] for part in parts))
        for source, parts in parts_by_source(decoder, plan).items()
        if len(parts) > 1
    }
    with torch.device("meta"):
        names = [name for name, _ in Decoder(plan.naive()).named_parameters()]
    return {name: sources[s] for name in names if (s := source_of(name)[0]) in sources}


def _either(chosen: bool, kept: Sequence[int], count: int, width: int) -> tuple[int, ...]:
    """Return the places of the kept blocks, or of the others, `width` places each."""
    inside = set(kept)
    blocks = kept if chosen else [i for i in range(count) if i not in inside]
    return tuple(place for block in blocks for place in range(block * width, (block + 1) * width))


def decoder_from(plan: Plan, tensors: Mapping[str, Tensor], *, logits: str = "last") -> Decoder:
    """Build the plan's decoder on the original's tensors and their device; only scattered parts are copied.

    Args:
        plan: decides every layer.
        tensors: the original's, named as in `source_of`, linear weights [out, in].
        logits: as in `Decoder`.

    Raises:
        ModelError: tensors are missing or of another shape; all are listed.
    """
    with torch.device("meta"):
        decoder = Decoder(plan, logits=logits)
    problems, filled = [], {}
    for name, parameter in decoder.named_parameters():
        source, transposed = source_of(name)
        if source not in tensors:
            problems.append(f"{source}: missing from the model's weights")
            continue
        tensor = tensors[source].detach()
        tensor = tensor.T if transposed else tensor
        part = slice_of(name, plan)
        if part is not None:
            tensor = part.of(tensor)
        if tensor.shape != parameter.shape:
            problems.append(
                f"{source}: shape {tuple(tensor.shape)}, expected {tuple(parameter.shape)}"
            )
        filled[name] = tensor
    if problems:
        raise ModelError(problems)
    for name, tensor in filled.items():
        _put(decoder, name, nn.Parameter(tensor, requires_grad=False))
    for name, table in list(decoder.named_buffers()):
        _put(decoder, name, table.to(decoder.norm.weight.device))
    return decoder.eval()


def _put(decoder: Decoder, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(decoder.get_submodule(owner), leaf, tensor)
