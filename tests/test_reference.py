"""The reference that cuts are compared with is, where nothing is cut, transformers' own decoder."""

import numpy as np
import pytest
import torch

from compressor.families.llama_text import decoder_dims
from compressor.plan.edits import identity_plan
from tests.facts import dims, facts
from tests.models import VOCAB
from tests.reference import Conversation, text_logits

TOLERANCE = 1e-4
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Give every weight values that show, norms included."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def test_the_reference_is_transformers_decoder_with_norms_on_queries_and_keys() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**SHAPE)
    model = randomised(Qwen3ForCausalLM(config))
    tensors = {name.removeprefix("model."): p for name, p in model.state_dict().items()}
    read = decoder_dims(config, tied=False, where="config.json")
    assert read.qk_norm
    embeds, nothing = torch.randn(1, 12, 32), np.zeros(12, np.int64)
    with torch.inference_mode():
        wanted = model(inputs_embeds=embeds).logits[0].numpy()
    plan = identity_plan(facts(read), "")
    rows = Conversation(embeds[0].double().numpy(), nothing > 0, nothing, nothing)
    np.testing.assert_allclose(text_logits(plan, tensors, rows), wanted, atol=TOLERANCE)
    without = plan.model.decoder.model_copy(update={"qk_norm": False})
    found = text_logits(identity_plan(facts(without), ""), tensors, rows)
    assert np.abs(found - wanted).max() > 100 * TOLERANCE


SECTIONS = {"chunked": (0, 0, 1, 1, 1, 2, 2, 2), "interleaved": (0, 1, 2, 0, 1, 2, 0, 0)}


@pytest.mark.parametrize("kind", SECTIONS)
def test_the_reference_is_transformers_decoder_with_rows_turned_on_three_axes(kind: str) -> None:
    from transformers import Qwen2VLTextConfig, Qwen3VLTextConfig
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLTextModel
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if kind == "chunked":
        shape = {**SHAPE, "hidden_size": 64}  # its heads have the width that is left
        rope["mrope_section"] = [2, 3, 3]
        model = Qwen2VLTextModel(Qwen2VLTextConfig(**shape, rope_parameters=rope))
    else:
        shape, rope["mrope_section"] = SHAPE, [4, 2, 2]
        model = Qwen3VLTextModel(Qwen3VLTextConfig(**shape, rope_parameters=rope))
    randomised(model)
    hidden = shape["hidden_size"]
    shown = dims(
        layers=3,
        hidden=hidden,
        head_dim=16,
        intermediate=48,
        vocab=hidden,
        qkv_bias=kind == "chunked",
        qk_norm=kind == "interleaved",
        rope_axes=SECTIONS[kind],
    )
    embeds, nothing = torch.randn(1, 12, hidden), np.zeros(12, np.int64)
    positions = np.random.default_rng(0).integers(0, 30, (12, 3))
    visual, added = np.arange(12) % 4 > 0, np.zeros((2, 12, hidden))
    more = {}
    if kind == "interleaved":
        added[:, visual] = np.random.default_rng(1).standard_normal((2, visual.sum(), hidden))
        stack = [torch.from_numpy(rows[visual]).float() for rows in added]
        more = {
            "visual_pos_masks": torch.from_numpy(visual[None]),
            "deepstack_visual_embeds": stack,
        }
    with torch.inference_mode():
        wanted = model(
            inputs_embeds=embeds, position_ids=torch.from_numpy(positions.T[:, None].copy()), **more
        ).last_hidden_state[0]
    tensors = {**model.state_dict(), "lm_head.weight": torch.eye(hidden)}
    rows = Conversation(embeds[0].double().numpy(), nothing > 0, nothing, nothing, positions, added)
    found = text_logits(identity_plan(facts(shown), ""), tensors, rows)
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE)
    other = shown.model_copy(update={"rope_axes": shown.rope_axes[::-1]})
    swapped = text_logits(identity_plan(facts(other), ""), tensors, rows)
    assert np.abs(swapped - found).max() > 100 * TOLERANCE
