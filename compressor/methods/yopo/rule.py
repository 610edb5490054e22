"""YOPO: visual tokens do less: in fewer heads, among neighbours, with a narrower MLP, in fewer layers.

Source: "Treat Visual Tokens as Text? But Your MLLM Only Needs Fewer Efforts to See" (YOPO, 2024).

Rule for heads: the score of head h in layer l is the attention mass that text queries put on visual keys
divided by what they put on text keys. The highest stay: a share of all of them, or those that exceed a
threshold in enough calibration samples. With grouped queries a key/value head goes only with all its query
heads, so scores are means over a group. Scores are measured in `heads` of this folder, activations in
`compressor.methods.yopo.neurons`; this file holds the choices.

Letters: L layers, H query heads, G key/value heads, M MLP width.

Limitations:
- The score looks at the mass of attention, not at what the values bring.
- Heads are chosen in one pass; scores of heads pruned together are not measured together.
- The published checkpoints were trained under these cuts; without training, accuracy falls sooner.
- Heads that read small details may score low on questions that do not ask for them.
"""

import math
from collections.abc import Collection, Sequence

KEEP_LAYERS = (0, 1)
VOTES = 0.4
AUTO_WINDOW = 5

Scores = Sequence[Sequence[float]]
Groups = tuple[tuple[int, ...], ...]
"""For each layer the key/value heads that stay, ascending."""


def group_means(scores: Scores, kv_heads: int) -> tuple[tuple[float, ...], ...]:
    """Return the means [L, G] of scores [L, H] over each key/value head's query heads."""
    size = len(scores[0]) // kv_heads
    return tuple(
        tuple(math.fsum(row[g * size : (g + 1) * size]) / size for g in range(kv_heads))
        for row in scores
    )


def top_share(scores: Scores, share: float, layers: Collection[int]) -> Groups:
    """Return the groups that stay if a share of those in `layers` may.

    Args:
        scores: of the groups [L, G].
        share: 0 to 1, over all these layers together.
        layers: whose groups may be pruned; elsewhere all stay.
    """
    pool = [(i, g) for i in layers for g in range(len(scores[i]))]
    count = math.floor(share * len(pool) + 0.5)
    # Of equal scores the earlier layer's stay: there is more of the decoder behind them.
    best = set(sorted(pool, key=lambda place: (-scores[place[0]][place[1]], place))[:count])
    return tuple(
        tuple(g for g in range(len(row)) if i not in layers or (i, g) in best)
        for i, row in enumerate(scores)
    )


def voted(
    samples: Sequence[Scores], threshold: float, votes: float, layers: Collection[int]
) -> Groups:
    """Return the groups whose score exceeds a threshold in enough samples: the authors' vote.

    Args:
        samples: scores of the groups [L, G] in each sample.
        threshold: to be exceeded.
        votes: share of the samples that is enough, above 0.
        layers: whose groups may be pruned; elsewhere all stay.
    """
    # A hair less, so that 0.4 of 10 is 4 whatever the rounding of the product.
    needed = votes * len(samples) - 1e-9
    return tuple(
        tuple(
            g
            for g in range(len(row))
            if i not in layers or sum(scores[i][g] > threshold for scores in samples) >= needed
        )
        for i, row in enumerate(samples[0])
    )


def groups_of_mask(mask: Sequence[Sequence[bool]], kv_heads: int) -> Groups:
    """Return the groups of which a mask [L, H] keeps any head."""
    size = len(mask[0]) // kv_heads
    return tuple(
        tuple(g for g in range(kv_heads) if any(row[g * size : (g + 1) * size])) for row in mask
    )


def most_active(activity: Sequence[float], count: int) -> tuple[int, ...]:
    """Return the `count` neurons with the highest mean activation, ascending; of equals the first."""
    return tuple(sorted(sorted(range(len(activity)), key=lambda m: (-activity[m], m))[:count]))
