"""The unmodified model of transformers with a plan's cuts put around its layers by hooks.

It follows the definitions, not the code under test. All rows stay in one sequence, in the order of their
places: who may read whom is a mask, visual rows without a part in a head get zeros from it, and rows that
stand still are put back behind a layer. Dead rows are computed: that nobody reads them is to be shown. Visual
rows that leave at a layer run on, and nobody reads them; the attention that chooses is the model's own. So do
those that pass a layer by, which are put back behind it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan


@dataclass(frozen=True)
class SequenceRows:
    """The rows of a prompt; those that are generated behind it are text.

    Attributes:
        visual: [S] which are visual.
        grid: rows and columns of the blocks that visual rows come in, one block behind the other.
    """

    visual: NDArray[np.bool_]
    grid: tuple[int, int] | None

    def near(self, side: int, causal: bool) -> NDArray[np.bool_]:
        """Return [V, V]: which visual rows lie in the window of which."""
        assert self.grid is not None
        place, (rows, columns) = np.arange(self.visual.sum()), self.grid
        cell = place % (rows * columns)
        found = place[:, None] // (rows * columns) == place // (rows * columns)
        for axis in (cell // columns, cell % columns):
            found &= np.abs(axis[:, None] - axis) <= side // 2
        return found & (place <= place[:, None]) if causal else found


@contextmanager
def hooked(
    layers: Sequence[Any],
    plan: Plan,
    rows: SequenceRows,
    routers: Mapping[int, torch.Tensor] = MappingProxyType({}),
) -> Iterator[None]:
    """Let a model's decoder layers do what a plan says, for one prompt and what is generated behind it.

    Args:
        layers: of the model.
        plan: what they do.
        rows: of the prompt.
        routers: [outputs, D] of layers that some visual rows run alone.
    """
    with ExitStack() as stack:
        left = np.full(len(rows.visual), len(plan.layers))  # from which layer on they are gone
        read: list[torch.Tensor] = []  # by the last row of the prompt, in the layer that ran last
        if plan.keeps():  # weights of attention are given back by this implementation alone
            config = layers[0].self_attn.config
            stack.callback(setattr, config, "_attn_implementation", config._attn_implementation)
            config._attn_implementation = "eager"
        for layer, planned in zip(layers, plan.layers, strict=True):
            hooks = _Hooks(planned, plan, rows, left, read, routers.get(planned.index))
            for handle in hooks.put_around(layer):
                stack.callback(handle.remove)
        yield


class _Hooks:
    """What is done around one layer."""

    def __init__(
        self,
        layer: LayerPlan,
        plan: Plan,
        rows: SequenceRows,
        left: NDArray[np.int64],
        read: list[torch.Tensor],
        router: torch.Tensor | None,
    ) -> None:
        dims = plan.model.decoder
        self.left, self.read, self.leaves = left, read, bool(plan.keeps())
        self.layer, self.rows, self.dims = layer, rows, dims
        size = dims.heads // dims.kv_heads
        kept = range(dims.kv_heads) if layer.groups is None else layer.groups
        self.pruned = [h for h in range(dims.heads) if layer.exited or h // size not in kept]
        self.end = 0  # of the rows that ran
        self.gone = np.zeros(len(rows.visual), bool)  # visual rows that are not in this layer
        self.run, self.router = layer.run, router
        self.passed = np.zeros(len(rows.visual), bool)  # visual rows that this layer is passed by
        self.counted = 0  # rows that this layer was run by
        self.weight = torch.ones(1)  # that the router gives each row of the call

    def put_around(self, layer: Any) -> Iterator[Any]:
        yield layer.register_forward_pre_hook(self.before, with_kwargs=True)
        yield layer.register_forward_hook(self.after, with_kwargs=True)
        if self.pruned and not self.layer.exited:
            yield layer.self_attn.o_proj.register_forward_pre_hook(self.mix)
        if self.leaves:
            yield layer.self_attn.register_forward_hook(self.watch)
        if self.run is not None and self.run.by == "gamma_mod":
            yield layer.mlp.register_forward_hook(lambda *given: given[-1] * self.weight)
        if self.layer.without == "attention":
            yield layer.self_attn.register_forward_hook(self.add_nothing)
        if self.layer.without == "mlp":
            yield layer.mlp.register_forward_hook(self.add_nothing)
        if self.layer.neurons is not None:
            yield layer.mlp.down_proj.register_forward_pre_hook(self.activate)

    def here(self, count: int) -> torch.Tensor:
        """Return which of the last `count` rows are visual."""
        text = np.zeros(max(0, self.end - len(self.rows.visual)), bool)
        return torch.from_numpy(
            np.concatenate([self.rows.visual, text])[self.end - count : self.end]
        )

    def before(self, layer: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        states = args[0] if args else kwargs["hidden_states"]
        count = states.shape[1]
        self.end += count
        if self.layer.keep is not None and count > 1 and self.rows.visual.any():
            self.choose(self.layer.keep, count)
        if count > 1:  # in a prompt; steps behind it read what it left in this layer
            self.gone = self.left <= self.layer.index
        if self.run is not None:
            kwargs = self.route(layer, states, kwargs)
        if self.leaves or self.pruned or self.run or self.layer.window is not None:
            lowest = torch.finfo(states.dtype).min
            mask = torch.where(self.readable(count), 0.0, lowest).to(states.dtype)
            kwargs = {**kwargs, "attention_mask": mask[None]}
        return args, kwargs

    def choose(self, kept: Any, count: int) -> None:
        """Let those visual rows of a call's `count` leave that its last row reads least."""
        places = np.flatnonzero(self.rows.visual & (self.left > self.layer.index))
        places = places[(places >= self.end - count) & (places < self.end)]
        weights = self.read[-1][0, :, -1].mean(0).numpy()[places]
        stay = math.ceil(len(places) * kept.count / kept.of)
        self.left[places[np.argsort(-weights, kind="stable")[stay:]]] = self.layer.index

    def route(self, layer: Any, states: torch.Tensor, kwargs: Any) -> Any:
        """Choose the visual rows of a prompt that run the layer; where asked, give rows new positions."""
        assert self.router is not None
        assert self.run is not None
        anew, count = self.run.by == "gamma_mod", states.shape[1]
        if anew:
            numbers = layer.input_layernorm(states) @ self.router.T
            self.weight = torch.softmax(numbers, dim=-1)[..., 1:]
        else:
            self.weight = states @ self.router.T
        runs = torch.ones(count, dtype=torch.bool)
        if count > 1:
            there = np.flatnonzero(self.rows.visual & (self.left > self.layer.index))
            size = self.run.of if self.run.within == "tile" else max(1, len(there))
            for rivals in (there[i : i + size] for i in range(0, len(there), size)):
                order = rivals[np.argsort(-self.weight[0, rivals, 0].numpy(), kind="stable")]
                stay = math.ceil(len(rivals) * self.run.count / self.run.of)
                self.passed[order[stay:]] = True
            self.gone = (self.left <= self.layer.index) | self.passed
            runs[torch.from_numpy(self.gone)] = False
        before, self.counted = self.counted, self.counted + int(runs.sum())
        if not anew:
            return kwargs
        angle = (before + runs.cumsum(0) - 1)[:, None] * torch.tensor(self.dims.rope_inv_freq)
        angle = torch.cat([angle, angle], dim=1)
        old = kwargs["position_embeddings"]
        pairs = zip((angle.cos(), angle.sin()), old, strict=True)
        return {**kwargs, "position_embeddings": tuple(x.expand_as(y) for x, y in pairs)}

    def watch(self, _: Any, __: Any, output: Any) -> None:
        self.read[:] = [output[1]]

    def add_nothing(self, _: Any, __: Any, output: Any) -> Any:
        """Let an operator add nothing to visual rows."""
        made = output[0] if isinstance(output, tuple) else output
        kept = torch.where(self.here(made.shape[1])[:, None], torch.zeros_like(made), made)
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    def readable(self, count: int) -> torch.Tensor:
        """Return [H, count, rows so far]: who may read whom."""
        found = torch.ones(count, self.end).tril(self.end - count).bool()
        columns = self.here(self.end)
        if self.layer.window is not None and count > 1:
            near = self.rows.near(self.layer.window, self.layer.window_causal)
            found[columns[:, None] & columns] = torch.from_numpy(near).flatten()
        gone = np.zeros(self.end, bool)
        gone[: len(self.gone)] = self.gone[: self.end]
        found[:, torch.from_numpy(gone)] &= torch.eye(self.end).bool()[
            -count:, torch.from_numpy(gone)
        ]
        heads = found.repeat(self.dims.heads, 1, 1)
        heads[self.pruned] &= ~columns
        return heads

    def mix(self, _: Any, args: Any) -> Any:
        mixed = args[0].clone()
        width = self.dims.head_dim
        visual = self.here(mixed.shape[1])
        for head in self.pruned:
            mixed[:, visual, head * width : (head + 1) * width] = 0.0
        return (mixed,)

    def activate(self, _: Any, args: Any) -> Any:
        active, visual = args[0].clone(), self.here(args[0].shape[1])
        idle = torch.ones(active.shape[-1], dtype=torch.bool)
        idle[list(self.layer.neurons or ())] = False
        active[:, visual[:, None] & idle] = 0.0
        return (active,)

    def after(self, _: Any, args: Any, kwargs: Any, output: Any) -> Any:
        frozen = self.layer.visual == "frozen" and self.layer.reason != "dead"
        if not frozen and self.run is None:
            return output
        states = args[0] if args else kwargs["hidden_states"]
        made = output[0] if isinstance(output, tuple) else output
        if not frozen:
            kept = self.mixed(states, made)
            return (kept, *output[1:]) if isinstance(output, tuple) else kept
        kept = torch.where(self.here(made.shape[1])[:, None], states, made)
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    def mixed(self, states: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        """Return what becomes of a layer's rows of which some run it."""
        visual = self.here(states.shape[1])
        passed = torch.zeros_like(visual)
        if states.shape[1] > 1:
            passed = torch.from_numpy(self.passed)
        assert self.run is not None
        if self.run.by != "gamma_mod":
            made = torch.where(visual[:, None], states + self.weight * (made - states), made)
        return torch.where(passed[:, None], states, made)
