"""Prompts of the original model: its own processor, chat template and embeddings."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from compressor.arrangement import Arrangement
from compressor.contract.choice import Front
from compressor.errors import DataError, VtcompressError, first_line
from compressor.facts import ModelFacts
from compressor.families import VisionEncoder
from compressor.families.known import family_that_read
from compressor.samples.layout import (
    Grid,
    Layout,
    Pictured,
    VisualRows,
    joined,
    layout_of,
    visual_rows,
)
from compressor.samples.pictures import Pictures, pictures_of, read_picture
from compressor.samples.prompt_date import on_prompt_date
from compressor.samples.questions import Sample


class Reader(Protocol):
    """A model that prompts are for, the original or a compressed one."""

    @property
    def facts(self) -> ModelFacts:
        """Facts about the model."""
        ...

    @property
    def processor(self) -> Any:
        """Images, tokenizer and chat template."""
        ...

    @property
    def embedding(self) -> Tensor:
        """[vocab, D], of text tokens."""
        ...

    @property
    def vision(self) -> VisionEncoder:
        """Pixels of tiles [I, 3, H, W] to visual embeddings [I, N, D]."""
        ...


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the original model takes it.

    Attributes:
        inputs: all that the model's processor made of it: `input_ids` [1, S], and of pictures what this
            model wants.
        pixels: [tiles, 3, H, W] of each picture.
        image_rows: [I] visual rows of each picture that the question came with.
        place: of the question, for errors.
        grids: [I] rows and columns of each picture's visual rows; None: the model's own.
        arranged: [I] of which rows of its tiles each picture's are made; None: they are its rows.
    """

    inputs: Mapping[str, Any]
    pixels: tuple[Tensor, ...]
    image_rows: tuple[int, ...]
    place: str
    grids: tuple[Grid, ...] | None = None
    arranged: tuple[Arrangement, ...] | None = None

    @property
    def input_ids(self) -> Tensor:
        """[1, S]."""
        ids: Tensor = self.inputs["input_ids"]
        return ids

    @property
    def of_pictures(self) -> Mapping[str, Tensor]:
        """What the original model takes besides the tokens; prompts of one length need no mask."""
        known = ("input_ids", "attention_mask")
        return {key: value for key, value in self.inputs.items() if key not in known}

    def with_ids(self, ids: Tensor) -> "EncodedPrompt":
        """Return the prompt with other tokens [1, S], of the same pictures."""
        return replace(self, inputs={**self.inputs, "input_ids": ids})


def encode(processor: Any, sample: Sample, facts: ModelFacts) -> EncodedPrompt:
    """Encode a question by the model's own processor and chat template.

    Args:
        processor: of the model.
        sample: the question and its pictures.
        facts: of the model, at the image size of the processor.

    Raises:
        DataError: a picture cannot be read, or the template fails on this prompt.
    """
    return encode_question(processor, sample.question, sample.images, sample.place, facts)


def encode_question(
    processor: Any, question: str, pictures: Pictures, place: str, facts: ModelFacts
) -> EncodedPrompt:
    """Do what `encode` does, for a question and pictures in any form; `place` names it in errors."""
    opened = [read_picture(one, f"images[{i}]") for i, one in enumerate(pictures_of(pictures))]
    images = [{"type": "image", "image": image} for image in opened]
    with _named(place), on_prompt_date(processor):
        encoded = processor.apply_chat_template(
            [_user(question, images)],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        family, sizes = family_that_read(facts), [(image.height, image.width) for image in opened]
        rows = family.image_rows(processor, sizes, facts)
        pixels = family.image_pixels(encoded, rows, facts)
        arranged = family.arrangements(processor, sizes, facts)
    if arranged is not None:  # behind a picture's own tiles may be those that complete a batch
        pixels = tuple(tiles[: one.tiles] for tiles, one in zip(pixels, arranged, strict=True))
    grids = family.image_grids(encoded, facts)
    return EncodedPrompt(dict(encoded), pixels, rows, place, grids, arranged)


def layout(model: Reader, prompt: EncodedPrompt, facts: ModelFacts | None = None) -> Layout:
    """Return where the rows of a prompt are.

    Args:
        model: that will run it.
        prompt: encoded by its processor.
        facts: at another image size; None: the model's.

    Raises:
        DataError: its image tokens are not those of its pictures, it has tokens without an embedding, or
            does not end with text.
    """
    facts = facts or model.facts
    try:
        return layout_of(
            prompt.input_ids[0].tolist(),
            facts,
            prompt.image_rows,
            spell=model.processor.tokenizer.convert_ids_to_tokens,
            grids=prompt.grids,
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
    asked = _user(sample.question, [{"type": "image"} for _ in sample.images])
    with _named(sample.place), on_prompt_date(processor):
        prompt = processor.apply_chat_template([asked], add_generation_prompt=True, tokenize=False)
    ids = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = sample.answer or ""
    found = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
    # Some templates read a model's turn as text, some as parts. Text first: one that reads parts leaves it
    # out or fails, while one that reads text would write parts as a list of Python's.
    for content in (answer, [{"type": "text", "text": answer}]):
        said = {"role": "assistant", "content": content}
        with suppress(Exception), on_prompt_date(processor):
            text = processor.apply_chat_template([asked, said], tokenize=False)
            whole = processor.tokenizer(text.rstrip(), add_special_tokens=False)["input_ids"]
            if whole[: len(ids)] == ids and answer.strip() in text[len(prompt) :]:
                found = whole[len(ids) :]
                break
    ended = next((place for place, token in enumerate(found) if token in ends), len(found))
    return (*found[:ended], *ends[:1]) if ended == len(found) else tuple(found[: ended + 1])


def encode_answered(
    processor: Any, sample: Sample, facts: ModelFacts
) -> tuple[EncodedPrompt, Tensor]:
    """Encode a question with its right answer forced behind it.

    Args:
        processor: as in `encode`.
        sample: with an answer.
        facts: as in `encode`.

    Returns:
        The prompt, followed by all tokens of the answer but the last; and all of these tokens, [A] int64.

    Raises:
        DataError: as `encode`.
    """
    prompt = encode(processor, sample, facts)
    answer = torch.tensor(answer_ids(processor, sample, facts.eos_token_ids))
    return prompt.with_ids(torch.cat([prompt.input_ids[0], answer[:-1]])[None]), answer


def _user(question: str, images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"role": "user", "content": [*images, {"type": "text", "text": question}]}


@contextmanager
def _named(place: str) -> Iterator[None]:
    """Turn a processor's failure into one line that names the question."""
    try:
        yield
    except VtcompressError:
        raise
    except Exception as failure:  # a processor and a template of the user's raise what they like
        reason = first_line(failure)
        raise DataError([f"{place}: the model's processor fails: {reason}"]) from failure


@dataclass(frozen=True)
class PromptRows:
    """A prompt as the decoder takes it, B = 1."""

    layout: Layout
    visual_embeds: Tensor  # [1, V, D]
    text_embeds: Tensor  # [1, T, D]
    visual_index: Tensor  # [1, V]
    text_index: Tensor  # [1, T]
    positions: Tensor | None  # [1, V + T, A]; None: the places
    deepstack: tuple[
        Tensor, ...
    ] = ()  # [1, V, D] of each of the decoder's first layers that has such

    @property
    def call(
        self,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, tuple[Tensor, ...]]:
        """Return what a decoder takes, in its order, but for the past."""
        indices = (self.visual_index, self.text_index)
        return (self.visual_embeds, self.text_embeds, *indices, self.positions, self.deepstack)

    def without_visual(self) -> "PromptRows":
        """Return what is left where visual embeddings are kept elsewhere; `with_visual` gives them back."""
        return replace(self, visual_embeds=self.visual_embeds[:, :0].clone(), deepstack=())

    def with_visual(self, visual: Tensor, deepstack: tuple[Tensor, ...]) -> "PromptRows":
        """Return the prompt with visual embeddings [1, V, D], and those of deepstack."""
        return replace(self, visual_embeds=visual, deepstack=deepstack)

    def parted(self, count: int) -> tuple["PromptRows", "PromptRows"]:
        """Return what comes in front of the last text rows, and these alone, as rows of two calls.

        Args:
            count: of the last text rows, which come behind all visual rows; 1 or more.
        """
        turned = self.positions
        first = replace(
            self,
            text_embeds=self.text_embeds[:, :-count],
            text_index=self.text_index[:, :-count],
            positions=None if turned is None else turned[:, :-count],
        )
        last = replace(
            self.without_visual(),
            visual_index=self.visual_index[:, :0],
            text_embeds=self.text_embeds[:, -count:],
            text_index=self.text_index[:, -count:],
            positions=None if turned is None else turned[:, -count:],
        )
        return first, last

    def filled_up(self, text: int) -> "PromptRows":
        """Return the prompt with so many text rows: those behind its own are the last again, at later places.

        No row of the prompt reads them, as the causal mask goes by places.
        """
        lacking = text - self.text_index.shape[1]
        if not lacking:
            return self
        later = torch.arange(1, lacking + 1, device=self.text_index.device)
        last = self.text_embeds[:, -1:].expand(-1, lacking, -1)
        turned = self.positions
        if turned is not None:
            turned = torch.cat([turned, turned[:, -1:].expand(-1, lacking, -1)], dim=1)
        return replace(
            self,
            text_embeds=torch.cat([self.text_embeds, last], dim=1),
            text_index=torch.cat([self.text_index, self.text_index[:, -1:] + later], dim=1),
            positions=turned,
        )


def fronts_of(model: Reader, prompt: EncodedPrompt) -> tuple[Front, ...]:
    """Return what the vision side makes of each picture's tiles, with what a choice among them reads."""
    return tuple(model.vision.front(tiles.to(model.embedding)) for tiles in prompt.pixels)


def see(
    vision: VisionEncoder, pixels: Tensor, arrangement: Arrangement | None = None
) -> VisualRows:
    """Return what a vision encoder makes of pixels of tiles, and of where their rows go."""
    arrays = () if arrangement is None else map(torch.from_numpy, arrangement.arrays)
    found = vision.features(
        pixels,
        *(a.to(pixels) if a.is_floating_point() else a.to(pixels.device) for a in arrays),
    )
    return VisualRows.given(found, chooses=vision.chooses)


@torch.inference_mode()
def embed(model: Reader, prompt: EncodedPrompt) -> PromptRows:
    """Turn a prompt into the decoder's two row groups.

    Raises:
        DataError: as `layout`.
    """
    return embed_to_train(model, prompt)


def embed_to_train(model: Reader, prompt: EncodedPrompt) -> PromptRows:
    """Do what `embed` does, with gradients for what of the vision side learns.

    Raises:
        DataError: as `layout`.
    """
    rows = layout(model, prompt)
    return _rows_of(model, rows, see_pictures(model, prompt))


def embed_seen(model: Reader, prompt: EncodedPrompt, seen: VisualRows) -> PromptRows:
    """Do what `embed` does with what `see_pictures` gave of the prompt's pictures, which do not run again.

    Raises:
        DataError: as `layout`.
    """
    return _rows_of(model, layout(model, prompt), seen)


def see_pictures(model: Reader, prompt: EncodedPrompt) -> VisualRows:
    """Return what the vision side makes of a prompt's pictures, whatever is asked about them."""
    if not prompt.pixels:
        return VisualRows(())
    arranged = prompt.arranged or [None] * len(prompt.pixels)
    pictures = [
        Pictured(tiles.to(model.embedding), rows, one)
        for tiles, rows, one in zip(prompt.pixels, prompt.image_rows, arranged, strict=True)
    ]
    look, chooses = partial(see, model.vision), model.vision.chooses
    return visual_rows(look, pictures, torch.cat, chooses=chooses)


def _rows_of(model: Reader, rows: Layout, seen: VisualRows) -> PromptRows:
    table = model.embedding
    text_ids = torch.from_numpy(rows.text_ids)[None].to(table.device)
    text = torch.nn.functional.embedding(text_ids, table)
    visual = text.new_empty((1, 0, text.shape[-1]))
    deepstack: list[Tensor] = []
    if seen.features:
        visual, *deepstack = (joined(part, 1) for part in seen.features)
    # Places of several grids of one picture were numbered anew, in numpy.
    kept = seen.kept.cpu() if isinstance(seen.kept, Tensor) else seen.kept
    visual_index, positions = rows.placed(kept, 1)
    return PromptRows(
        rows,
        visual,
        text,
        torch.from_numpy(visual_index).to(table.device),
        torch.from_numpy(rows.text_index)[None].to(table.device),
        None if positions is None else torch.from_numpy(positions).to(table.device),
        tuple(deepstack),
    )
