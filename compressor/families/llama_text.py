"""Facts of Llama-like text decoders (Llama, Mistral, Qwen2, Qwen3), shared by the families that use them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from compressor.errors import ModelError
from compressor.facts import POSITION_AXES, Activation, DecoderDims
from compressor.families.configuration import section_problems, theta_problems
from compressor.families.guard import using

TEXT_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
OF_QWEN2 = ("qwen2_vl_text", "qwen2_5_vl_text")
IN_SECTIONS = (*OF_QWEN2, "paddleocr_vl_text")
"""Of decoders with rows turned by time, row and column, in sections of the frequencies; some are Qwen2's."""

BY_TURNS = ("qwen3_vl_text",)
"""Of Qwen3's decoder with rows so turned; time, row and column take frequencies by turns."""

SECTIONS = "mrope_section"
ROPE_KINDS = ("default", "linear", "llama3")
ACTIVATION_NAMES: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "gelu_new": "gelu_pytorch_tanh",
}


COUNTS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)

# How the names of two tensors end, in every layout that transformers reads.
HEAD = "lm_head.weight"
EMBEDDING = "embed_tokens.weight"


def is_tied(asked: bool, stored: Collection[str], equal: Callable[[str, str], bool] | None) -> bool:
    """Return whether the token embedding is the head too, by transformers' rule: the files decide.

    Args:
        asked: what the configuration says.
        stored: names of the tensors in the files; empty: they are not here.
        equal: whether two of them have the same values; None: they cannot be compared here. Then they are
            taken for two tensors, which gives the right logits either way.
    """
    head = next((name for name in stored if name.endswith(HEAD)), None)
    embedding = next((name for name in stored if name.endswith(EMBEDDING)), None)
    if not asked or head is None or embedding is None:
        return asked
    return equal is not None and equal(head, embedding)


def text_problems(
    section: Mapping[str, Any], where: str, kinds: Sequence[str] = TEXT_MODEL_TYPES
) -> list[str]:
    """Return a line for each thing in a text configuration, as it is written, that no decoder has.

    Args:
        section: of `config.json`.
        where: as in `decoder_dims`.
        kinds: as in `decoder_dims`; the first is that of a section which names none.
    """
    kind = section.get("model_type", kinds[0])
    found = [] if kind in kinds else [_unknown_type(kind, where, kinds)]
    return found + section_problems(
        section,
        where,
        counts=COUNTS,
        eps="rms_norm_eps",
        optional=("num_key_value_heads", "head_dim"),
    )


def _unknown_type(kind: Any, where: str, kinds: Sequence[str]) -> str:
    return f"{where}.model_type: {kind!r} is not supported; supported decoders: {', '.join(kinds)}"


def decoder_dims(
    config: Any, *, tied: bool, where: str, kinds: Sequence[str] = TEXT_MODEL_TYPES
) -> DecoderDims:
    """Return the dims that a transformers text configuration tells.

    Args:
        config: a transformers text configuration.
        tied: whether input and output embeddings are one tensor.
        where: named in errors, e.g. `folder/config.json: text_config`.
        kinds: model types of decoders that the family has.

    Raises:
        ModelError: kind of decoder, rope, activation or attention that is not supported; all named.
    """
    from optimum.utils.normalized_config import NormalizedTextConfigWithGQA

    if problems := text_problems(config.to_dict(), where, kinds) or _head_problems(config, where):
        raise ModelError(problems)
    problems += _attention_problems(config, where)
    if config.hidden_act not in ACTIVATION_NAMES:
        problems.append(
            f"{where}.hidden_act: {config.hidden_act!r} is not supported; "
            f"supported: {', '.join(sorted(ACTIVATION_NAMES))}"
        )
    rope = config.rope_parameters or {}
    kind = rope.get("rope_type", "default")
    if kind not in ROPE_KINDS:
        problems.append(
            f"{where}.rope_parameters.rope_type: {kind!r} is not supported; "
            f"supported: {', '.join(ROPE_KINDS)}"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append(
            f"{where}.rope_parameters.partial_rotary_factor: {rope['partial_rotary_factor']} "
            "is not supported; only 1 is"
        )
    problems += theta_problems(rope, where)
    axes = None
    if config.model_type in (*IN_SECTIONS, *BY_TURNS):
        axes = _axes(rope.get(SECTIONS), by_turns=config.model_type in BY_TURNS)
        if not axes or 2 * len(axes) != _head_dim(config):
            problems.append(
                f"{where}.rope_parameters.{SECTIONS}: {rope.get(SECTIONS)!r} is not allowed; three numbers "
                f"whose sum is half of a head's width, {_head_dim(config)}: head_dim, or hidden_size "
                "by num_attention_heads"
            )
    if problems:
        raise ModelError(problems)
    normalized = NormalizedTextConfigWithGQA(config)
    heads = normalized.num_attention_heads
    qwen2 = config.model_type in ("qwen2", *OF_QWEN2)
    everywhere = bool(getattr(config, "use_bias", False))
    bias = qwen2 or everywhere or bool(getattr(config, "attention_bias", False))
    with using(f"{where}.rope_parameters"):
        inv_freq, scale = _rope(config, kind)
    return DecoderDims(
        layers=normalized.num_layers,
        hidden=normalized.hidden_size,
        heads=heads,
        kv_heads=normalized.num_key_value_heads,
        head_dim=_head_dim(config),
        intermediate=config.intermediate_size,
        vocab=normalized.vocab_size,
        rms_norm_eps=config.rms_norm_eps,
        activation=ACTIVATION_NAMES[config.hidden_act],
        qkv_bias=bias,
        o_bias=bias and not qwen2,
        mlp_bias=everywhere or bool(getattr(config, "mlp_bias", False)),
        qk_norm=config.model_type in ("qwen3", *BY_TURNS),
        tied_embeddings=tied,
        rope_inv_freq=inv_freq,
        rope_scale=scale,
        rope_axes=axes,
        max_positions=config.max_position_embeddings,
    )


def _head_dim(config: Any) -> int:
    """Width of a head."""
    own: int | None = getattr(config, "head_dim", None)
    return own or int(config.hidden_size // config.num_attention_heads)


def _axes(sections: Any, *, by_turns: bool) -> tuple[int, ...]:
    """Return which axis turns each frequency; none: the sections are no three numbers."""
    if not isinstance(sections, list | tuple) or len(sections) != POSITION_AXES:
        return ()
    if not all(type(count) is int and count >= 0 for count in sections):
        return ()
    if not by_turns:
        return tuple(axis for axis, count in enumerate(sections) for _ in range(count))
    axes = [0] * sum(sections)
    for axis in range(1, POSITION_AXES):
        turns = range(axis, min(POSITION_AXES * sections[axis], len(axes)), POSITION_AXES)
        for frequency in turns:
            axes[frequency] = axis
    return tuple(axes)


def _head_problems(config: Any, where: str) -> list[str]:
    """Numbers of heads that do not go together, or into the width."""
    found, width = [], config.hidden_size
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if getattr(config, "head_dim", None) is None and width % heads:
        found.append(f"{where}.num_attention_heads: {heads} do not divide the hidden_size {width}")
    if groups is not None and heads % groups:
        found.append(
            f"{where}.num_key_value_heads: {heads} query heads are no multiple of {groups}"
        )
    return found


def _attention_problems(config: Any, where: str) -> list[str]:
    """A sliding window is refused if a prompt within the model's positions can outgrow it."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    used = kinds is None or "sliding_attention" in kinds
    if window is None or not used or window >= config.max_position_embeddings:
        return []
    return [
        f"{where}.sliding_window: a window of {window} can bind, as the model takes "
        f"{config.max_position_embeddings} positions; sliding windows are not supported: "
        f"set max_position_embeddings to {window} or less if your prompts fit"
    ]


def _rope(config: Any, kind: str) -> tuple[tuple[float, ...], float]:
    """Return inverse frequencies [d / 2] and the factor on cos and sin, by transformers' own rules."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    if kind == "default":
        inv_freq, scale = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        inv_freq, scale = ROPE_INIT_FUNCTIONS[kind](config, device=None)
    return tuple(inv_freq.tolist()), float(scale)
