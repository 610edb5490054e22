"""Runs an artifact from image files to text, with numpy and one backend; no torch, no transformers."""

import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Unpack

from compressor.errors import ArtifactWarning, BackendError, ModelError
from compressor.facts import ModelFacts
from compressor.families.pictures.text import PictureForm
from compressor.generation.settings import model_settings
from compressor.progress import SILENT, Progress
from compressor.samples.made_pictures import MADE_PICTURES
from compressor.samples.pictures import Pictures, pictures_of
from compressor.schema.arguments import check_threads, check_whole
from export.artifact.artifact import Artifact
from export.artifact.manifest import shortcoming
from export.backends.checked_on import CHECKED_ON
from export.backends.compared import uncompared
from export.backends.registry import find_backend, open_session
from export.runtime.answering import Answering
from export.runtime.conversation import Conversation
from export.runtime.core import BATCH_ROWS, PROMPTS_AHEAD, Reply, RuntimeCore
from export.runtime.image_prefix import ImagePrefix, prefill_images
from export.runtime.images import ImageProcessor
from export.runtime.messages import Message, user_message
from export.runtime.prompter import ASKED, Prompter
from export.runtime.sampling import AnswerKeys, AnswerOptions
from export.runtime.sequence import NOTHING, Prompt
from export.session.session import Session


class Runtime(RuntimeCore):
    """A model that answers questions about pictures, from an artifact (`load`) or on a session at hand."""

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        threads: int | None = None,
        verify: bool = True,
        backend: str = CHECKED_ON.name,
        precision: str = "f32",
        preload: bool = False,
        warm_up: bool = False,
        mapped: bool = False,
        gpu: int = 0,
        progress: Progress = SILENT,
    ) -> "Runtime":
        """Load an artifact.

        Args:
            path: its folder.
            threads: of one operator, at most as many as there are processors; None lets the backend choose.
            verify: compare every file's sha256 with the manifest first.
            backend: one of `export.backends.registry.BACKENDS`.
            precision: `f32`, or `bf16` where backend and processor have it.
            preload: load all graphs now instead of each when it is first needed.
            warm_up: load them, and answer one question about a made picture, so that the first answer is as
                quick as later ones.
            mapped: leave weights in the mapped file: less memory, a little slower; where the backend can.
            gpu: number of the GPU, for backends that run on one.
            progress: shows how much of the files was compared.

        Raises:
            ArtifactError: not an artifact, altered, of a newer format, or changed while it was loaded.
            MissingExtraError: the backend is not installed.
            BackendError: the backend cannot run here, or not in this precision.

        Warns:
            ArtifactWarning: its checks failed, were not judged or did not run; or this backend was never
                compared with ONNX Runtime on it.
        """
        check_threads(threads)
        check_whole("gpu", gpu, 0)
        if threads is not None and not find_backend(backend).takes_threads:
            raise BackendError(f"{backend}: runs on the GPU, in no threads; leave out threads")
        artifact = Artifact.open(path, verify=verify, progress=progress)
        if (words := shortcoming(artifact.manifest)) is not None:
            warnings.warn(words, ArtifactWarning, stacklevel=2)
        session = open_session(artifact, backend, precision, threads, mapped=mapped, gpu=gpu)
        if (words := uncompared(artifact, session, backend, precision)) is not None:
            warnings.warn(words, ArtifactWarning, stacklevel=2)
        if preload:
            session.load()
        folder, manifest = artifact.folder, artifact.manifest
        runtime = cls.on_session(session, folder, manifest.model, manifest.picture_form)
        artifact.check_unchanged()
        if warm_up:
            runtime.warm_up()
        return runtime

    @classmethod
    def on_session(
        cls,
        session: Session,
        folder: Path,
        facts: ModelFacts,
        form: PictureForm,
    ) -> "Runtime":
        """Return a runtime that uses any session with the tokenizer and processor files of a folder.

        Args:
            session: runs the graphs.
            folder: of the files.
            facts: of the model.
            form: how the model takes pictures, as a manifest holds it.

        Raises:
            ModelError: these files cannot be read, have another image token than the model, or a chat
                template that asks no question at all.
        """
        prompter = Prompter.from_folder(folder, form.token, facts.eos_token_ids)
        if prompter.image_token_id != facts.image_token_id:
            problem = (
                f"{folder / 'tokenizer.json'}: {form.token!r} has the id {prompter.image_token_id}, but the "
                f"model looks for pictures at the id {facts.image_token_id}: mend the model's folder and "
                "export it anew"
            )
            raise ModelError([problem])
        prompter.check_template()
        images = ImageProcessor.of_artifact(form, folder, facts.tile_rows, facts.arrangement)
        return cls(session, facts, prompter, images, model_settings(folder))

    def warm_up(self) -> None:
        """Answer one question about a made picture with two tokens; what comes of it is forgotten.

        Raises:
            DataError: the model's caches have no room for it.
        """
        self.answer(ASKED, MADE_PICTURES[0].image(), max_new_tokens=2)

    def generate(
        self,
        question: str,
        images: Pictures = (),
        **options: Unpack[AnswerKeys],
    ) -> Answering:
        """Return the answer to a question about pictures as an iterator over pieces of text.

        Args:
            question: what is asked.
            images: one picture or several, in front of the question: paths, data URLs, PIL images, arrays
                [H, W, 3] of uint8, or bytes or open binary files of image files. None is no picture.
            options: `max_new_tokens`, `temperature`, `top_p`, `seed`, `generation_config`; see
                `AnswerOptions`.

        Raises:
            DataError: a picture cannot be read, the prompt does not fit the model, an option makes no sense.
        """
        started = time.perf_counter()
        pictures = pictures_of(images)
        self.check_question(question)
        messages = [user_message(question, len(pictures))]
        return self._next_turn(messages, pictures, AnswerOptions(**options), started)

    def generate_from(
        self,
        messages: Sequence[Message],
        images: Pictures = (),
        **options: Unpack[AnswerKeys],
    ) -> Answering:
        """Return the next turn of a whole conversation; nothing of it is kept, as `chat` does.

        Args:
            messages: the turns, `{"role": ..., "content": ...}` with an `{"type": "image"}` block a picture.
            images: all pictures, in the order of their blocks.
            options: as of `generate`.

        Raises:
            DataError: as `generate`; or the pictures are not as many as the blocks.
        """
        started = time.perf_counter()
        return self._next_turn(messages, images, AnswerOptions(**options), started)

    def _next_turn(
        self, messages: Sequence[Message], images: Pictures, wanted: AnswerOptions, started: float
    ) -> Answering:
        seen = self.look(images)
        return self.answering(self.encode(messages, seen), seen, NOTHING, wanted, started)

    def chat(self) -> Conversation:
        """Return a conversation of several turns that keeps its cache between them."""
        return Conversation(self)

    def prefill_image(self, images: Pictures) -> ImagePrefix:
        """Look at pictures once, as `generate` takes them; return what answers many questions about them.

        Raises:
            DataError: a picture cannot be read, or none is given.
        """
        return prefill_images(self, images)

    def answer(
        self,
        question: str,
        images: Pictures = (),
        *,
        max_new_tokens: int = 64,
        generation_config: bool = True,
    ) -> Reply:
        """Return the whole greedy answer with the logits of its first token; options as in `generate`.

        Raises:
            DataError: as `generate`.
        """
        prompt = self.prepare(question, images)
        wanted = AnswerOptions(max_new_tokens, generation_config=generation_config)
        return self.replies([prompt], wanted)[0]

    def answers(
        self,
        asked: Sequence[tuple[str, Pictures]],
        *,
        max_new_tokens: int = 64,
        generation_config: bool = True,
    ) -> Iterator[tuple[int, Reply]]:
        """Yield the place and the reply of every question; prompts of equal layout run as one batch.

        Args:
            asked: questions with their pictures, as `generate` takes them.
            max_new_tokens: longest answer.
            generation_config: as in `generate`.

        Raises:
            DataError: as `generate`.
        """
        wanted = AnswerOptions(max_new_tokens, generation_config=generation_config)
        for start in range(0, len(asked), PROMPTS_AHEAD):
            groups: dict[bytes, list[tuple[int, Prompt]]] = {}
            for place, (question, images) in enumerate(asked[start : start + PROMPTS_AHEAD], start):
                prompt = self.prepare(question, images)
                groups.setdefault(prompt.layout_key, []).append((place, prompt))
            for group in groups.values():
                rows = group[0][1].layout.rows
                size = min(max(1, BATCH_ROWS // rows), self.session.max_batch or len(group))
                for first in range(0, len(group), size):
                    batch = group[first : first + size]
                    replies = self.replies([prompt for _, prompt in batch], wanted)
                    yield from zip((place for place, _ in batch), replies, strict=True)
