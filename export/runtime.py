"""Runs an artifact from image files to text, with numpy and one backend; no torch, no transformers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compressor.dims import ModelFacts
from compressor.errors import DataError
from compressor.layout import Layout, layout_of
from export.artifact import Artifact
from export.preprocess import ImageProcessor
from export.prompt import Prompter, user_message
from export.sessions import Array, OnnxSession, Past, Session, no_visual

# Rows of one batch bound its memory; encoded prompts wait for others of their layout, but not for ever.
BATCH_ROWS = 4096
WINDOW = 256


@dataclass(frozen=True)
class Prompt:
    """A prompt ready to run.

    Attributes:
        layout: its rows.
        pixels: [I, 3, S, S] float32.
    """

    layout: Layout
    pixels: Array

    @property
    def layout_key(self) -> bytes:
        """Equal for prompts that can run as one batch."""
        return self.layout.visual_index.tobytes() + b"|" + self.layout.text_index.tobytes()


@dataclass(frozen=True)
class Reply:
    """A greedy answer.

    Attributes:
        token_ids: its tokens, the ending one included.
        text: without special tokens.
        first_logits: [vocab] float32 at the last prompt token.
    """

    token_ids: tuple[int, ...]
    text: str
    first_logits: Array


class Runtime:
    """A model that answers questions about pictures.

    Args:
        session: runs the graphs.
        facts: of the model.
        prompter: writes and reads tokens.
        images: turns pictures into pixels.
    """

    def __init__(
        self, session: Session, facts: ModelFacts, prompter: Prompter, images: ImageProcessor
    ) -> None:
        self.session = session
        self.facts = facts
        self.prompter = prompter
        self.images = images

    @classmethod
    def load(
        cls, path: str | Path, *, threads: int | None = None, verify: bool = True
    ) -> "Runtime":
        """Load an artifact.

        Args:
            path: its folder.
            threads: of one operator; None lets ONNX Runtime choose.
            verify: compare every file's sha256 with the manifest first.

        Raises:
            ArtifactError: not an artifact, altered, or of a newer format.
            MissingExtraError: ONNX Runtime is not installed.
        """
        artifact = Artifact.open(path, verify=verify)
        folder, manifest = artifact.folder, artifact.manifest
        session = OnnxSession(folder, manifest.graphs, threads=threads)
        return cls.on_session(session, folder, manifest.model, manifest.image_token)

    @classmethod
    def on_session(
        cls, session: Session, folder: Path, facts: ModelFacts, image_token: str
    ) -> "Runtime":
        """Return a runtime that uses any session with the tokenizer and processor files of a folder."""
        prompter = Prompter.from_folder(
            folder, image_token, facts.visual_tokens, eos_ids=facts.eos_token_ids
        )
        return cls(session, facts, prompter, ImageProcessor.from_folder(folder))

    def generate(
        self, question: str, images: Sequence[str | Path] = (), *, max_new_tokens: int = 64
    ) -> Iterator[str]:
        """Yield the greedy answer to a question about pictures, in pieces of text.

        Raises:
            DataError: a picture cannot be read, or the prompt does not fit the model.
        """
        stream = self.prompter.stream()
        for tokens, _ in self._greedy([self.prepare(question, images)], max_new_tokens):
            if piece := stream.push(int(tokens[0])):
                yield piece
        if piece := stream.finish():
            yield piece

    def answer(
        self, question: str, images: Sequence[str | Path] = (), *, max_new_tokens: int = 64
    ) -> Reply:
        """Return the whole greedy answer with the logits of its first token.

        Raises:
            DataError: as `generate`.
        """
        return self._replies([self.prepare(question, images)], max_new_tokens)[0]

    def answers(
        self, asked: Sequence[tuple[str, Sequence[str | Path]]], *, max_new_tokens: int = 64
    ) -> Iterator[tuple[int, Reply]]:
        """Yield the place and the reply of every question; prompts of equal layout run as one batch.

        Args:
            asked: questions with their pictures.
            max_new_tokens: longest answer.

        Raises:
            DataError: as `generate`.
        """
        for start in range(0, len(asked), WINDOW):
            groups: dict[bytes, list[tuple[int, Prompt]]] = {}
            for place, (question, images) in enumerate(asked[start : start + WINDOW], start):
                prompt = self.prepare(question, images)
                groups.setdefault(prompt.layout_key, []).append((place, prompt))
            for group in groups.values():
                size = max(1, BATCH_ROWS // group[0][1].layout.rows)
                for first in range(0, len(group), size):
                    batch = group[first : first + size]
                    replies = self._replies([prompt for _, prompt in batch], max_new_tokens)
                    yield from zip((place for place, _ in batch), replies, strict=True)

    def prepare(self, question: str, images: Sequence[str | Path]) -> Prompt:
        """Return a prompt ready to run: its rows and its pixels."""
        encoded = self.prompter.encode([user_message(question, len(images))])
        layout = layout_of(
            encoded.ids,
            image_token_id=self.facts.image_token_id,
            visual_tokens=self.facts.visual_tokens,
        )
        size = self.facts.image_size
        pixels = np.zeros((0, 3, size, size), np.float32)
        if images:
            pixels = np.stack([self.images(path) for path in images])
        return Prompt(layout, pixels)

    def prefill(self, prompts: Sequence[Prompt]) -> tuple[Array, Past]:
        """Run whole prompts of equal layout; return the logits [B, vocab] at their ends and the cache."""
        layout, batch = prompts[0].layout, len(prompts)
        text = self.session.embed(np.stack([p.layout.text_ids for p in prompts]))
        visual, _ = no_visual(text)
        if layout.images:
            features = self.session.vision(np.concatenate([p.pixels for p in prompts]))
            visual = features.reshape(batch, -1, features.shape[-1])
        logits, past = self.session.decode(
            visual,
            text,
            np.tile(layout.visual_index, (batch, 1)),
            np.tile(layout.text_index, (batch, 1)),
            self.session.empty_past(batch),
        )
        return logits[:, -1], past

    def _replies(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Reply]:
        steps = list(self._greedy(prompts, max_new_tokens))
        replies = []
        for row in range(len(prompts)):
            tokens = until_end([int(tokens[row]) for tokens, _ in steps], self.prompter.eos_ids)
            replies.append(Reply(tokens, self.prompter.decode(tokens), steps[0][1][row]))
        return replies

    def _greedy(
        self, prompts: Sequence[Prompt], max_new_tokens: int
    ) -> Iterator[tuple[Array, Array]]:
        """Yield each step's tokens [B] and the logits [B, vocab] they come from, until all have ended."""
        place = prompts[0].layout.rows
        self._check_room(place, max_new_tokens)
        logits, past = self.prefill(prompts)
        ended = np.zeros(len(prompts), dtype=bool)
        for number in range(max_new_tokens):
            tokens = logits.argmax(axis=-1)
            yield tokens, logits
            ended |= np.isin(tokens, self.prompter.eos_ids)
            if ended.all() or number + 1 == max_new_tokens:
                return
            text = self.session.embed(tokens[:, None])
            visual, visual_index = no_visual(text)
            index = np.full((len(prompts), 1), place, np.int64)
            rows, past = self.session.decode(visual, text, visual_index, index, past)
            logits, place = rows[:, -1], place + 1

    def _check_room(self, rows: int, max_new_tokens: int) -> None:
        positions = self.facts.decoder.max_positions
        if rows + max_new_tokens > positions:
            problem = (
                f"the prompt takes {rows} of the model's {positions} positions; {max_new_tokens} new "
                f"tokens do not fit: shorten it or ask for at most {max(positions - rows, 0)}"
            )
            raise DataError([problem])


def until_end(tokens: Sequence[int], ends: Sequence[int]) -> tuple[int, ...]:
    """Cut what a batch went on with after the end of an answer; the ending token stays."""
    for place, token in enumerate(tokens):
        if token in ends:
            return tuple(tokens[: place + 1])
    return tuple(tokens)
