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
    def load(cls, path: Path, *, threads: int | None = None, verify: bool = True) -> "Runtime":
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
        manifest = artifact.manifest
        session = OnnxSession(path, manifest.graphs, threads=threads)
        return cls.on_session(session, path, manifest.model, manifest.image_token)

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
        self, question: str, images: Sequence[Path] = (), *, max_new_tokens: int = 64
    ) -> Iterator[str]:
        """Yield the greedy answer to a question about pictures, in pieces of text.

        Raises:
            DataError: a picture cannot be read, or the prompt does not fit the model.
        """
        stream = self.prompter.stream()
        for token, _ in self._greedy(question, images, max_new_tokens):
            if piece := stream.push(token):
                yield piece
        if piece := stream.finish():
            yield piece

    def answer(
        self, question: str, images: Sequence[Path] = (), *, max_new_tokens: int = 64
    ) -> Reply:
        """Return the whole greedy answer with the logits of its first token.

        Raises:
            DataError: as `generate`.
        """
        steps = list(self._greedy(question, images, max_new_tokens))
        tokens = tuple(token for token, _ in steps)
        return Reply(tokens, self.prompter.decode(tokens), steps[0][1])

    def prefill(self, layout: Layout, pixels: Array) -> tuple[Array, Past]:
        """Run a whole prompt; return the logits [vocab] at its last token and the cache."""
        text = self.session.embed(layout.text_ids[None])
        visual, _ = no_visual(text)
        if len(pixels):
            features = self.session.vision(pixels)
            visual = features.reshape(1, -1, features.shape[-1])
        logits, past = self.session.decode(
            visual,
            text,
            layout.visual_index[None],
            layout.text_index[None],
            self.session.empty_past(1),
        )
        return logits[0, -1], past

    def prepare(self, question: str, images: Sequence[Path]) -> tuple[Layout, Array]:
        """Return the rows of a prompt and its pixels [I, 3, S, S]."""
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
        return layout, pixels

    def _greedy(
        self, question: str, images: Sequence[Path], max_new_tokens: int
    ) -> Iterator[tuple[int, Array]]:
        layout, pixels = self.prepare(question, images)
        room = self.facts.decoder.max_positions - layout.rows
        if room < max_new_tokens:
            raise DataError(
                [
                    f"the prompt takes {layout.rows} of the model's {self.facts.decoder.max_positions} "
                    f"positions; {max_new_tokens} new tokens do not fit: shorten it or ask for at most "
                    f"{max(room, 0)}"
                ]
            )
        logits, past = self.prefill(layout, pixels)
        place = layout.rows
        for number in range(max_new_tokens):
            token = int(logits.argmax())
            yield token, logits
            if token in self.prompter.eos_ids or number + 1 == max_new_tokens:
                return
            text = self.session.embed(np.array([[token]], np.int64))
            visual, visual_index = no_visual(text)
            index = np.array([[place]], np.int64)
            rows, past = self.session.decode(visual, text, visual_index, index, past)
            logits, place = rows[0, -1], place + 1
