"""The original's side of compression loss: transformers' own model and processor, and the likeliest tokens.

Both sides pick the likeliest token, whatever the model's generation configuration asks for: loss is what
compression changed, and a penalty or a beam would be counted as that. So nothing of `generate` is used here.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from compressor.errors import ModelError, first_line
from compressor.families import LoadedModel
from compressor.families.known import family_that_read
from compressor.progress import SILENT, Progress
from compressor.samples.prompts import EncodedPrompt, encode, layout
from compressor.samples.questions import Sample
from export.checks.rewrite import Reading
from export.results.answers import Answer, Answers
from export.runtime.core import BATCH_ROWS, PROMPTS_AHEAD, until_end
from export.runtime.images import SeenPicture

Indexed = tuple[int, EncodedPrompt]


def measure_original(
    model: LoadedModel, samples: Sequence[Sample], max_new_tokens: int, progress: Progress = SILENT
) -> Answers:
    """Let the original model answer every sample greedily, at its own image size.

    Raises:
        DataError: a picture cannot be read, or a prompt does not fit the model.
    """
    answers: dict[int, tuple[Answer, torch.Tensor]] = {}
    replies = (
        reply
        for batch in _batches(model, samples)
        for reply in _answer(model, batch, max_new_tokens)
    )
    for index, answer, logits in progress.track(replies, "original answers", len(samples)):
        answers[index] = (answer, logits)
    rows = [answers[i] for i in range(len(samples))]
    return Answers(
        tuple(answer for answer, _ in rows),
        torch.stack([logits for _, logits in rows]).numpy(),
        max_new_tokens,
    )


@torch.inference_mode()
def read_original(model: LoadedModel, sample: Sample) -> Reading:
    """Return what the original makes of one prompt with pictures, at the image size of `model.facts`.

    Raises:
        DataError: a picture cannot be read, or the processor fails.
        ModelError: the original fails on its own processor's prompt.
    """
    prompt = encode(model.processor, sample, model.facts)
    if not prompt.pixels:
        raise ModelError([f"{model.facts.name}: its processor makes no pixels of a picture"])
    original, family = model.original, family_that_read(model.facts)
    family.forget(original)
    try:
        pictures = _beside([prompt], original)
        if model.processor is not model.native_processor:  # asked for another image size
            seen = original.get_image_features(**pictures, interpolate_pos_encoding=True)
            pictures = {"mm_encoder_outputs": {"image": seen}}
        ids = prompt.input_ids.to(original.device)
        out = original(input_ids=ids, use_cache=False, logits_to_keep=1, **pictures)
        rows = family.original_rows(original, out, pictures)
    except Exception as failure:
        reason = first_line(failure)
        raise ModelError(
            [f"{model.facts.name}: the original itself fails on a prompt with a picture: {reason}"]
        ) from failure
    unknown = (None,) * len(prompt.pixels)
    grids, arranged = prompt.grids or unknown, prompt.arranged or unknown
    return Reading(
        ids=tuple(prompt.input_ids[0].tolist()),
        seen=tuple(
            SeenPicture(pixels.float().numpy(), count, "", cells=grid, arrangement=one)
            for pixels, count, grid, one in zip(
                prompt.pixels, prompt.image_rows, grids, arranged, strict=True
            )
        ),
        embeds=tuple(part.float().cpu().numpy() for part in rows),
        logits=out.logits[0, -1].float().cpu().numpy(),
    )


def _batches(model: LoadedModel, samples: Sequence[Sample]) -> Iterator[list[Indexed]]:
    """Prompts of which the processor made values of equal shapes are answered together."""
    for start in range(0, len(samples), PROMPTS_AHEAD):
        groups: dict[str, list[Indexed]] = {}
        for index, sample in enumerate(samples[start : start + PROMPTS_AHEAD], start):
            prompt = encode(model.native_processor, sample, model.native_facts)
            layout(model, prompt, model.native_facts)  # refuses pictures that have no place in it
            shapes = {key: tuple(value.shape) for key, value in prompt.inputs.items()}
            groups.setdefault(repr((shapes, prompt.image_rows)), []).append((index, prompt))
        for group in groups.values():
            size = max(1, BATCH_ROWS // group[0][1].input_ids.shape[1])
            for first in range(0, len(group), size):
                yield group[first : first + size]


@torch.inference_mode()
def _answer(
    model: LoadedModel, batch: list[Indexed], max_new_tokens: int
) -> Iterator[tuple[int, Answer, torch.Tensor]]:
    ids = torch.cat([prompt.input_ids for _, prompt in batch])
    pictures = _beside([prompt for _, prompt in batch], model.original)
    ends = model.facts.eos_token_ids
    family_that_read(model.facts).forget(model.original)
    steps = _likeliest(model.original, ids, pictures, max_new_tokens, ends)
    first, rows = next(steps)
    tokens = torch.stack([first, *(token for token, _ in steps)], dim=1).tolist()
    for row, (index, _) in enumerate(batch):
        found = until_end(tokens[row], ends)
        text = model.processor.decode(found, skip_special_tokens=True)
        yield index, Answer(token_ids=found, text=text), rows[row]


def _beside(prompts: Sequence[EncodedPrompt], original: Any) -> dict[str, Any]:
    """Return what the original takes of prompts of equal shapes besides tokens, in its dtype, where it is."""
    every = [prompt.of_pictures for prompt in prompts]
    joined = {key: torch.cat([of[key] for of in every]) for key in every[0]}
    dtype, device = original.dtype, original.device
    return {
        k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in joined.items()
    }


def _likeliest(
    original: Any,
    ids: Tensor,
    pictures: Mapping[str, Tensor],
    max_new_tokens: int,
    ends: Sequence[int],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the likeliest tokens [B] and their logits [B, vocab] float32 until all rows have ended.

    Args:
        original: the transformers model.
        ids: [B, S] prompts of equal length.
        pictures: what else their processor made; the model wants it with the prompt alone.
        max_new_tokens: longest answer.
        ends: tokens that end one.
    """
    asked, past = ids, None
    ended = torch.zeros(len(ids), dtype=torch.bool)
    for number in range(max_new_tokens):
        # The cache is asked for by name: a configuration may have it off.
        out = original(
            input_ids=asked.to(original.device),
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
            **pictures,
        )
        logits = out.logits[:, -1].float().cpu()
        tokens = logits.argmax(dim=-1)
        yield tokens, logits
        ended |= torch.isin(tokens, torch.tensor(ends, dtype=tokens.dtype))
        if ended.all() or number + 1 == max_new_tokens:
            return
        asked, past, pictures = tokens[:, None], out.past_key_values, {}
