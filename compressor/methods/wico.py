"""WiCo: a trained projector makes one visual token of each window of two by two patches.

Source: "Window Token Concatenation for Efficient Visual Large Language Models" (WiCo, 2025); the rule is that
of the released code, whose answers `tests/golden/wico` holds. No trained weights were published.

Rule: of a tile's H x W patches, x are the tower's states three from the end (`hidden_states[-3]`), without
the class token. They pass one layer like the tower's, with weights of its own, in which all patches read all.
The grid is cut into windows of 2 x 2 without overlap, and each becomes one vector, channel first: index
4 c + 2 dy + dx. A Linear makes a visual token of it: H/2 x W/2 of a tile, row by row.

Where a visual token is a block of r x r patches (pixel shuffle), a window is one of 2 x 2 tokens, so of
2r x 2r patches, and the Linear takes all of them, channel first too: index (c * 2r + dy) * 2r + dx. A tile's
tokens become a quarter as ever, and at r = 1 that is the released rule. The paper has no such tower: this is
ours. The layer is CLIP's whatever the tower's own is (no layer scales, which may go into its weights), with
as many heads, the activation and the norms' epsilon of the tower.

Tokens are numbered anew: the released code writes a prompt of so many image tokens, so a picture takes
H/2 x W/2 places, and text behind it moves up. What is told of a token's place in the picture (`kept`) is the
first patch of its window.

Weights: a safetensors file with the names of the released code, `model.mm_projector.self_att.0.*` and
`model.mm_projector.window_proj.*`; other tensors in it (`patch_proj`) are not read. Their digest stands in
the plan, and they in the vision graph.

Limitations:
- The projector belongs to a decoder that was trained with it, and to a tower whose last layers were: give a
  model folder that has these. Compression loss compares with that model and its own projector, which is
  another model, not the same one with fewer tokens.
- Without weights there is nothing to run: `pool` with keep: 0.25 makes means of the same windows.
- Limits on the length of a prompt that are checked before weights are read count all image tokens.
- Needs a tower whose patches, or square blocks of them, become visual tokens, on a grid of even sides.
"""

import math
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.contract.choice import Front, FrontChoice, FrontRule
from compressor.contract.front import FrontChooser, why_no_tower
from compressor.contract.least_squares import evenly, linear_map
from compressor.contract.method import CannotError, Evidence, MethodWords
from compressor.disk.learned_file import LearnedFile
from compressor.errors import PlanError
from compressor.facts import ModelFacts
from compressor.plan.edits import keep_in_front, numbered_anew
from compressor.plan.plan import Plan
from compressor.schema.values import WeightsPath

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

STATE = -3
"""Of the tower's hidden states."""
SIDE = 2
"""Of a window, in visual tokens."""
LAYER = "self_att.0."
LINEAR = "window_proj."
NAMES = "model.mm_projector."
PREFIX = rf"(?:model\.)?mm_projector\.(?={LAYER}|{LINEAR})"
WITHOUT = (
    "without trained weights use pool with keep: 0.25, which makes means of the same windows, or train some "
    "with `vtcompress train-parts`"
)
WINDOWS_A_TILE = 32
"""Of the first picture of each prompt, from which the Linear starts."""


def windows(rows: "Tensor", grid: tuple[int, int], side: int) -> "Tensor":
    """Return rows [I, H * W, C] as windows [I, H/s * W/s, s s C], channel first.

    Args:
        rows: patches, row by row.
        grid: H and W.
        side: s, of a window, in patches.
    """
    high, wide = (along // side for along in grid)
    cells = rows.unflatten(1, (high, side, wide, side))  # [I, H/s, dy, W/s, dx, C]
    found: Tensor = cells.permute(0, 1, 3, 5, 2, 4).flatten(3).flatten(1, 2)
    return found


def patches_along(facts: ModelFacts) -> int:
    """Return r, the side of the block of patches that a visual token of the model is."""
    return 1 if facts.tower is None else math.isqrt(facts.tower.patches)


def wanted_shapes(width: int, inner: int, hidden: int, patches: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights.

    Args:
        width: C, of the tower.
        inner: of the layer's MLP.
        hidden: D, of the decoder.
        patches: of a window.
    """
    sizes = {
        **{f"{LAYER}self_attn.{x}_proj": (width, width) for x in ("q", "k", "v", "out")},
        f"{LAYER}mlp.fc1": (inner, width),
        f"{LAYER}mlp.fc2": (width, inner),
        f"{LINEAR.removesuffix('.')}": (hidden, patches * width),
    }
    found: dict[str, tuple[int, ...]] = {}
    for name, size in sizes.items():
        found |= {f"{name}.weight": size, f"{name}.bias": size[:1]}
    for norm in ("layer_norm1", "layer_norm2"):
        found |= {f"{LAYER}{norm}.{kind}": (width,) for kind in ("weight", "bias")}
    return found


def read_weights(path: Any) -> LearnedFile:
    """Return what a file of a projector's weights holds.

    Raises:
        PlanError: as `LearnedFile.read`.
    """
    return LearnedFile.read(path, PREFIX)


class WiCo(FrontChooser):
    """A trained projector makes one visual token of each window of two by two patches (WiCo).

    Attributes:
        weights: safetensors file of the projector, with the names of the released code; None: not told, as in
            a plan, which has the file's digest.
    """

    name: ClassVar[str] = "wico"
    words: ClassVar[MethodWords] = MethodWords(
        label="WiCo",
        paper="WiCo: Window Token Concatenation for Efficient Visual Large Language Models, arXiv 2504.04024",
        front_how=", each made of a window of 2 x 2 of them",
        front_undrawn="Each visual token that goes on is made of a window of the picture's cells, and every "
        "cell is in a window.",
    )
    by_grid: ClassVar[tuple[str, ...]] = ("weights",)
    learns: ClassVar[str] = "weights"
    learned_prefix: ClassVar[str] = NAMES

    weights: WeightsPath | None = None

    def unfit(self, facts: ModelFacts, where: str) -> list[str]:
        """Return also that patches have no windows."""
        if found := super().unfit(facts, where):
            return found
        reason = why_no_tower(facts, layers_read=STATE)
        if reason is None and any(side % SIDE for side in facts.token_grid or ()):
            rows, columns = facts.token_grid or (0, 0)
            reason = f"a grid of {rows} x {columns} visual tokens has no windows of {SIDE} x {SIDE}"
        return [] if reason is None else [f"{where}: {reason}; leave {self.name} out"]

    def problems(self, facts: ModelFacts, evidence: Evidence) -> list[str]:
        """Return also that the weights are missing or do not fit."""
        if found := super().problems(facts, evidence):
            return found
        place = f"{evidence.where}.weights"
        if self.weights is None:
            return [
                f"{place}: none are given; name the safetensors file of a trained projector; {WITHOUT}"
            ]
        try:
            file = evidence.files.read(read_weights, self.weights)
        except PlanError as error:
            return [f"{place}: {line}; {WITHOUT}" for line in error.problems]
        width = facts.tower.width if facts.tower is not None else 0
        inner = file.shapes.get(f"{LAYER}mlp.fc1.weight", (1,))[0]
        patches = (SIDE * patches_along(facts)) ** 2
        wanted = wanted_shapes(width, inner, facts.decoder.hidden, patches)
        return [f"{place}: {line}" for line in file.misfits(wanted)]

    def learned_shapes(self, facts: ModelFacts) -> "Mapping[str, tuple[int, ...]]":
        """Return the shapes of all weights; the layer's MLP is four times as wide as its rows."""
        width = facts.tower.width if facts.tower is not None else 0
        patches = (SIDE * patches_along(facts)) ** 2
        return wanted_shapes(width, 4 * width, facts.decoder.hidden, patches)

    def learned_start(
        self, passes: "Iterable[Any]", shapes: "Mapping[str, tuple[int, ...]]", seed: int
    ) -> "Mapping[str, Tensor]":
        """Return a layer that changes nothing yet, and the Linear that is nearest to the windows' means."""
        import torch

        drawn = torch.Generator().manual_seed(seed)
        found: dict[str, Tensor] = {}
        for name, shape in shapes.items():
            if len(shape) == 1:
                kind = torch.ones if "norm" in name and name.endswith("weight") else torch.zeros
                found[name] = kind(shape)
            elif name.startswith((f"{LAYER}self_attn.out_proj", f"{LAYER}mlp.fc2")):
                found[name] = torch.zeros(shape)  # what the layer adds
            else:
                bound = shape[1] ** -0.5
                found[name] = (torch.rand(shape, generator=drawn) * 2 - 1) * bound
        read, wanted = [], []
        for full in passes:
            front = full.fronts()[0]
            count = front.features.shape[1]
            grid = full.decoder.plan.model.token_grid or (SIDE, count // SIDE)
            cells = windows(front.features, grid, SIDE)[0]
            means = cells.unflatten(1, (-1, SIDE**2)).mean(dim=2)
            along = patches_along(full.decoder.plan.model)
            patches = (grid[0] * along, grid[1] * along)
            states = windows(front.read_tower.states(STATE), patches, SIDE * along)[0]
            read.append(evenly(states, WINDOWS_A_TILE).float().cpu())
            wanted.append(evenly(means, WINDOWS_A_TILE).float().cpu())
        x, y = torch.cat(read), torch.cat(wanted)
        matrix = linear_map(x - x.mean(dim=0), y - y.mean(dim=0))
        bias = y.mean(dim=0) - matrix @ x.mean(dim=0)
        return found | {f"{LINEAR}weight": matrix, f"{LINEAR}bias": bias}

    def rows_kept(self, facts: ModelFacts) -> int:
        """Return how many windows a tile has."""
        return facts.tile_rows // SIDE**2

    def apply(self, plan: Plan, evidence: Evidence) -> Plan:
        """Return the plan with a token of each window, in places of their own."""
        if self.weights is None:
            raise CannotError(f"{evidence.where}.weights: none are given; {WITHOUT}")
        file = evidence.files.read(read_weights, self.weights)
        count = self.rows_kept(plan.model)
        return numbered_anew(keep_in_front(plan, count, self.name, {}, file.digest))

    def front_weights(self) -> LearnedFile | None:
        """Return the file of the projector."""
        return None if self.weights is None else read_weights(self.weights)

    def front_rule(self, facts: ModelFacts) -> FrontRule:
        """Return the rule; see the module."""
        grid = facts.token_grid or (SIDE, facts.tile_rows // SIDE)
        firsts = [
            row * grid[1] + column
            for row in range(0, grid[0], SIDE)
            for column in range(0, grid[1], SIDE)
        ]
        block = patches_along(facts)
        patches = grid[0] * block, grid[1] * block

        def rule(rows: Front, count: int) -> FrontChoice:  # noqa: ARG001 - the windows tell it
            import torch

            tower = rows.read_tower
            mixed = tower.layer_of(_below(LAYER, rows.weights), tower.states(STATE))
            linear = _below(LINEAR, rows.weights)
            made = torch.nn.functional.linear(
                windows(mixed, patches, SIDE * block), linear["weight"], linear["bias"]
            )
            kept = torch.tensor([firsts], device=made.device)
            return FrontChoice(made, kept.expand(made.shape[0], -1))

        return rule


def _below(prefix: str, weights: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
