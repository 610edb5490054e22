"""Read before any weights are: the model's processor, as the runtime will read it, and all questions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from compressor.disk.model_json import optional_json
from compressor.errors import DataError, ModelError, ProblemsError
from compressor.facts import ModelFacts
from compressor.progress import SILENT, Progress
from compressor.recipe import Recipe
from compressor.samples.layout import layout_of
from compressor.samples.pictures import load_image
from compressor.samples.questions import Sample, notes_on
from export.checks.rewrite import QUESTION
from export.graphs.limits import Limits, cache_limits
from export.runtime.chat_template import find_template
from export.runtime.images import ImageProcessor
from export.runtime.messages import check_text, user_message
from export.runtime.prompter import Prompter
from vtcompress.stages.inputs import model_id, require_compress

MAX_PROBLEMS = 20
TEMPLATE = "chat_template.jinja"
NAMED_TOKENS = 3
"""Tokens without an embedding that a note names."""


@dataclass(frozen=True)
class Asked:
    """Questions that a stage will ask.

    Attributes:
        samples: the questions.
        new_tokens: longest answer.
        forced: the right answers are run too.
    """

    samples: Sequence[Sample]
    new_tokens: int = 1
    forced: bool = False


@dataclass(frozen=True)
class Readable:
    """A processor as the runtime reads it, and the model that it is for.

    Attributes:
        prompter: encodes questions.
        images: makes pixels.
        facts: of the model.
    """

    prompter: Prompter
    images: ImageProcessor
    facts: ModelFacts


def check_recipe_prompts(
    recipe: Recipe, asked: Sequence[Asked], progress: Progress = SILENT
) -> None:
    """Refuse a model whose processor cannot be used, and questions that it cannot be asked.

    Args:
        recipe: names the model and its image size.
        asked: all that will be asked.
        progress: is told what need not stop the run.

    Raises:
        ModelError: the processor does not fit the model, or the runtime cannot read it; all reasons.
        DataError: no chat template, or questions that do not fit; file and line of each.
    """
    require_compress("reading a model")
    from compressor.families.registry import read_processor

    read = read_processor(
        model_id(recipe),
        recipe.model.revision,
        image_size=recipe.export.image_size,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    limits = cache_limits(recipe.export, read.facts)
    check_prompts(read.processor, read.folder, read.facts, asked, limits, progress)


def processor_problems(model: str) -> tuple[str, ...]:
    """Return what is wrong with a model's processor; nothing: it can be used.

    Args:
        model: hub id or folder of a model that is supported.
    """
    from compressor.families.registry import read_processor

    try:
        read = read_processor(model)
        check_prompts(read.processor, read.folder, read.facts, ())
    except (ModelError, DataError) as error:
        return error.problems
    return ()


def check_prompts(
    processor: Any,
    folder: Path,
    facts: ModelFacts,
    asked: Sequence[Asked],
    limits: Limits | None = None,
    progress: Progress = SILENT,
) -> None:
    """Do what `check_recipe_prompts` does, for a processor that was read from a folder.

    Args:
        processor: fits the model.
        folder: that it was read from, for errors.
        facts: of the model.
        asked: all that will be asked.
        limits: of fixed caches; None: they grow.
        progress: is told what need not stop the run.
    """
    readable = _readable(processor, folder, facts)
    note = _unknown_tokens(readable, folder)
    if note:
        progress.say(note)
    for words in notes_on(sample for group in asked for sample in group.samples):
        progress.say(f"note: {words}")
    problems = [
        f"{sample.place}: {problem}"
        for group in asked
        for sample in group.samples
        for problem in _sample_problems(readable, sample, group, limits)
    ]
    problems += _picture_problems(asked)
    problems = list(dict.fromkeys(problems))
    if problems:
        more = len(problems) - MAX_PROBLEMS
        raise DataError(problems[:MAX_PROBLEMS] + ([f"and {more} more"] if more > 0 else []))


def _readable(processor: Any, folder: Path, facts: ModelFacts) -> Readable:
    """Read a processor from what an artifact will hold of it: what `save_pretrained` writes."""
    from compressor.families.guard import reading
    from compressor.families.registry import picture_steps

    problems: list[str] = []
    with TemporaryDirectory() as name:
        saved = Path(name)
        with reading(folder, "the processor (images, tokenizer, chat template)"):
            processor.save_pretrained(saved)
        prompter, images = None, None
        with _collected(problems, saved, folder):
            images = ImageProcessor(picture_steps(processor, facts, str(_image_file(folder))))
        with _collected(problems, saved, folder):
            prompter = Prompter.from_folder(
                saved, processor.image_token, facts.image_tokens, facts.eos_token_ids
            )
    if images is not None and images.size != (facts.image_size, facts.image_size):
        problems.append(
            f"{_image_file(folder)}: gives pictures of {images.size[0]} x {images.size[1]} pixels, but the "
            f"vision tower takes {facts.image_size} x {facts.image_size}: correct size and crop_size"
        )
    if prompter is not None:
        problems += _template_problems(prompter, folder)
    if prompter is None or images is None or problems:
        raise ModelError(problems)
    return Readable(prompter, images, facts)


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
    try:
        prompter.render([user_message(QUESTION)])
    except DataError as error:
        # What stands behind it is for those who write a conversation.
        why = error.problems[0].removeprefix("chat template: ").rpartition("; ")[0]
        return [
            f"{_template_file(folder)}: the chat template cannot ask a question with a picture: {why}; put "
            "the template of the model's authors here"
        ]
    return []


def _template_file(folder: Path) -> Path:
    """The file that a chat template stands in, for errors."""
    try:
        return find_template(folder, optional_json(folder / "tokenizer_config.json"))[1]
    except (DataError, ModelError):
        return folder / TEMPLATE


def _image_file(folder: Path) -> Path:
    """The file that configures an image processor."""
    nested = folder / "processor_config.json"
    with suppress(ModelError):
        if "image_processor" in optional_json(nested):
            return nested
    return folder / "preprocessor_config.json"


def _unknown_tokens(readable: Readable, folder: Path) -> str | None:
    """What to tell of a tokenizer that knows more tokens than the model; None: it does not."""
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


def _sample_problems(
    readable: Readable, sample: Sample, asked: Asked, limits: Limits | None
) -> tuple[str, ...]:
    prompter, facts, images = readable.prompter, readable.facts, len(sample.images)
    new_tokens = asked.new_tokens
    try:
        check_text(sample.question, "question", prompter.image_token)
        ids = prompter.encode([user_message(sample.question, images)]).ids
        if asked.forced:
            check_text(sample.answer or "", "answer", prompter.image_token)
            answer = prompter.encode_text(sample.answer or "")
            ids, new_tokens = ids + answer, max(1, new_tokens - len(answer))
        layout_of(
            ids,
            facts,
            (facts.image_tokens,) * images,
            spell=prompter.tokenizer.id_to_token,
        )
    except DataError as error:
        return error.problems
    rows, positions = len(ids), facts.decoder.max_positions
    shorter = "shorten the question, or give fewer pictures"
    if new_tokens > 1:
        shorter += ", or ask for fewer new tokens (validate.max_new_tokens)"
    problems = []
    if rows + new_tokens > positions:
        problems.append(
            f"its prompt takes {rows} of the model's {positions} positions; {new_tokens} new tokens do not "
            f"fit: {shorter}"
        )
    # The last token is picked and does not run.
    elif limits is not None and rows + new_tokens - 1 > limits.max_context:
        problems.append(
            f"its prompt takes {rows} of the {limits.max_context} rows of the KV cache; {new_tokens} new "
            f"tokens do not fit: {shorter}, or raise export.profiles.max_context"
        )
    return tuple(problems)


def _picture_problems(asked: Sequence[Asked]) -> Iterator[str]:
    """Open every picture once."""
    opened = set()
    for sample in (sample for group in asked for sample in group.samples):
        for path in sample.images:
            if path in opened:
                continue
            opened.add(path)
            try:
                load_image(path)
            except DataError as error:
                yield from (f"{sample.place}: image: {problem}" for problem in error.problems)
