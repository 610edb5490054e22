"""The unmodified model of transformers with a plan's cuts put around its layers by hooks.

It follows the definitions, not the code under test. All rows stay in one sequence, in the order of their
places: who may read whom is a mask, visual rows without a part in a head get zeros from it, and rows that
stand still are put back behind a layer. Dead rows are computed: that nobody reads them is to be shown.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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
def hooked(layers: Sequence[Any], plan: Plan, rows: SequenceRows) -> Iterator[None]:
    """Let a model's decoder layers do what a plan says, for one prompt and what is generated behind it."""
    with ExitStack() as stack:
        for layer, planned in zip(layers, plan.layers, strict=True):
            for handle in _Hooks(planned, plan, rows).put_around(layer):
                stack.callback(handle.remove)
        yield


class _Hooks:
    """What is done around one layer."""

    def __init__(self, layer: LayerPlan, plan: Plan, rows: SequenceRows) -> None:
        dims = plan.model.decoder
        self.layer, self.rows, self.dims = layer, rows, dims
        size = dims.heads // dims.kv_heads
        kept = range(dims.kv_heads) if layer.groups is None else layer.groups
        self.pruned = [h for h in range(dims.heads) if layer.exited or h // size not in kept]
        self.end = 0  # of the rows that ran

    def put_around(self, layer: Any) -> Iterator[Any]:
        yield layer.register_forward_pre_hook(self.before, with_kwargs=True)
        yield layer.register_forward_hook(self.after, with_kwargs=True)
        if self.pruned and not self.layer.exited:
            yield layer.self_attn.o_proj.register_forward_pre_hook(self.mix)
        if self.layer.neurons is not None:
            yield layer.mlp.down_proj.register_forward_pre_hook(self.activate)

    def here(self, count: int) -> torch.Tensor:
        """Return which of the last `count` rows are visual."""
        text = np.zeros(max(0, self.end - len(self.rows.visual)), bool)
        return torch.from_numpy(
            np.concatenate([self.rows.visual, text])[self.end - count : self.end]
        )

    def before(self, _: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        states = args[0] if args else kwargs["hidden_states"]
        count = states.shape[1]
        self.end += count
        if self.pruned or self.layer.window is not None:
            lowest = torch.finfo(states.dtype).min
            mask = torch.where(self.readable(count), 0.0, lowest).to(states.dtype)
            kwargs = {**kwargs, "attention_mask": mask[None]}
        return args, kwargs

    def readable(self, count: int) -> torch.Tensor:
        """Return [H, count, rows so far]: who may read whom."""
        found = torch.ones(count, self.end).tril(self.end - count).bool()
        columns = self.here(self.end)
        if self.layer.window is not None and count > 1:
            near = self.rows.near(self.layer.window, self.layer.window_causal)
            found[columns[:, None] & columns] = torch.from_numpy(near).flatten()
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
        if self.layer.visual != "frozen" or self.layer.reason == "dead":
            return output
        states = args[0] if args else kwargs["hidden_states"]
        made = output[0] if isinstance(output, tuple) else output
        kept = torch.where(self.here(made.shape[1])[:, None], states, made)
        return (kept, *output[1:]) if isinstance(output, tuple) else kept
