"""YOPO's head score: how much text looks at the picture through each head. Source: `rule` of this folder.

Score of head h in layer l = attention mass that text queries put on visual keys / mass that they put on text
keys, summed over all text rows of the prompt, under the causal mask.

The states at every layer's input come from one full pass. Attention is computed again, layer by layer, for
text queries alone and one key/value head at a time, so that the largest map is [H / H_kv, T, V + T].
"""

import torch
from torch import Tensor

from compressor.decoder.full_pass import AtLayer, FullPass
from compressor.decoder.walks.walk import OnceALayer


def head_walk() -> OnceALayer:
    """Return how head scores are measured."""
    return OnceALayer(_layer_score)


@torch.inference_mode()
def head_score(full: FullPass) -> Tensor:
    """Return the head scores [L, H] of one prompt, float64."""
    return head_walk().of(full)


def _layer_score(here: AtLayer) -> Tensor:
    """Return the scores [H] of one layer."""
    visual, text, layer, call = here.visual, here.text, here.layer, here.prompt.call
    normed = layer.input_norm(torch.cat([visual, text], dim=1))  # [1, S, D]
    queries = call.text
    key = layer.keys_and_values(normed, call.all).key[0]
    query = layer.queries(normed[:, visual.shape[1] :], queries)[0]  # [H, T, d]
    group = layer.heads // layer.kv_heads
    scores = [
        _mass_ratio(query[g * group : (g + 1) * group], key[g], queries.mask[0], visual.shape[1])
        for g in range(layer.kv_heads)
    ]
    return torch.cat(scores)


def _mass_ratio(query: Tensor, key: Tensor, mask: Tensor, visual: int) -> Tensor:
    """Return the mass on the first V keys / on the others, for each head.

    Args:
        query: [heads, T, d].
        key: [S, d].
        mask: [1, T, S] bool, True where the query may read the key.
        visual: V.
    """
    weights = query @ key.T  # [heads, T, S]
    weights.mul_(query.shape[-1] ** -0.5).masked_fill_(~mask, -torch.inf)
    on_keys = torch.softmax(weights, dim=-1).sum(dim=1).double()
    # A text row always reads itself, so the mass on text is above 0.
    return on_keys[:, :visual].sum(dim=1) / on_keys[:, visual:].sum(dim=1)
