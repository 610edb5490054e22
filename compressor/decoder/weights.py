"""Fills the compressed decoder with the original's weights, sharing their memory."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from compressor.contract.choice import LayerScore, RunRule
from compressor.decoder.model import NO_RUNS, NO_SCORES, Decoder, Stage
from compressor.disk.gate_file import GateFile
from compressor.disk.router_file import RouterFile
from compressor.errors import ModelError
from compressor.plan.plan import Plan

# Our names of a layer's parameters -> names in a Hugging Face Llama-like decoder.
LAYER_SOURCES = {
    "input_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
    "router": "router",
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

    def beside(self, other: Tensor) -> dict[str, Tensor]:
        """Return the tensors in the dtype of another and on its device."""
        return {name: tensor.to(other) for name, tensor in self.tensors.items()}


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


def load_routers(file: RouterFile, layers: Sequence[int]) -> dict[str, Tensor]:
    """Load the routers of some layers, in float32, named as in `source_of`; each has a tensor of its own.

    Args:
        file: that was checked for these layers.
        layers: that some visual rows run alone.
    """
    from safetensors import safe_open

    with safe_open(file.path, framework="pt") as stored:
        found = {name: stored.get_tensor(name).float() for name in file.names.values()}
    return {f"layers.{i}.router.weight": found[file.names[file.place(i)]].clone() for i in layers}


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
        if self.chosen == tuple(range(first, first + count)) or _one_number(tensor):
            return tensor.narrow(self.axis, first if count else 0, count)
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
    if module.endswith("norm") or (out and leaf == "bias"):
        return None
    axis = 0 if out or leaf == "bias" else 1
    if part.startswith("mlp"):
        kept = layer.neurons or ()
        return Slice(axis, _either(part == "mlp.first.", kept, dims.intermediate, 1))
    width = dims.head_dim * (dims.heads // dims.kv_heads if module in ("query", "output") else 1)
    kept = tuple(range(dims.kv_heads)) if layer.groups is None else layer.groups
    return Slice(axis, _either(part == "seen.", kept, dims.kv_heads, width))


class WholeNumbers(NamedTuple):
    """How a matrix is stored in whole numbers; see `compressor.decoder.quantization`.

    Attributes:
        kind: `int8` or `int4`.
        block: how many numbers of a column have a scale together.
        scales: dtype of the scales, to which the matrix is rounded first.
    """

    kind: str
    block: int
    scales: str


@dataclass(frozen=True)
class StoredWeight:
    """A decoder's parameter as files hold it.

    Attributes:
        source: tensor of the original that it comes from, named as in `source_of`.
        transposed: whether the original has it the other way round.
        part: of the source, in the parameter's layout; None: all of it.
        dtype: of the stored numbers, such as `float16`, or `int4`.
        whole: as which whole numbers the parameter is stored; None: as floats.
    """

    source: str
    transposed: bool
    part: Slice | None
    dtype: str
    whole: WholeNumbers | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """Return the parameter from its source tensor; see `Slice.of`."""
        turned = tensor.T if self.transposed else tensor
        return turned if self.part is None else self.part.of(turned)


def stored_weights(decoder: Decoder | Stage) -> dict[str, StoredWeight]:
    """Return what is known of each parameter of a decoder, or of a stage of one, by its name."""
    found = {}
    for name, parameter in decoder.named_parameters():
        own, dtype = name.removeprefix("decoder."), str(parameter.dtype).removeprefix("torch.")
        found[name] = StoredWeight(*source_of(own), slice_of(own, decoder.plan), dtype)
    return found


def original_tensors(decoder: Decoder) -> dict[str, Tensor]:
    """Return a decoder's source tensors, the parts of each joined in the order in which they are stored."""
    tensors = {name: p.detach() for name, p in decoder.named_parameters()}
    found = {}
    for source, parts in _by_source(decoder).items():
        weight = next(iter(parts.values()))
        held = [tensors[name] for name in parts]
        whole = held[0] if weight.part is None or len(held) == 1 else _whole(held, weight.part.axis)
        found[source] = whole.T if weight.transposed else whole
    return found


def _whole(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Return tensors joined along an axis; where all are one number each, without memory for the whole."""
    if not all(map(_one_number, parts)):
        return torch.cat([*parts], axis)
    first = parts[0]
    shape = [*first.shape]
    shape[axis] = sum(part.shape[axis] for part in parts)
    return first.as_strided(shape, first.stride())


def _one_number(tensor: Tensor) -> bool:
    """Return whether all places of a tensor are the same in memory, as of `compressor.families.stand_ins`."""
    return tensor.numel() > 1 and not any(tensor.stride())


def joined_parts(decoder: Decoder) -> dict[str, tuple[StoredWeight, ...]]:
    """Return which of a decoder's stored weights make up each parameter of its naive decoder, by its name."""
    parts = {source: tuple(found.values()) for source, found in _by_source(decoder).items()}
    with torch.device("meta"):
        names = [name for name, _ in Decoder(decoder.plan.naive()).named_parameters()]
    return {name: parts[source_of(name)[0]] for name in names}


def _by_source(decoder: Decoder) -> dict[str, dict[str, StoredWeight]]:
    """Return the parameters that make up each source: its parts, or the first that holds all of it."""
    found: dict[str, dict[str, StoredWeight]] = {}
    for name, weight in stored_weights(decoder).items():
        parts = found.setdefault(weight.source, {})
        if weight.part is not None or not parts:
            parts[name] = weight
    return found


def _either(chosen: bool, kept: Sequence[int], count: int, width: int) -> tuple[int, ...]:
    """Return the places of the kept blocks, or of the others, `width` places each."""
    inside = set(kept)
    blocks = kept if chosen else [i for i in range(count) if i not in inside]
    return tuple(place for block in blocks for place in range(block * width, (block + 1) * width))


def decoder_from(
    plan: Plan,
    tensors: Mapping[str, Tensor],
    *,
    logits: str = "last",
    scores: Mapping[int, LayerScore] = NO_SCORES,
    runs: Mapping[int, RunRule] = NO_RUNS,
) -> Decoder:
    """Build the plan's decoder on the original's tensors and their device; only scattered parts are copied.

    Args:
        plan: decides every layer.
        tensors: the original's, named as in `source_of`, linear weights [out, in].
        logits: as in `Decoder`.
        scores: as in `Decoder`.
        runs: likewise.

    Raises:
        ModelError: tensors are missing or of another shape; all are listed.
    """
    with torch.device("meta"):
        decoder = Decoder(plan, logits=logits, scores=scores, runs=runs)
    problems, filled = [], {}
    shapes = {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}
    for name, weight in stored_weights(decoder).items():
        if weight.source not in tensors:
            problems.append(f"{weight.source}: missing from the model's weights")
            continue
        filled[name] = weight.of(tensors[weight.source].detach())
        if (shape := tuple(filled[name].shape)) != shapes[name]:
            problems.append(f"{weight.source}: shape {shape}, expected {shapes[name]}")
    if problems:
        raise ModelError(problems)
    for name, tensor in filled.items():
        _put(decoder, name, nn.Parameter(tensor, requires_grad=False))
    for name, table in list(decoder.named_buffers()):
        _put(decoder, name, table.to(decoder.norm.weight.device))
    return decoder.eval()


def with_parameters(decoder: Decoder, tensors: Mapping[str, Tensor]) -> Decoder:
    """Return a decoder with other tensors for some parameters, by their names; the others are shared."""
    shared = [*decoder.parameters(), *decoder.buffers()]
    made = copy.deepcopy(decoder, {id(tensor): tensor for tensor in shared})
    for name, tensor in tensors.items():
        _put(made, name, nn.Parameter(tensor, requires_grad=False))
    return made


def _put(decoder: Decoder, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(decoder.get_submodule(owner), leaf, tensor)
