"""The original's side of compression loss: transformers' own model, processor and generation."""

from collections.abc import Iterator, Sequence

import torch

from compressor.calibration.data import Sample
from compressor.families import LoadedModel
from compressor.progress import SILENT, Progress
from compressor.prompts import EncodedPrompt, encode, layout
from export.parity.loss import Answer, Answers
from export.runtime import BATCH_ROWS, WINDOW, until_end

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


def _batches(model: LoadedModel, samples: Sequence[Sample]) -> Iterator[list[Indexed]]:
    """Prompts of equal length and number of images are answered together."""
    for start in range(0, len(samples), WINDOW):
        groups: dict[tuple[int, int], list[Indexed]] = {}
        for index, sample in enumerate(samples[start : start + WINDOW], start):
            prompt = encode(model.native_processor, sample)
            layout(model, prompt, native=True)  # refuses pictures that have no place in it
            groups.setdefault((prompt.input_ids.shape[1], len(sample.images)), []).append(
                (index, prompt)
            )
        for (length, _), group in groups.items():
            size = max(1, BATCH_ROWS // length)
            for first in range(0, len(group), size):
                yield group[first : first + size]


@torch.inference_mode()
def _answer(
    model: LoadedModel, batch: list[Indexed], max_new_tokens: int
) -> Iterator[tuple[int, Answer, torch.Tensor]]:
    ids = torch.cat([prompt.input_ids for _, prompt in batch])
    pixels = [prompt.pixel_values for _, prompt in batch if prompt.pixel_values is not None]
    ends = model.facts.eos_token_ids
    out = model.original.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=torch.cat(pixels).to(model.original.dtype) if pixels else None,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if ends else 0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    for row, (index, _) in enumerate(batch):
        tokens = until_end(out.sequences[row, ids.shape[1] :].tolist(), ends)
        text = model.processor.decode(tokens, skip_special_tokens=True)
        yield index, Answer(token_ids=tokens, text=text), out.logits[0][row].float()
