"""DyVTE's gates: small networks that look at text states after a layer and decide whether visual rows leave.

Source: "Accelerating Multimodal Large Language Models via Dynamic Visual-Token Exit and the Empirical
Findings" (DyVTE, 2024). A gate is Linear(2D, W), GELU, Linear(W, 2), without biases, on the mean of the text
states behind the image except the last one, beside the last text state; it fires if logit 1 exceeds logit 0.

Settled where the release is silent: the states are those behind the last image of the call; if only one
row follows it, that row stands for the mean too; a call without an image asks no gate.

Letters: V visual rows, T text rows, D hidden, W hidden width of a gate, m = min(V, 1). A gate runs on m rows,
so that its matrix products are empty in decode and after an exit.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.decoder.layer import Linear


class Gate(nn.Module):
    """One gate.

    Args:
        hidden: D.
        width: W.
    """

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.w1 = Linear(2 * hidden, width, bias=False)
        self.w2 = Linear(width, 2, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """Map gate inputs [m, 2D] to logits [m, 2]: stay, exit."""
        return self.w2(F.gelu(self.w1(states)))


def gate_selection(visual_index: Tensor, text_index: Tensor, dtype: torch.dtype) -> Tensor:
    """Return weights [m, 2, T] of the text rows: the mean that a gate reads, and the last row.

    Args:
        visual_index: [1, V] places of the visual rows.
        text_index: [1, T] places of the text rows, the last of them behind the last image.
        dtype: of the weights.
    """
    visual = visual_index.shape[1]
    asked = rows_asked(torch.scalar_tensor(visual, dtype=torch.int64))
    last_image_row = visual_index.narrow(1, visual - asked, asked).T  # [m, 1]
    behind = text_index > last_image_row  # [m, T]
    final = (text_index == text_index[:, -1:]).expand_as(behind)
    between = behind & ~final
    averaged = between | (final & ~between.any(dim=1, keepdim=True))
    weights = averaged / averaged.sum(dim=1, keepdim=True)
    return torch.stack([weights, final.to(weights.dtype)], dim=1).to(dtype)


def rows_asked(visual: Tensor) -> int:
    """Return min(V, 1) for a count of visual rows that is a tensor.

    Through a tensor, because torch.export takes a size for at least 2 and makes 1 of `min(size, 1)`; ONNX
    Runtime then plans memory for a row that is not there in decode.
    """
    asked: int = torch.minimum(visual, torch.ones_like(visual)).item()  # type: ignore[assignment]
    torch._check(asked >= 0)  # noqa: SLF001 - the documented way to bound a size for torch.export
    torch._check(asked <= 1)  # noqa: SLF001
    return asked


def gate_input(selection: Tensor, text: Tensor) -> Tensor:
    """Return what a gate reads [m, 2D] of the text rows [1, T, D]."""
    return (selection @ text).flatten(1)


def margins(logits: Tensor) -> Tensor:
    """Return logit 1 minus logit 0 [n] of gates' logits [n, 2]; above 0 a gate fires."""
    return logits[:, 1] - logits[:, 0]


def fires(logits: Tensor) -> Tensor:
    """Return whether a gate's logits [m, 2], m at most 1, make the visual rows leave; with m = 0 they stay.

    The row is taken and nothing is reduced: ONNX Runtime's CUDA reduces no empty axis.
    """
    stay, leave = torch.cat([logits, logits.new_zeros(1, 2)])[0]
    return leave > stay
