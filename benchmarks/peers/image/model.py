"""A LLaVA of random weights, its picture and prompt, and what torch answers with and without a plan."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.decoder_sessions import Array
from benchmarks.peers.contenders import HUGGING_FACE

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlavaForConditionalGeneration

# The whole takes about a second on one thread: the decoder does 100, the tower 20 of 120 GFLOP.
HIDDEN, INTERMEDIATE, HEADS = 896, 2432, 14
TOWER = {
    "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 6,
}  # fmt: skip
VISUAL, SIDE = 576, 336
BEFORE, TEXT = 35, 64
PLAIN_IDS = (300, 30_000)


class Question(NamedTuple):
    """What is asked.

    Attributes:
        ids: [S] int64, with `VISUAL` image tokens.
        pixels: [1, 3, H, W] float32.
        visual: [V] places of the image tokens.
    """

    ids: NDArray[np.int64]
    pixels: Array
    visual: NDArray[np.int64]


def question(folder: Path) -> Question:
    """Return a picture and a prompt of random numbers, the same each time.

    Args:
        folder: that holds the model, which says what an image token is.
    """
    config = json.loads((folder / HUGGING_FACE / "config.json").read_text(encoding="utf-8"))
    image_token = config["image_token_index"]
    rng = np.random.default_rng(0)
    text = rng.integers(*PLAIN_IDS, TEXT)
    ids = np.concatenate([text[:BEFORE], np.full(VISUAL, image_token), text[BEFORE:]])
    pixels = rng.standard_normal((1, 3, SIDE, SIDE), dtype=np.float32)
    return Question(ids, pixels, np.flatnonzero(ids == image_token))


def make_model(folder: Path, layers: int, vocab: int) -> None:  # noqa: ARG001 - the tokenizer's
    """Write the model that every contender is made of; its weights are float16."""
    from tests.llava_7b import make_llava_7b

    decoder = {
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": layers,
        "num_attention_heads": HEADS, "num_key_value_heads": HEADS,
    }  # fmt: skip
    make_llava_7b(folder / HUGGING_FACE, text=decoder, vision=TOWER)


def load_torch(folder: Path) -> "LlavaForConditionalGeneration":
    """Return the model in torch, float32."""
    import torch
    from transformers import LlavaForConditionalGeneration

    found: LlavaForConditionalGeneration = LlavaForConditionalGeneration.from_pretrained(
        folder / HUGGING_FACE, dtype=torch.float32
    ).eval()
    return found


def torch_answer(model: "LlavaForConditionalGeneration", asked: Question) -> "Tensor":
    """Return the logits [vocab] behind the prompt, as transformers computes them."""
    import torch

    with torch.inference_mode():
        found = model(
            input_ids=torch.from_numpy(asked.ids)[None],
            pixel_values=torch.from_numpy(asked.pixels),
            logits_to_keep=1,
        )
    logits: Tensor = found.logits.reshape(-1)
    return logits


def torch_answer_of_plan(
    model: "LlavaForConditionalGeneration",
    asked: Question,
    frozen: Sequence[int],
    kept: NDArray[np.int64] | None,
) -> "Tensor":
    """Return the logits [vocab] that a plan is to give, by transformers' layers and not by ours.

    Args:
        model: the original.
        asked: picture and prompt.
        frozen: layers whose visual rows come out as they went in.
        kept: [K] visual rows that go in, at their places; None: all.
    """
    import torch

    decoder = model.model.language_model
    stays = np.ones(len(asked.ids), bool)
    if kept is not None:
        stays[np.delete(asked.visual, kept)] = False
    ids, places = torch.from_numpy(asked.ids), torch.arange(len(asked.ids))
    visual = torch.zeros(len(ids), dtype=torch.bool)
    visual[asked.visual] = True

    def passed_by(_: Any, given: "tuple[Tensor, ...]", found: "Tensor") -> "Tensor":
        return torch.where(visual[stays][None, :, None], given[0], found)

    hooks = [decoder.layers[layer].register_forward_hook(passed_by) for layer in frozen]
    with torch.inference_mode():
        features = model.get_image_features(torch.from_numpy(asked.pixels)).pooler_output
        rows = model.get_input_embeddings()(ids)
        rows[visual] = features[0]
        states = decoder(
            inputs_embeds=rows[None, stays],
            position_ids=places[None, stays],
            # Without one, gaps between places would be taken for ends of packed prompts.
            attention_mask=torch.ones(1, int(stays.sum()), dtype=torch.long),
        ).last_hidden_state
        logits: Tensor = model.lm_head(states[0, -1])
    for hook in hooks:
        hook.remove()
    return logits
