"""The reference that cuts are compared with is, where nothing is cut, transformers' own decoder."""

import numpy as np
import torch

from compressor.families.llama_text import decoder_dims
from compressor.plan.edits import identity_plan
from tests.facts import facts
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
    dims = decoder_dims(config, tied=False, where="config.json")
    assert dims.qk_norm
    embeds, nothing = torch.randn(1, 12, 32), np.zeros(12, np.int64)
    with torch.inference_mode():
        wanted = model(inputs_embeds=embeds).logits[0].numpy()
    plan = identity_plan(facts(dims), "")
    rows = Conversation(embeds[0].double().numpy(), nothing > 0, nothing, nothing)
    np.testing.assert_allclose(text_logits(plan, tensors, rows), wanted, atol=TOLERANCE)
    without = plan.model.decoder.model_copy(update={"qk_norm": False})
    found = text_logits(identity_plan(facts(without), ""), tensors, rows)
    assert np.abs(found - wanted).max() > 100 * TOLERANCE
