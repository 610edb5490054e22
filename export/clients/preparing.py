"""Prompts for clients whose own picture processors do not fit: token ids and pixels, by the runtime's steps.

Needs numpy, Pillow and tokenizers; neither torch nor transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from compressor.samples.pictures import Pictures, pictures_of
from export.clients.pack_file import PackFile
from export.runtime.images import ImageProcessor, looked_at
from export.runtime.messages import Message, user_message
from export.runtime.prompter import Prompter
from export.session.arrays import Array

if TYPE_CHECKING:
    from export.clients.packing import Packing


class PreparedPrompt(NamedTuple):
    """A prompt as a client's graphs take it.

    Attributes:
        input_ids: [1, S] int32.
        pixel_values: [I, 3, H, W] in the graphs' dtype; without pictures I is 0.
        image_tokens: [I] int64, how many of the ids stand for each tile.
    """

    input_ids: Array
    pixel_values: Array
    image_tokens: Array


@dataclass(frozen=True)
class PromptMaker:
    """Chat template, tokenizer and picture steps of a packed folder; made by `load`.

    Attributes:
        prompter: writes tokens.
        images: turns pictures into pixels.
        facts: what the folder says of itself.
    """

    prompter: Prompter
    images: ImageProcessor
    facts: PackFile

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a packed folder.

        Raises:
            PackError: it is none.
            ModelError: its tokenizer's files are damaged.
        """
        folder = Path(folder)
        facts = PackFile.load(folder)
        model, form = facts.model, facts.pictures
        return cls(
            Prompter.from_folder(folder, form.token, model.eos_token_ids),
            ImageProcessor.of_artifact(form, folder, model.tile_rows, model.arrangement),
            facts,
        )

    def question(self, question: str, images: Pictures = ()) -> PreparedPrompt:
        """Return the prompt of a question about pictures, which may be paths, PIL images, arrays or bytes."""
        pictures = pictures_of(images)
        return self.conversation([user_message(question, len(pictures))], pictures)

    def conversation(self, messages: Sequence[Message], images: Pictures = ()) -> PreparedPrompt:
        """Return the prompt of a conversation, up to where the model's answer begins.

        Args:
            messages: oldest turn first.
            images: all its pictures in their order.

        Raises:
            DataError: a picture cannot be read, or the messages do not fit the pictures or the template.
        """
        seen = looked_at(images, self.images)
        ids = self.prompter.encode(messages, [one.text for one in seen])
        height, width = self.images.size or (0, 0)
        none = np.zeros((0, 3, height, width), np.float32)
        pixels = np.concatenate([none, *(one.pixels for one in seen)])
        tokens = [one.rows // len(one.pixels) for one in seen for _ in one.pixels]
        return PreparedPrompt(
            np.array([ids], np.int32),
            np.ascontiguousarray(pixels, self.facts.dtype),
            np.array(tokens, np.int64),
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of an answer's token ids."""
        return self.prompter.decode(ids)


def beginning_written(packing: "Packing", template: str) -> str:
    """Return a chat template that writes the beginning token where the tokenizer would add it.

    For clients that add no special tokens to what a template wrote.
    """
    facts, form = packing.facts, packing.manifest.picture_form
    prompter = Prompter.from_folder(packing.artifact.folder, form.token, facts.eos_token_ids)
    start = prompter.special_tokens.get("bos_token")
    added = prompter.encode_text("a", add_special_tokens=True)
    bare = prompter.encode_text("a")
    turn = {"role": "user", "content": [{"type": "text", "text": "a"}]}
    written = start is not None and prompter.render([turn]).startswith(start)
    return template if written or added == bare else "{{ bos_token }}" + template
