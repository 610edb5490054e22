"""The few operations of the decoder that become one ONNX node each.

While a graph is being exported they call torch's ONNX operators; otherwise torch's own kernels, because the
eager form of the ONNX operators also computes outputs that nobody asks for.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from compressor.decoder.cache import KeyValue
    from compressor.decoder.window import Window

# Below every score; float16 has no larger negative number that survives a sum.
LEAST = -3e4


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Scaled dot-product attention with grouped queries.

    Args:
        query: [B, H, S, d].
        key: [B, H_kv, P + S', d]; query head h reads key head h // (H / H_kv).
        value: as `key`.
        mask: [B, 1, S, P + S'] bool, True where the query may read the key; or numbers to add to the scores.

    Returns:
        [B, H, S, d].
    """
    if torch.onnx.is_in_onnx_export():
        # One output only: TensorRT refuses Attention nodes with more.
        mixed, *_ = torch.onnx.ops.attention(query, key, value, attn_mask=mask)
        return mixed
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=grouped)


def join_heads(mixed: Tensor) -> Tensor:
    """[B, H, S, d] -> [B, S, H * d]."""
    return mixed.transpose(1, 2).flatten(2)


def attend_near(
    query: Tensor, near: "KeyValue", beside: Sequence["tuple[KeyValue, Tensor]"], window: "Window"
) -> Tensor:
    """Attention of visual rows to grid neighbours and to rows beside the images, in one softmax.

    Built of products and a softmax, which run on no rows as well (V = 0); an Attention node does not. Scores
    are joined, not keys: a decode step, in which V is 0, then copies no cache.

    Args:
        query: [B, H, V, d].
        near: keys and values [B, G, V, d] of the same rows.
        beside: other keys and values [B, G, R, d], each with what is hidden of it [B, 1, 1, V, R] bool.
        window: of the grid; V is a multiple of its size.

    Returns:
        [B, H, V, d].
    """
    groups, size = near.key.shape[1], query.shape[3]
    grid, band = (window.rows, window.columns), window.side * window.columns
    query = query.unflatten(1, (groups, -1)) * size**-0.5
    # Seven axes: B, G, H / G, images, gh, gw, d.
    tiles = query.unflatten(3, (-1, *grid))

    def bands(states: Tensor) -> Tensor:
        """[B, G, V, d] to [B, G, 1, images, gh, w * gw, d]: the grid rows around each grid row."""
        # Indexed along one axis: with brackets the exporter transposes around a GatherND.
        rows = states.unflatten(2, (-1, *grid)).index_select(3, window.bands.flatten())
        return rows.reshape(rows.shape[0], groups, 1, -1, window.rows, band, size)

    near_scores = tiles @ bands(near.key).transpose(-1, -2)  # [.., gh, gw, w * gw]
    # Masked on four axes: on seven OpenVINO 2026.4 hides other scores, but for a decoder's first layer.
    near_scores = near_scores.reshape(-1, *grid, band).masked_fill(window.hidden, LEAST)
    parts = [near_scores.reshape(*query.shape[:4], band)]  # [B, G, H / G, V, w * gw]
    for other, hidden in beside:
        # The query is turned, not the key: in decode it is empty, and the key is the whole cache.
        scores = (other.key[:, :, None] @ query.transpose(-1, -2)).transpose(-1, -2)
        parts.append(scores.masked_fill(hidden, LEAST))
    share = torch.cat(parts, dim=-1).softmax(dim=-1)
    at = band
    of_near = share.narrow(4, 0, at).unflatten(3, (-1, *grid)) @ bands(near.value)
    mixed = of_near.flatten(3, 5)  # [B, G, H / G, V, d]
    for other, _ in beside:
        rows = other.key.shape[2]
        mixed = mixed + share.narrow(4, at, rows) @ other.value[:, :, None]
        at = at + rows
    return mixed.flatten(1, 2)


def attend_masked(
    query: Tensor,
    present: "KeyValue",
    mask: Tensor,
    *,
    keys_cut: Tensor,
    rows_cut: int,
    pruned: Tensor,
    off: bool,
) -> Tensor:
    """Attention whose weights on visual keys are zeroed behind the softmax, as YOPO's released code does.

    Args:
        query: [B, H, rows, d].
        present: keys and values [B, G, keys, d].
        mask: [B, 1, rows, keys] bool, before the softmax.
        keys_cut: [B, keys] bool, visual keys.
        rows_cut: how many of the first rows are visual; in pruned heads they get zeros.
        pruned: [G] bool, key/value heads without visual tokens.
        off: whether no head reads visual values.

    Returns:
        [B, rows, H * d].
    """
    groups, size = present.key.shape[1], query.shape[3]
    query = query.unflatten(1, (groups, -1)) * size**-0.5  # [B, G, H / G, rows, d]
    scores = query @ present.key[:, :, None].transpose(-1, -2)
    weights = scores.masked_fill(~mask[:, None], LEAST).softmax(dim=-1)
    gone = pruned[:, None, None, None]  # [G, 1, 1, 1]
    cut = keys_cut[:, None, None, None]  # [B, 1, 1, 1, keys]
    weights = weights.masked_fill(cut if off else cut & gone, 0.0)
    mixed = weights @ present.value[:, :, None]
    rows = mixed.shape[3]
    silent = torch.arange(rows, device=mixed.device)[:, None] < rows_cut  # [rows, 1]
    mixed = mixed.masked_fill(silent & gone, 0.0)
    return join_heads(mixed.flatten(1, 2))


def write_rows(buffer: Tensor, rows: Tensor, filled: Tensor) -> Tensor:
    """Return a buffer with rows written behind those that are filled; the buffer given stays as it is.

    In a graph this is TensorScatter, which a runtime does in place where input and output are one memory.

    Args:
        buffer: [B, G, C, d].
        rows: [B, G, S, d], filled + S <= C.
        filled: [B] int64.
    """
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic(
            "TensorScatter",
            [buffer, rows, filled],
            {"axis": -2, "mode": "linear"},
            dtype=buffer.dtype,
            shape=buffer.shape,
        )
    places = filled[:, None] + torch.arange(rows.shape[2], device=rows.device)  # [B, S]
    return buffer.scatter(2, places[:, None, :, None].expand_as(rows), rows)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding on the two halves of each head (Llama's layout).

    Args:
        states: [B, H, S, d].
        cos: [B, S, d / 2].
        sin: [B, S, d / 2].
    """
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.rotary_embedding(states, cos, sin)
    first, second = states.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def project_tied(states: Tensor, embedding: Tensor) -> Tensor:
    """Multiply by a tied embedding: [B, S, D] x [vocab, D] -> [B, S, vocab].

    The embedding is stored once, in the layout that Gather reads. Gemm reads it transposed in place; a
    MatMul would need a transposed copy in the file.
    """
    if torch.onnx.is_in_onnx_export():
        batch, rows, width = states.shape
        flat = torch.onnx.ops.symbolic(
            "Gemm",
            [states.reshape(-1, width), embedding],
            {"transB": 1},
            dtype=states.dtype,
            shape=(batch * rows, embedding.shape[0]),
        )
        return flat.reshape(batch, rows, embedding.shape[0])
    return F.linear(states, embedding)
