"""Layers that some visual rows run and the others pass by: k of every n, chosen by a router.

Letters as in `compressor.decoder.layer`; K visual rows that run, N of a tile, n of them each tile's.

Those that pass by have no query, key and value in the layer. The causal mask keeps the order of places.
In a training (`nn.Module.train`) such a layer computes the same, and the choice has a gradient, by which a
row's weight rises where its running would gain something (straight-through; Bengio et al., 2013). What a row
would add is taken for what it adds where all run.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from compressor.contract.choice import RunRule, highest_places, rows_at, rows_back
from compressor.decoder.cache import NO_PAST, Buffer, KeyValue
from compressor.decoder.layer import DecoderLayer, Linear, RMSNorm
from compressor.decoder.layers.cut_layer import CutLayer
from compressor.decoder.leaving import heads_with_visual
from compressor.decoder.places import Call, Rotary
from compressor.facts import DecoderDims
from compressor.plan.layer import LayerPlan

if TYPE_CHECKING:
    from compressor.plan.kept import Running


LEAST_SPREAD = 1e-6
"""Of weights, where all are equal."""


class SomeRun(nn.Module):
    """What is common to such layers; stands in front of the kind of layer that it is."""

    router: Linear
    input_norm: RMSNorm
    frozen: bool

    def route(self, dims: DecoderDims, plan: LayerPlan, rule: RunRule, rotary: Rotary) -> None:
        """Make the router.

        Args:
            dims: of the decoder.
            plan: of the layer.
            rule: chooses, and says what becomes of the rows.
            rotary: of the decoder.
        """
        self.some, self.rule, self.rotary = cast("Running", plan.run), rule, rotary
        self.router = Linear(dims.hidden, self.some.outputs, bias=False)

    def weights(self, rows: Tensor) -> Tensor:
        """Return the weights [B, rows] of rows [B, rows, D]."""
        read = self.input_norm(rows) if self.rule.normed else rows
        return self.rule.weigh(self.router(read))

    def chosen(self, weights: Tensor) -> Tensor:
        """Return which visual rows run [B, K], ascending, by their weights [B, V]."""
        batch, visual = weights.shape
        if self.some.within == "call":
            return highest_places(weights, self.some.rows(visual))
        tiles, of = visual // self.some.of, self.some.of
        best = weights.reshape(batch, tiles, of).topk(self.some.count, dim=2).indices
        first = torch.arange(tiles, device=weights.device)[:, None] * of
        return (best.sort(dim=2).values + first).flatten(1)

    def run_some(
        self,
        layer: Callable[..., tuple[Any, ...]],
        visual: Tensor,
        text: Tensor,
        call: Call,
        pasts: Sequence[KeyValue | Buffer],
    ) -> tuple[Any, ...]:
        """Run a layer, see `DecoderLayer.forward`; visual rows that pass by come back as they were."""
        every, entered = self.weights(visual), text
        places = self.chosen(every)  # [B, K]
        taken, weights = rows_at(visual, places), rows_at(every, places)[..., None]
        own = self._call(call, places, text.shape[1], pasts)
        if self.rule.scales == "mlp":
            of_text = self.weights(text)[..., None]
            of_all = torch.cat([weights, of_text], dim=1)
            rows, text_rows = own.all._replace(scale=of_all), own.text._replace(scale=of_text)
            own = own._replace(all=rows, text=text_rows)
        made, text, *present = layer(taken, text, own, *pasts)
        if self.rule.scales == "update":
            made = taken + weights * (made - taken)
        # Frozen rows have keys there, and stay what they are.
        if self.frozen:
            return visual, text, *present
        passed = rows_back(visual, places, made)
        if self.training:
            with torch.no_grad():
                all_ran, *_ = layer(visual, entered, call, *pasts)
            passed = passed + self.choice_gradient(every)[..., None] * (all_ran - visual)
        return passed, text, *present

    def choice_gradient(self, weights: Tensor) -> Tensor:
        """Return zeros [B, V] whose gradient is that of which rows run (a straight-through estimator).

        It is the gradient of a soft choice, sigmoid((w - t) / s): t is the least weight of those that run, s
        the standard deviation of all that compete.

        Args:
            weights: [B, V].
        """
        batch, visual = weights.shape
        if not visual:
            return weights
        of_tiles = self.some.within == "tile"
        groups = weights.reshape(batch, visual // self.some.of if of_tiles else 1, -1)
        count = self.some.count if of_tiles else self.some.rows(visual)
        fixed = groups.detach()
        least = fixed.topk(count, dim=2).values[..., -1:]
        spread = fixed.std(dim=2, keepdim=True, correction=0) + LEAST_SPREAD
        soft = ((groups - least) / spread).sigmoid().reshape(batch, visual)
        return soft - soft.detach()

    def _call(
        self, call: Call, places: Tensor, text: int, pasts: Sequence[KeyValue | Buffer]
    ) -> Call:
        """Return masks and rotations of the rows that run."""
        some = call.places.chosen(places, text)
        keys = NO_PAST if heads_with_visual(self) is None else pasts[0].keys()
        own = some.call(text, keys)
        rows = own.all
        if self.rule.renumbered:
            # A row sees the past, those that run in front of it, and itself.
            seen = rows.visible().squeeze(1).sum(dim=2) - 1  # [B, K + T]
            cos, sin = self.rotary.counted(seen, rows.cos.dtype)
            rows = rows._replace(cos=cos, sin=sin)
        cos, sin = (part.narrow(1, places.shape[1], text) for part in (rows.cos, rows.sin))
        # Caches of text alone lie as in every layer.
        of_text, alone = (part._replace(cos=cos, sin=sin) for part in (own.text, call.alone))
        return own._replace(all=rows, text=of_text, alone=alone)


class SomeRunLayer(SomeRun, DecoderLayer):
    """A layer without cuts that some visual rows run."""

    def __init__(self, dims: DecoderDims, plan: LayerPlan, rule: RunRule, rotary: Rotary) -> None:
        DecoderLayer.__init__(self, dims, plan)
        self.route(dims, plan, rule, rotary)

    def forward(  # type: ignore[override]
        self, visual: Tensor, text: Tensor, call: Call, *pasts: KeyValue | Buffer
    ) -> tuple[Any, ...]:
        """See `SomeRun.run_some`."""
        return self.run_some(super().forward, visual, text, call, pasts)


class SomeRunCutLayer(SomeRun, CutLayer):
    """A layer with cuts that some visual rows run."""

    def __init__(self, dims: DecoderDims, plan: LayerPlan, rule: RunRule, rotary: Rotary) -> None:
        CutLayer.__init__(self, dims, plan, None)
        self.route(dims, plan, rule, rotary)

    def forward(
        self, visual: Tensor, text: Tensor, call: Call, *pasts: KeyValue | Buffer
    ) -> tuple[Any, ...]:
        """See `SomeRun.run_some`."""
        return self.run_some(super().forward, visual, text, call, pasts)
