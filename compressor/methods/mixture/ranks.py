"""ARank: how many directions a layer's attention has, the measure by which gamma-MoD replaces layers.

Source: "gamma-MoD: Exploring Mixture-of-Depth Adaptation for Multimodal Large Language Models" (2024).

Rule: of each head the rank of its attention after the softmax, upper triangle and diagonal set to 0; mean
over heads. All rows of the prompt take part, in its order. The lower a layer's rank, the more of its rows say
the same.

Limitations:
- One singular value decomposition of an N x N matrix a head: with 640 rows and 32 layers of 32 heads minutes
  a sample, so it is measured only where it is asked for.
- A rank counts singular values above a tolerance of the rounding error: another kernel may find one more or
  less in a head.
"""

from typing import TYPE_CHECKING, Any

from compressor.contract.measure import Drawing, Measure, Measured, marked
from compressor.plan.plan import Plan

if TYPE_CHECKING:
    from torch import Tensor


def attention_ranks(here: Any) -> "Tensor":
    """Return the rank of each head's attention [H] in one layer; one head's map at a time is in memory.

    Args:
        here: `compressor.decoder.full_pass.AtLayer` of a prompt.
    """
    import torch

    prompt, layer = here.prompt, here.layer
    order = torch.cat([prompt.visual_index, prompt.text_index], dim=1)[0].argsort()
    later = order.new_ones(len(order), len(order), dtype=torch.bool).triu(1)
    normed = layer.input_norm(torch.cat([here.visual, here.text], dim=1))
    query = layer.queries(normed, prompt.call.all)[0][:, order]  # [H, S, d]
    key = layer.keys_and_values(normed, prompt.call.all).key[0][:, order]  # [G, S, d]
    group, scale = len(query) // len(key), query.shape[-1] ** -0.5
    ranks = []
    for head, rows in enumerate(query):
        scores = (rows @ key[head // group].T) * scale
        read = scores.masked_fill(later, float("-inf")).softmax(dim=-1)
        ranks.append(torch.linalg.matrix_rank(read.tril(-1).float()))  # of no smaller dtype
    return torch.stack(ranks)


def rank_walk() -> Any:
    """Return how mean ranks are measured."""
    import torch

    from compressor.decoder.walks.walk import OnceALayer

    return OnceALayer(attention_ranks, lambda found: torch.stack(found).double().mean(dim=1))


def mean_ranks(full: Any) -> "Tensor":
    """Return the mean rank over heads [L] of `attention_ranks`, float64.

    Args:
        full: `compressor.decoder.full_pass.FullPass` of the prompt.
    """
    import torch

    with torch.inference_mode():
        found: Tensor = rank_walk().of(full)
        return found


def _drawing(measured: Measured, plan: Plan) -> Drawing:
    series = marked(measured.mean, tuple(plan.runs()), ("all visual rows run", "some run"))
    return Drawing("decoder layer", "rank of attention, mean over heads", series)


ARANK = Measure(
    name="arank",
    shape=("layers",),
    of=mean_ranks,
    walk=rank_walk,
    chooses="layers by the rank of their attention",
    otherwise=", or name those that stay `dense`",
    title="rank of attention",
    unit="mean over heads",
    draw=_drawing,
)
