"""Prompts of the original model: its own processor, chat template and embeddings."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compressor.calibration.data import Sample
from compressor.errors import DataError
from compressor.families import LoadedModel
from compressor.layout import Layout, layout_of
from compressor.pictures import load_image


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the original model takes it: ids [1, S] and pixels [I, 3, S, S] (None without image)."""

    input_ids: Tensor
    pixel_values: Tensor | None


def encode(processor: Any, sample: Sample) -> EncodedPrompt:
    """Encode a question by the model's own processor and chat template.

    Raises:
        DataError: a picture cannot be read, or the template fails on this prompt.
    """
    content: list[dict[str, Any]] = [
        {"type": "image", "image": load_image(path)} for path in sample.images
    ]
    content.append({"type": "text", "text": sample.question})
    try:
        encoded = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    except (ValueError, TypeError, KeyError) as failure:
        reason = str(failure).strip().splitlines()[0]
        raise DataError(
            [f"{sample.question[:60]!r}: the model's processor fails: {reason}"]
        ) from None
    return EncodedPrompt(encoded["input_ids"], encoded.get("pixel_values"))


@dataclass(frozen=True)
class PromptRows:
    """A prompt as the decoder takes it, B = 1."""

    layout: Layout
    visual_embeds: Tensor  # [1, V, D]
    text_embeds: Tensor  # [1, T, D]
    visual_index: Tensor  # [1, V]
    text_index: Tensor  # [1, T]


@torch.inference_mode()
def embed(model: LoadedModel, prompt: EncodedPrompt) -> PromptRows:
    """Turn a prompt into the decoder's two row groups."""
    table = model.tensors["embed_tokens.weight"]
    layout = layout_of(
        prompt.input_ids[0].tolist(),
        image_token_id=model.facts.image_token_id,
        visual_tokens=model.facts.visual_tokens,
    )
    text = torch.nn.functional.embedding(torch.from_numpy(layout.text_ids)[None], table)
    visual = text.new_empty((1, 0, text.shape[-1]))
    if prompt.pixel_values is not None:
        visual = model.vision(prompt.pixel_values.to(table.dtype)).flatten(0, 1)[None]
    return PromptRows(
        layout,
        visual,
        text,
        torch.from_numpy(layout.visual_index)[None],
        torch.from_numpy(layout.text_index)[None],
    )
