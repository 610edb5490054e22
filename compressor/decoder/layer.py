"""One decoder layer on two row groups.

Letters: B batch, V visual rows, T text rows, S = V + T, P past, D hidden, H query heads, H_kv key/value
heads, d head size, M MLP width. Weights are stored [in, out], as ONNX MatMul reads them.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.decoder.cache import Buffer, KeyValue
from compressor.decoder.ops import attend, join_heads, rotate
from compressor.decoder.places import Call, Rows
from compressor.facts import DecoderDims
from compressor.plan.layer import LayerPlan, Operator


class Linear(nn.Module):
    """y = x W + b with W [in, out]."""

    def __init__(self, width_in: int, width_out: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width_in, width_out))
        self.bias = nn.Parameter(torch.empty(width_out)) if bias else None

    def forward(self, rows: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        product = rows @ self.weight
        return product if self.bias is None else product + self.bias


class RMSNorm(nn.Module):
    """y = x / rms(x) * g."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, rows: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        return F.rms_norm(rows, self.weight.shape, self.weight, self.eps)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class MLP(nn.Module):
    """y = (act(x W_gate) * x W_up) W_down, of all neurons or of some.

    Args:
        dims: of the decoder.
        neurons: how many; None: all.
        down_bias: whether the output's bias, if the decoder has one, is added here.
    """

    def __init__(
        self, dims: DecoderDims, neurons: int | None = None, *, down_bias: bool = True
    ) -> None:
        super().__init__()
        width = dims.intermediate if neurons is None else neurons
        self.gate = Linear(dims.hidden, width, bias=dims.mlp_bias)
        self.up = Linear(dims.hidden, width, bias=dims.mlp_bias)
        self.down = Linear(width, dims.hidden, bias=dims.mlp_bias and down_bias)
        self.activation = ACTIVATIONS[dims.activation]

    def neurons(self, rows: Tensor) -> Tensor:
        """Map [..., D] to act(x W_gate) * x W_up, [..., M]."""
        return self.activation(self.gate(rows)) * self.up(rows)

    def forward(self, rows: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        return self.down(self.neurons(rows))


class Heads(nn.Module):
    """Some heads of a layer: their projections, and what these make of normed rows."""

    def project(self, dims: DecoderDims, groups: int, *, output_bias: bool) -> None:
        """Make the projections of some key/value heads; their query heads come with them."""
        self.kv_heads, self.heads = groups, groups * (dims.heads // dims.kv_heads)
        width, kv_width = self.heads * dims.head_dim, groups * dims.head_dim
        self.query = Linear(dims.hidden, width, bias=dims.qkv_bias)
        self.key = Linear(dims.hidden, kv_width, bias=dims.qkv_bias)
        self.value = Linear(dims.hidden, kv_width, bias=dims.qkv_bias)
        self.output = Linear(width, dims.hidden, bias=output_bias)
        # Over d: the same weights serve every head.
        self.query_norm, self.key_norm = (
            RMSNorm(dims.head_dim, dims.rms_norm_eps) if dims.qk_norm else nn.Identity()
            for _ in range(2)
        )

    def queries(self, normed: Tensor, rows: Rows) -> Tensor:
        """[B, rows, D] to rotated queries [B, heads, rows, d]."""
        query = self.query_norm(split_heads(self.query(normed), self.heads))
        return rotate(query, rows.cos, rows.sin)

    def keys_and_values(self, normed: Tensor, rows: Rows) -> KeyValue:
        """[B, rows, D] to rotated keys and to values [B, G, rows, d]."""
        key = self.key_norm(split_heads(self.key(normed), self.kv_heads))
        key = rotate(key, rows.cos, rows.sin)
        return KeyValue(key, split_heads(self.value(normed), self.kv_heads))

    def mixed(self, normed: Tensor, rows: Rows, present: KeyValue) -> Tensor:
        """Attend from rows [B, rows, D] to all of `present`; return [B, rows, D]."""
        query = self.queries(normed, rows)
        return self.output(join_heads(attend(query, present.key, present.value, rows.mask)))


class DecoderLayer(Heads):
    """Attention and MLP; visual rows are updated with the text rows, frozen or gone, as the plan says."""

    def __init__(self, dims: DecoderDims, plan: LayerPlan) -> None:
        super().__init__()
        self.frozen, self.exited, self.without = plan.frozen, plan.exited, plan.without
        # Weights lie in the file in the order in which they are made here.
        self.input_norm = RMSNorm(dims.hidden, dims.rms_norm_eps)
        self.project(dims, dims.kv_heads, output_bias=dims.o_bias)
        self.mlp_norm = RMSNorm(dims.hidden, dims.rms_norm_eps)
        self.mlp = MLP(dims)

    def forward(
        self,
        visual: Tensor,
        text: Tensor,
        call: Call,
        past: KeyValue | Buffer,
        without: Operator | None = None,
    ) -> tuple[Tensor, Tensor, KeyValue]:
        """Run the layer.

        Args:
            visual: [B, V, D], V may be 0; after an exit they come back unread.
            text: [B, T, D].
            call: masks and rotations of this call.
            past: keys and values of earlier calls.
            without: an operator that visual rows go without; None: as planned.

        Returns:
            Visual rows, text rows, and the keys and values of all calls, after an exit of their text rows.
        """
        if self.exited:
            text, present = self.text_only(text, call.alone, past)
            return visual, text, present
        rows = torch.cat([visual, text], dim=1)  # [B, S, D]
        normed = self.input_norm(rows)
        present = past.extended(*self.keys_and_values(normed, call.all))
        if self.frozen:
            text = self._update(text, self.input_norm(text), call.text, present)
            return visual, text, present
        sizes, without = [visual.shape[1], text.shape[1]], without or self.without
        if without == "attention":
            text = text + self.mixed(self.input_norm(text), call.text, present)
            rows = torch.cat([visual, text], dim=1)
        else:
            rows = rows + self.mixed(normed, call.all, present)
        if without == "mlp":
            visual, text = rows.split(sizes, dim=1)
            return visual, self._fed(text, call.text), present
        visual, text = self._fed(rows, call.all).split(sizes, dim=1)
        return visual, text, present

    def text_only(
        self, text: Tensor, rows: Rows, past: KeyValue | Buffer
    ) -> tuple[Tensor, KeyValue]:
        """Run the layer on text rows [B, T, D] that read no visual key of this call."""
        normed = self.input_norm(text)
        present = past.extended(*self.keys_and_values(normed, rows))
        return self._update(text, normed, rows, present), present

    def active_neurons(self, visual: Tensor, text: Tensor, rows: Rows) -> Tensor:
        """Return the MLP's neurons [B, S, M] on all rows of a call without a past; see `MLP.neurons`."""
        states = torch.cat([visual, text], dim=1)
        normed = self.input_norm(states)
        present = self.keys_and_values(normed, rows)
        return self.mlp.neurons(self.mlp_norm(states + self.mixed(normed, rows, present)))

    def _update(self, states: Tensor, normed: Tensor, rows: Rows, present: KeyValue) -> Tensor:
        return self._fed(states + self.mixed(normed, rows, present), rows)

    def _fed(self, states: Tensor, rows: Rows) -> Tensor:
        return states + rows.scaled(self.mlp(self.mlp_norm(states)))


def split_heads(states: Tensor, heads: int) -> Tensor:
    """[B, S, heads * d] -> [B, heads, S, d]."""
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)
