"""Heals a compressed decoder: some of its weights are trained until it says what the original says.

Sources: "Distilling the Knowledge in a Neural Network" (Hinton et al., 2015), of a model into itself; "LoRA:
Low-Rank Adaptation of Large Language Models" (Hu et al., 2022).

Rule, of a source tensor W [out, in], that is of the original's own layout, however the plan parts it:

    W' = (W + B A) diag(s)

A [r, in] starts at random and B [out, r] at 0, so that nothing has changed at the start; s is 1 but for the
neurons that visual rows have in a layer where they have some alone. Gains of norms are trained as they are.
The parts of W that the compressed decoder stores are taken of W', in a training as in an export: what is
exported is what was trained, and no graph has a node more.

No library adds the updates: those that are well kept put modules around `nn.Linear`, and here one source
may be stored in several parameters, which have one update together.

Limitations:
- Weights that are trained are in memory a second time, and in an artifact beside the original's.
- Embeddings, head, biases, gates, routers and the vision side stay as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from compressor.compressed import CompressedModel
from compressor.contract.healing import LORA_A, LORA_B, SCALE, HealTraining, source_of_change
from compressor.decoder.quantization import MATRICES
from compressor.decoder.weights import (
    LAYER_SOURCES,
    StoredWeight,
    stored_weights,
    with_parameters,
)
from compressor.errors import PlanError
from compressor.plan.plan import Plan
from compressor.training.checkpoint import DistilTask
from compressor.training.distillation import Learned

_DOWN = f"{LAYER_SOURCES['mlp.down']}.weight"
_MATRICES = tuple(f".{LAYER_SOURCES[name]}.weight" for name in MATRICES)


class HealTask(DistilTask):
    """What decides how healed weights come out."""

    words: ClassVar[Mapping[str, str]] = {**DistilTask.words, "plan": "another plan"}

    train: HealTraining


class Healing:
    """The weights of a compressed model that a healing trains.

    Args:
        small: the compressed model.
        tensors: what its decoder was filled from, by source.
        train: what is trained.
    """

    def __init__(
        self, small: CompressedModel, tensors: Mapping[str, Tensor], train: HealTraining
    ) -> None:
        self.plan, self.tensors = small.plan, tensors
        self.weights = stored_weights(small.decoder)
        made = _fresh(
            self.plan, {w.source: tensors[w.source] for w in self.weights.values()}, train
        )
        self.learned = {name: Learned(nn.Parameter(tensor), False) for name, tensor in made.items()}

    @property
    def counts(self) -> dict[str, int]:
        """How many tensors of the original change, by what of `Healable` they are."""
        endings = {"norms": "norm.weight", "neurons_scale": SCALE, "lora": LORA_B}
        found = {kind: sum(n.endswith(end) for n in self.learned) for kind, end in endings.items()}
        return {kind: count for kind, count in found.items() if count}

    def parameters(self) -> dict[str, Tensor]:
        """Return what stands in for parameters of the decoder, by their names, as the weights now are."""
        changes = {name: one.parameter for name, one in self.learned.items()}
        return _parameters(self.weights, healed_sources(changes, self.tensors, self.plan))


def heal(
    small: CompressedModel, tensors: Mapping[str, Tensor], changes: Mapping[str, Tensor]
) -> CompressedModel:
    """Return a compressed model with healed weights; the original's stay for what is made of the original.

    Args:
        small: the compressed model, of the original's weights.
        tensors: what its decoder was filled from, by source.
        changes: those of `compressor.contract.healing`.

    Raises:
        PlanError: changes are of tensors that the model does not have, or of other shapes.
    """
    if misfits := _misfits(changes, tensors, small.plan):
        lines = (f"healed weights: {name} does not fit the model; heal it anew" for name in misfits)
        raise PlanError(lines)
    made = _parameters(stored_weights(small.decoder), healed_sources(changes, tensors, small.plan))
    return replace(small, decoder=with_parameters(small.decoder, made), unhealed=small.decoder)


def _misfits(changes: Mapping[str, Tensor], tensors: Mapping[str, Tensor], plan: Plan) -> list[str]:
    """Return the names of changes that are none of the model's tensors, or of another shape."""
    found = []
    for name, change in changes.items():
        source = source_of_change(name)
        whole = tensors.get(source)
        rank = changes[source + LORA_B].shape[-1] if source + LORA_B in changes else 0
        if whole is None:
            wanted: tuple[int, ...] | None = None
        elif name.endswith(LORA_A):
            wanted = (rank, whole.shape[1])
        elif name.endswith(LORA_B):
            wanted = (whole.shape[0], rank)
        elif name.endswith(SCALE):
            wanted = _width_of(source, plan)
        else:
            wanted = tuple(whole.shape)
        if tuple(change.shape) != wanted:
            found.append(name)
    return found


def _width_of(source: str, plan: Plan) -> tuple[int] | None:
    """Return how many neurons a layer has factors of; None: none."""
    layer = plan.layers[int(source.split(".")[1])] if source.endswith(_DOWN) else None
    return None if layer is None or layer.neurons is None else (len(layer.neurons),)


def healed_sources(
    changes: Mapping[str, Tensor], tensors: Mapping[str, Tensor], plan: Plan
) -> dict[str, Tensor]:
    """Return the source tensors that are changed, as they are then; see the module.

    Args:
        changes: those of `compressor.contract.healing`.
        tensors: the original's, float32, by source.
        plan: says which neurons a factor is of.
    """
    found = {}
    for source in dict.fromkeys(map(source_of_change, changes)):
        whole = changes[source] if source in changes else tensors[source].detach()
        if source + LORA_B in changes:
            whole = whole + changes[source + LORA_B] @ changes[source + LORA_A]
        if source + SCALE in changes:
            whole = whole * _factors(changes[source + SCALE], source, plan)
        found[source] = whole
    return found


def _factors(scale: Tensor, source: str, plan: Plan) -> Tensor:
    """Return the factors [M] of all neurons of a layer."""
    layer = plan.layers[int(source.split(".")[1])]
    places = torch.tensor(layer.neurons, device=scale.device)
    return scale.new_ones(plan.model.decoder.intermediate).scatter(0, places, scale)


def _parameters(
    weights: Mapping[str, StoredWeight], sources: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    return {
        name: weight.of(sources[weight.source])
        for name, weight in weights.items()
        if weight.source in sources
    }


def _fresh(plan: Plan, sources: Mapping[str, Tensor], train: HealTraining) -> dict[str, Tensor]:
    """Return changes that change nothing yet, by their names."""
    drawn, made = torch.Generator().manual_seed(train.seed), {}
    for source, tensor in sources.items():
        if "norms" in train.learn and source.endswith("norm.weight"):
            made[source] = tensor.detach().clone()
        if "lora" in train.learn and source.endswith(_MATRICES):
            out, width = tensor.shape
            first = torch.randn(train.rank, width, generator=drawn) * width**-0.5
            made[source + LORA_A] = first.to(tensor)
            made[source + LORA_B] = tensor.new_zeros(out, train.rank)
        if "neurons_scale" in train.learn and source.endswith(_DOWN):
            neurons: Sequence[int] | None = plan.layers[int(source.split(".")[1])].neurons
            if neurons is not None:
                made[source + SCALE] = tensor.new_ones(len(neurons))
    return made
