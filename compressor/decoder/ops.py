"""The few operations of the decoder that become one ONNX node each.

While a graph is being exported they call torch's ONNX operators; otherwise torch's own kernels, because the
eager form of the ONNX operators also computes outputs that nobody asks for.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

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
