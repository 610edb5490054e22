"""Prompts of the original model: its own processor, chat template and embeddings."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compressor.errors import DataError, VtcompressError, first_line
from compressor.families import LoadedModel
from compressor.samples.layout import Layout, joined, layout_of
from compressor.samples.pictures import load_image
from compressor.samples.questions import Sample


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the original model takes it.

    Attributes:
        input_ids: [1, S].
        pixel_values: [I, 3, S, S]; None without image.
        images: I, how many pictures the question came with.
        place: of the question, for errors.
    """

    input_ids: Tensor
    pixel_values: Tensor | None
    images: int
    place: str


def encode(processor: Any, sample: Sample) -> EncodedPrompt:
    """Encode a question by the model's own processor and chat template.

    Raises:
        DataError: a picture cannot be read, or the template fails on this prompt.
    """
    images = [{"type": "image", "image": load_image(path)} for path in sample.images]
    with _named(sample):
        encoded = processor.apply_chat_template(
            [_user(sample, images)],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    pixels = encoded.get("pixel_values")
    return EncodedPrompt(encoded["input_ids"], pixels, len(images), sample.place)


def layout(model: LoadedModel, prompt: EncodedPrompt, *, native: bool = False) -> Layout:
    """Return where the rows of a prompt are.

    Args:
        model: that will run it.
        prompt: encoded by its processor.
        native: the prompt is for the original at its own image size.

    Raises:
        DataError: its image tokens are not those of its pictures, it has tokens without an embedding, or
            does not end with text.
    """
    facts = model.native_facts if native else model.facts
    try:
        return layout_of(
            prompt.input_ids[0].tolist(),
            facts,
            (facts.image_tokens,) * prompt.images,
            spell=model.processor.tokenizer.convert_ids_to_tokens,
        )
    except DataError as error:
        raise DataError(f"{prompt.place}: {problem}" for problem in error.problems) from None


def answer_ids(processor: Any, sample: Sample, ends: Sequence[int]) -> tuple[int, ...]:
    """Return the tokens of a sample's right answer as the model would go on with, an ending one last.

    They are those that the chat template puts behind the prompt for a turn of the model's, up to where the
    turn ends. A template that writes the prompt of a finished turn otherwise has the answer tokenized alone.

    Args:
        processor: the model's own.
        sample: with an answer.
        ends: tokens that end an answer; the first is added where the template writes none.

    Raises:
        DataError: the template fails on this prompt.
    """
    asked = _user(sample, [{"type": "image"} for _ in sample.images])
    with _named(sample):
        prompt = processor.apply_chat_template([asked], add_generation_prompt=True, tokenize=False)
    ids = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = sample.answer or ""
    found = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
    # Some templates read a model's turn as text, some as parts. Text first: one that reads parts leaves it
    # out or fails, while one that reads text would write parts as a list of Python's.
    for content in (answer, [{"type": "text", "text": answer}]):
        said = {"role": "assistant", "content": content}
        with suppress(Exception):
            text = processor.apply_chat_template([asked, said], tokenize=False)
            whole = processor.tokenizer(text.rstrip(), add_special_tokens=False)["input_ids"]
            if whole[: len(ids)] == ids and answer.strip() in text[len(prompt) :]:
                found = whole[len(ids) :]
                break
    ended = next((place for place, token in enumerate(found) if token in ends), len(found))
    return (*found[:ended], *ends[:1]) if ended == len(found) else tuple(found[: ended + 1])


def _user(sample: Sample, images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"role": "user", "content": [*images, {"type": "text", "text": sample.question}]}


@contextmanager
def _named(sample: Sample) -> Iterator[None]:
    """Turn a processor's failure into one line that names the question."""
    try:
        yield
    except VtcompressError:
        raise
    except Exception as failure:  # a processor and a template of the user's raise what they like
        reason = first_line(failure)
        raise DataError([f"{sample.place}: the model's processor fails: {reason}"]) from failure


@dataclass(frozen=True)
class PromptRows:
    """A prompt as the decoder takes it, B = 1."""

    layout: Layout
    visual_embeds: Tensor  # [1, V, D]
    text_embeds: Tensor  # [1, T, D]
    visual_index: Tensor  # [1, V]
    text_index: Tensor  # [1, T]
    positions: Tensor | None  # [1, V + T, A]; None: the places

    @property
    def call(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Return what a decoder takes, in its order, but for the past."""
        indices = (self.visual_index, self.text_index)
        return (self.visual_embeds, self.text_embeds, *indices, self.positions)


@torch.inference_mode()
def embed(model: LoadedModel, prompt: EncodedPrompt) -> PromptRows:
    """Turn a prompt into the decoder's two row groups.

    Raises:
        DataError: as `layout`.
    """
    table = model.tensors["embed_tokens.weight"]
    rows = layout(model, prompt)
    text = torch.nn.functional.embedding(torch.from_numpy(rows.text_ids)[None], table)
    visual = text.new_empty((1, 0, text.shape[-1]))
    if prompt.pixel_values is not None:
        visual = joined(model.vision(prompt.pixel_values.to(table.dtype)), rows.image_rows)
    return PromptRows(
        rows,
        visual,
        text,
        torch.from_numpy(rows.visual_index)[None],
        torch.from_numpy(rows.text_index)[None],
        None if rows.positions is None else torch.from_numpy(rows.positions)[None],
    )
