"""Parts of a layer with cuts: some of its heads, an MLP of which visual rows use a part.

Letters as in `compressor.decoder.layer`.
"""

from torch import Tensor, nn

from compressor.decoder.layer import MLP, Heads
from compressor.decoder.layers.near import Window
from compressor.decoder.places import Call
from compressor.facts import DecoderDims
from compressor.plan.layer import LayerPlan


class HeadGroup(Heads):
    """Some heads of a layer with their parts of the projections; the output's bias is the layer's.

    Args:
        dims: of the decoder.
        groups: how many key/value heads; their query heads come with them.
    """

    def __init__(self, dims: DecoderDims, groups: int) -> None:
        super().__init__()
        self.project(dims, groups, output_bias=False)


class NarrowMLP(nn.Module):
    """An MLP whose first neurons serve all rows, the others text rows alone."""

    def __init__(self, dims: DecoderDims, narrow: int) -> None:
        super().__init__()
        self.first = MLP(dims, narrow)
        self.rest = MLP(dims, dims.intermediate - narrow, down_bias=False)

    def forward(
        self, states: Tensor, normed: Tensor, visual: int, call: Call
    ) -> tuple[Tensor, Tensor]:
        """Update states [B, V + T, D], `visual` of them V; return visual rows and text rows."""
        sizes = [visual, states.shape[1] - visual]
        of_visual, of_text = (states + call.all.scaled(self.first(normed))).split(sizes, dim=1)
        return of_visual, of_text + call.text.scaled(self.rest(normed.narrow(1, *sizes)))

    def text_only(self, text: Tensor) -> Tensor:
        """Map normed text rows [B, T, D] to their updates."""
        return self.first(text) + self.rest(text)


class WideMLP(MLP):
    """The whole MLP for both kinds of rows, with the calls of `NarrowMLP`."""

    def forward(  # type: ignore[override]
        self, states: Tensor, normed: Tensor, visual: int, call: Call
    ) -> tuple[Tensor, Tensor]:
        """See `NarrowMLP.forward`."""
        rows = states + call.all.scaled(super().forward(normed))
        of_visual, of_text = rows.split([visual, rows.shape[1] - visual], dim=1)
        return of_visual, of_text

    def text_only(self, text: Tensor) -> Tensor:
        """See `NarrowMLP.text_only`."""
        return super().forward(text)


def mlp_of(dims: DecoderDims, plan: LayerPlan) -> NarrowMLP | WideMLP:
    """Return a layer's MLP: in two parts where visual rows use some neurons only."""
    return WideMLP(dims) if plan.neurons is None else NarrowMLP(dims, len(plan.neurons))


def window_of(plan: LayerPlan, grid: tuple[int, int] | None) -> Window | None:
    """Return a layer's window on a grid of visual tokens, if it has one."""
    if plan.window is None or grid is None:
        return None
    return Window(grid, plan.window, causal=plan.window_causal)
