"""Train the small LLaVA of this folder from nothing, on two processor cores.

    torchrun --nproc-per-node 2 train.py --mnist FOLDER --work FOLDER

The schedule runs on the clock, as shares of ``--minutes``:

1. the vision tower alone learns which digit the cell of each visual token holds;
2. the whole model answers questions about pictures of 1 to 2 digits, then 4, and so on to 11, a
   step after each evaluation that goes well enough;
3. all pictures hold 3 to 11 digits; the kinds of question that still go wrong in validation are
   asked more often, and the learning rate falls to zero at the end.

Each process renders its own pictures and the gradients are averaged. Every evaluation writes a
checkpoint to the work folder, from which the same command goes on, and adds a line to
``training-log.jsonl``; the best weights so far are written to ``model/model.safetensors``.
Validation pictures are made of 5,000 digits of the MNIST training split kept apart from training;
the held-out questions are not looked at.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from digits import KINDS, MAX_DIGITS, MIN_DIGITS, DigitPool, load_pool
from fast_forward import FastForward
from packing import IDS, Batch, choose_kinds, draw_pictures, pack
from prepare import build_config, write_model_folder
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

if TYPE_CHECKING:
    from transformers.models.llama.modeling_llama import LlamaAttention

HERE = Path(__file__).parent
LOG = HERE / "training-log.jsonl"
PICTURES = 16
TOWER_PICTURES = 64
VALIDATION_DIGITS = 5000
VALIDATION_BATCHES = 8
TOWER_END, GROWTH_END, DECAY_START = 0.06, 0.5, 0.5
PEAK_RATE, LAST_RATE = 1.5e-3, 1e-5
WARMUP_STEPS = 150
CELL_LOSS = 0.3
KIND_FLOOR = 0.12
GROWTH_MATCH = 0.8
MATCHING_LAYERS, MATCHING_GAIN = 6, 2.5
NAME_SHARPNESS = 10.0
CELL_WORDS = torch.tensor([IDS[word] for word in (*"0123456789", "-")])


@dataclass
class State:
    """What is not a tensor and must survive a restart."""

    step: int = 0
    seconds: float = 0.0
    best: float = -1.0
    most: int = 2
    weights: list[float] = field(default_factory=lambda: [2.0, 1.0, 1.0, 1.0, 1.0, 1.0])


class Flat:
    """All parameters as views of one vector, so that averaging and saving are one call each."""

    def __init__(self, modules: tuple[nn.Module, ...]) -> None:
        """Move the parameters of ``modules`` into one vector, matrices first."""
        parameters = [p for module in modules for p in module.parameters()]
        parameters.sort(key=lambda p: p.dim() < 2)
        total = sum(p.numel() for p in parameters)
        matrices = sum(p.numel() for p in parameters if p.dim() >= 2)
        self.values, self.grads = torch.empty(total), torch.zeros(total)
        start = 0
        for parameter in parameters:
            stop = start + parameter.numel()
            self.values[start:stop] = parameter.detach().flatten()
            parameter.data = self.values[start:stop].view_as(parameter)
            parameter.grad = self.grads[start:stop].view_as(parameter)
            start = stop
        self.parts = []
        for span in (slice(0, matrices), slice(matrices, total)):
            part = nn.Parameter(self.values[span])
            part.grad = self.grads[span]
            self.parts.append(part)
        groups = [
            {"params": [self.parts[0]], "weight_decay": 0.02},
            {"params": [self.parts[1]], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), fused=True)

    def step(self, rate: float, seconds: float) -> float:
        """Average the gradients over the processes, take a step, return the averaged clock."""
        message = torch.cat((self.grads, torch.tensor([seconds])))
        dist.all_reduce(message)
        message /= dist.get_world_size()
        self.grads.copy_(message[:-1])
        norm = self.grads.norm()
        self.grads.mul_((1.0 / (norm + 1e-6)).clamp(max=1.0))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.grads.zero_()
        return float(message[-1])

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds."""
        tensors = {"values": self.values}
        for index, part in enumerate(self.parts):
            for name, value in self.optimizer.state[part].items():
                tensors[f"{name}.{index}"] = value
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Load what ``tensors`` returned."""
        self.values.copy_(tensors.pop("values"))
        for key, value in tensors.items():
            name, index = key.split(".")
            self.optimizer.state[self.parts[int(index)]][name] = value


def initialise(model: LlavaForConditionalGeneration) -> None:
    """Draw the initial weights: normal, the outputs of residual blocks scaled down by depth."""
    depth = model.config.text_config.num_hidden_layers
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        std = 0.06
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            std /= math.sqrt(2 * depth)
        elif "embed" in name:
            std = 0.2
        elif "projector.linear_2" in name:
            std = 0.01  # visual tokens about as large as words: larger ones drown the layers
        nn.init.normal_(parameter, std=std)
    for layer in model.model.language_model.layers[:MATCHING_LAYERS]:
        match_queries_to_keys(layer.self_attn)


@torch.no_grad()
def match_queries_to_keys(attention: LlamaAttention) -> None:
    """Make every first query head of a key head attend to whatever looks like its own token.

    Its query weights become MATCHING_GAIN times the key weights, so that the product of both is
    positive on equal inputs (after Trockman and Kolter, Mimetic Initialization of Self-Attention
    Layers, 2023). Finding a digit of the question in the picture is learned much earlier so.
    """
    size, groups = attention.head_dim, attention.num_key_value_groups
    query = attention.q_proj.weight.view(-1, groups, size, attention.config.hidden_size)
    query[:, 0] = MATCHING_GAIN * attention.k_proj.weight.view(-1, size, query.shape[-1])


def learning_rate(step: int, progress: float) -> float:
    """Return the rate: warm-up, a plateau, then a straight line down."""
    left = min(1.0, (1 - progress) / (1 - DECAY_START))
    return min(1.0, (step + 1) / WARMUP_STEPS) * (LAST_RATE + (PEAK_RATE - LAST_RATE) * left)


def grown(most: int, overall: float, progress: float) -> int:
    """Return the greatest number of digits in a picture after an evaluation."""
    if progress >= GROWTH_END:
        return MAX_DIGITS
    return min(MAX_DIGITS, most + 2 * (overall >= GROWTH_MATCH))


def losses(fast: FastForward, head: nn.Linear, batch: Batch) -> Tensor:
    """Return the answer loss plus a share of two cell losses.

    The second cell loss pulls each visual token towards the input embedding of the word that names
    its cell, so that a question's digit finds the same digits in the picture early.
    """
    with torch.autocast("cpu", torch.bfloat16):
        features = fast.see(batch.pixels)
        visual = fast.project(features)
        guesses = (head(features), NAME_SHARPNESS * fast.name(visual, CELL_WORDS))
        logits = fast.answer(visual, batch)
    answer = F.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten())
    cells = batch.cells.flatten()
    named = sum(F.cross_entropy(guess.float().flatten(0, 1), cells) for guess in guesses)
    return answer + CELL_LOSS * named


def tower_loss(
    fast: FastForward, head: nn.Linear, rng: np.random.Generator, pool: DigitPool
) -> Tensor:
    """Return the cell loss of a batch of fresh pictures."""
    _, pixels, cells = draw_pictures(rng, pool, TOWER_PICTURES, 6, 14)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(fast.see(pixels))
    return F.cross_entropy(logits.float().flatten(0, 1), cells.flatten())


@torch.no_grad()
def validate(
    fast: FastForward, head: nn.Linear, pool: DigitPool, span: tuple[int, int]
) -> dict[str, float]:
    """Return the exact match per kind, and of the cell loss's head, on fixed pictures.

    An answer whose every word is the likeliest one, given the right words before it, is the answer
    greedy generation gives.
    """
    rng = np.random.default_rng(99)
    right: dict[str, list[float]] = {kind: [] for kind in (*KINDS, "cells")}
    for _ in range(VALIDATION_BATCHES):
        batch = pack(rng, pool, PICTURES, *span, KINDS * 2)
        with torch.autocast("cpu", torch.bfloat16):
            features = fast.see(batch.pixels)
            right["cells"].append((head(features).argmax(-1) == batch.cells).float().mean().item())
            hits = fast.answer(fast.project(features), batch).argmax(-1) == batch.targets  # [B, T]
        for index, kind in enumerate(batch.kinds):
            right[kind].append(hits[:, batch.segments == index].all(1).float().mean().item())
    return {kind: round(float(np.mean(values)), 4) for kind, values in right.items()}


def export(model: LlavaForConditionalGeneration) -> None:
    """Replace the weights of the model folder, in half precision, in one atomic step."""
    weights = {name: value.half().clone() for name, value in model.state_dict().items()}
    with tempfile.TemporaryDirectory(dir=HERE, prefix=".export-") as folder:
        model.save_pretrained(folder, state_dict=weights)
        fresh = Path(folder, "model.safetensors")
        fresh.chmod(0o644)
        fresh.replace(HERE / "model" / "model.safetensors")


def save(work: Path, flat: Flat, state: State) -> None:
    """Write the checkpoint of the work folder in one atomic step."""
    fresh = work / "checkpoint.new"
    save_file(flat.tensors(), fresh, {"state": json.dumps(vars(state))})
    fresh.replace(work / "checkpoint.safetensors")


def load(work: Path, flat: Flat) -> State:
    """Return the state of the checkpoint of the work folder, if there is one."""
    path = work / "checkpoint.safetensors"
    if not path.exists():
        return State()
    with safe_open(path, "pt") as file:
        flat.restore({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return State(**json.loads(file.metadata()["state"]))


def train(options: argparse.Namespace) -> None:
    """Run the recipe in this process, one of ``torchrun``'s."""
    dist.init_process_group("gloo")
    first = dist.get_rank() == 0
    torch.manual_seed(options.seed)
    config = build_config()
    config.dtype = torch.float32
    model = LlavaForConditionalGeneration(config).float()
    initialise(model)
    head = nn.Linear(config.vision_config.hidden_size, 11)
    flat = Flat((model, head))
    fast = FastForward(model)
    state = load(options.work, flat)
    known = slice(VALIDATION_DIGITS, None)
    pool = load_pool(options.mnist, "train", known, variants=options.variants)
    unseen = load_pool(options.mnist, "train", slice(VALIDATION_DIGITS))
    rng = np.random.default_rng((options.seed, state.step, dist.get_rank()))
    budget, began = options.minutes * 60, time.monotonic() - state.seconds
    evaluated, recent = state.seconds, []
    while state.seconds < budget:
        progress = state.seconds / budget
        span = (1 if state.most < MAX_DIGITS else MIN_DIGITS, state.most)
        if progress < TOWER_END:
            loss = tower_loss(fast, head, rng, pool)
        else:
            kinds = choose_kinds(rng, np.array(state.weights))
            batch = pack(rng, pool, PICTURES, *span, kinds)
            loss = losses(fast, head, batch)
        loss.backward()
        state.seconds = flat.step(learning_rate(state.step, progress), time.monotonic() - began)
        state.step += 1
        recent.append(loss.item())
        if state.seconds - evaluated < options.every * 60 and state.seconds < budget:
            continue
        evaluated = state.seconds
        found = validate(fast, head, unseen, span) if first else {}
        message = [found]
        dist.broadcast_object_list(message)
        found = message[0]
        overall = float(np.mean([found[kind] for kind in KINDS]))
        if progress >= TOWER_END:
            state.weights = [KIND_FLOOR + 1 - found[kind] for kind in KINDS]
        best = span[1] == MAX_DIGITS and overall >= state.best
        state.best = overall if best else state.best
        state.most = grown(state.most, overall, progress)
        if first:
            row = {
                "minutes": round(state.seconds / 60, 2),
                "step": state.step,
                "most_digits": span[1],
                "loss": round(float(np.mean(recent)), 4),
                "overall": round(overall, 4),
                **found,
            }
            with LOG.open("a") as log:
                log.write(json.dumps(row) + "\n")
            save(options.work, flat, state)
            if best or state.best < 0:
                export(model)
        recent = []
    dist.destroy_process_group()


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mnist", type=Path, required=True, help="folder of the *-ubyte files")
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--minutes", type=float, default=70)
    parser.add_argument("--every", type=float, default=1.25, help="minutes between evaluations")
    parser.add_argument("--variants", type=int, default=3, help="turned copies of each digit")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if int(os.environ.get("RANK", "0")) == 0:
        write_model_folder(HERE / "model")
    train(options)


if __name__ == "__main__":
    main()
