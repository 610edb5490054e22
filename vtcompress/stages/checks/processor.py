"""A model's processor as the runtime will read it from an artifact: tried before any weights are read."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from compressor.disk.model_json import optional_json
from compressor.errors import DataError, ModelError, ProblemsError
from compressor.facts import ModelFacts
from export.checks.rewrite import QUESTION
from export.runtime.chat_template import find_template
from export.runtime.images import ImageProcessor
from export.runtime.prompter import Prompter

TEMPLATE = "chat_template.jinja"
NAMED_TOKENS = 3
"""Tokens without an embedding that a note names."""


@dataclass(frozen=True)
class Readable:
    """A processor as the runtime reads it, and the model that it is for.

    Attributes:
        prompter: encodes questions.
        images: makes pixels.
        facts: facts about the model.
    """

    prompter: Prompter
    images: ImageProcessor
    facts: ModelFacts


def read_back(processor: Any, folder: Path, facts: ModelFacts) -> Readable:
    """Read a processor from what an artifact will hold of it: what `save_pretrained` writes.

    Args:
        processor: the model's own.
        folder: the model's folder, for errors.
        facts: facts about the model.

    Raises:
        ModelError: the runtime cannot read it, or it gives pictures of another size; all reasons.
    """
    from compressor.families.guard import reading
    from compressor.families.pictures.processors import size_keys, values_of
    from compressor.families.registry import picture_form
    from compressor.families.told import image_file

    problems: list[str] = []
    with TemporaryDirectory() as name:
        saved = Path(name)
        with reading(folder, "the processor (images, tokenizer, chat template)"):
            processor.save_pretrained(saved)
        prompter, images = None, None
        with _collected(problems, saved, folder):
            form = picture_form(processor, facts, image_file(folder))
            rows = (facts.tile_rows, facts.arrangement)
            images = ImageProcessor.of_artifact(form, saved, *rows)
        with _collected(problems, saved, folder):
            prompter = Prompter.from_folder(saved, processor.image_token, facts.eos_token_ids)
    if images is not None and images.size != (
        None if facts.sizes_differ else facts.largest_picture
    ):
        given, wanted = (_pixels(size) for size in (images.size, facts.largest_picture))
        problems.append(
            f"{image_file(folder)}: gives pictures of {given} pixels, but the vision tower takes {wanted}: "
            f"correct {size_keys(values_of(processor.image_processor))}"
        )
    if prompter is not None:
        problems += _template_problems(prompter, folder)
    if prompter is None or images is None or problems:
        raise ModelError(problems)
    return Readable(prompter, images, facts)


def _pixels(size: tuple[int, int] | None) -> str:
    return "any" if size is None else f"{size[0]} x {size[1]}"


@contextmanager
def _collected(problems: list[str], saved: Path, folder: Path) -> Iterator[None]:
    """Keep problems with the files of `saved`, told of those of `folder` that they came from."""
    try:
        yield
    except ProblemsError as error:
        for problem in error.problems:
            named = problem.replace(str(saved / TEMPLATE), str(_template_file(folder)))
            problems.append(named.replace(str(saved), str(folder)))


def _template_problems(prompter: Prompter, folder: Path) -> list[str]:
    """Try the chat template on a question with a picture; one without need not be possible."""
    if (why := prompter.why_unasked(QUESTION)) is None:
        return []
    return [
        f"{_template_file(folder)}: the chat template cannot ask a question with a picture: {why}; put "
        "the template of the model's authors here"
    ]


def _template_file(folder: Path) -> Path:
    """The file that a chat template stands in, for errors."""
    try:
        return find_template(folder, optional_json(folder / "tokenizer_config.json"))[1]
    except (DataError, ModelError):
        return folder / TEMPLATE


def unknown_tokens(readable: Readable, folder: Path) -> str | None:
    """Return a note on a tokenizer that knows more tokens than the model; None: it does not."""
    vocab, image = readable.facts.decoder.vocab, readable.facts.image_token_id
    known = readable.prompter.tokenizer.get_vocab(with_added_tokens=True).items()
    beyond = sorted((at, text) for text, at in known if at >= vocab and at != image)
    if not beyond:
        return None
    named = ", ".join(f"{text!r} (id {at})" for at, text in beyond[:NAMED_TOKENS])
    more = ", ..." if len(beyond) > NAMED_TOKENS else ""
    return (
        f"note: {folder}: the tokenizer has {len(beyond)} tokens without a row in the embedding table of "
        f"{vocab}: {named}{more}; questions that use them are refused"
    )
