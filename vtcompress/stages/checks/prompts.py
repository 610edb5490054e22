"""Read before any weights are: all questions that a run will ask, as the runtime will read them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import DataError, ModelError
from compressor.facts import ModelFacts
from compressor.families.pictures.sizes import cell_grid
from compressor.methods import rows_kept_by
from compressor.progress import SILENT, Progress
from compressor.recipe import Recipe
from compressor.samples.layout import Grid, layout_of
from compressor.samples.pictures import load_image
from compressor.samples.prompt_date import PROMPT_DATE, asks_date, template_of
from compressor.samples.questions import Sample, notes_on
from export.graphs.limits import Limits, cache_limits
from export.runtime.messages import check_text, user_message
from vtcompress.stages.checks.processor import Readable, read_back, unknown_tokens
from vtcompress.stages.inputs import model_id, require_compress

MAX_PROBLEMS = 20


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


def check_recipe_prompts(
    recipe: Recipe, asked: Sequence[Asked], progress: Progress = SILENT
) -> None:
    """Refuse a model whose processor cannot be used, and questions that it cannot be asked.

    Args:
        recipe: names the model and its image size.
        asked: all questions of the run.
        progress: prints notes that do not stop the run.

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
        budget=recipe.image,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    limits = cache_limits(recipe.export, read.facts, rows_kept_by(recipe.methods, read.facts))
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
        processor: the model's own, of the right size.
        folder: the model's folder, for errors.
        facts: facts about the model.
        asked: all questions of the run.
        limits: limits of fixed caches; None: caches grow.
        progress: prints notes that do not stop the run.
    """
    readable = read_back(processor, folder, facts)
    note = unknown_tokens(readable, folder)
    if note:
        progress.say(note)
    if asks_date(template_of(processor)):
        day = f"{PROMPT_DATE:%d %B %Y}"
        progress.say(
            f"note: {folder}: the chat template writes a date: it is {day} in every prompt"
        )
    for words in notes_on(sample for group in asked for sample in group.samples):
        progress.say(f"note: {words}")
    opened = _opened(asked, readable)
    problems = [
        f"{sample.place}: {problem}"
        for group in asked
        for sample in group.samples
        for problem in _sample_problems(readable, sample, group, limits, opened)
    ]
    problems += [problem for picture in opened.values() for problem in picture.problems]
    problems = list(dict.fromkeys(problems))
    if problems:
        more = len(problems) - MAX_PROBLEMS
        raise DataError(problems[:MAX_PROBLEMS] + ([f"and {more} more"] if more > 0 else []))


@dataclass(frozen=True)
class _Opened:
    """A picture that was opened: what stands for it in a prompt, and why it cannot be read.

    One that cannot be read counts as small, so that its question is looked at all the same.
    """

    text: str
    text_beside_others: str
    problems: tuple[str, ...]
    cells: Grid | None


def _sample_problems(
    readable: Readable,
    sample: Sample,
    asked: Asked,
    limits: Limits | None,
    opened: Mapping[Path, _Opened],
) -> tuple[str, ...]:
    prompter, facts = readable.prompter, readable.facts
    new_tokens = asked.new_tokens
    try:
        check_text(sample.question, "question", prompter.image_token)
        pictures = [opened[path] for path in sample.images]
        texts = [p.text if len(pictures) == 1 else p.text_beside_others for p in pictures]
        ids = prompter.encode([user_message(sample.question, len(texts))], texts)
        if asked.forced:
            check_text(sample.answer or "", "answer", prompter.image_token)
            answer = prompter.encode_text(sample.answer or "")
            ids, new_tokens = ids + answer, max(1, new_tokens - len(answer))
        layout_of(
            ids,
            facts,
            [text.count(prompter.image_token) for text in texts],
            spell=prompter.tokenizer.id_to_token,
            grids=[picture.cells or facts.largest_grid for picture in pictures],
        )
    except DataError as error:
        return error.problems
    rows, positions = len(ids), facts.decoder.max_positions
    cached = rows
    if limits is not None:  # the decoder may get some visual rows alone
        visual = ids.count(facts.image_token_id)
        cached += visual * limits.visual_tokens // facts.picture_rows - visual
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
    elif limits is not None and cached + new_tokens - 1 > limits.max_context:
        problems.append(
            f"its prompt takes {cached} of the {limits.max_context} rows of the KV cache; {new_tokens} new "
            f"tokens do not fit: {shorter}, or raise export.profiles.max_context"
        )
    return tuple(problems)


def _opened(asked: Sequence[Asked], readable: Readable) -> dict[Path, _Opened]:
    """Open every picture once, all of them."""
    opened: dict[Path, _Opened] = {}
    for sample in (sample for group in asked for sample in group.samples):
        for path in sample.images:
            if path in opened:
                continue
            problems: tuple[str, ...] = ()
            images = readable.images
            height, width = images.size or (1, 1)
            try:
                other, wide = load_image(path).size[::-1]
                images.text(other, wide)
                height, width = other, wide
            except DataError as error:
                problems = tuple(f"{sample.place}: image: {line}" for line in error.problems)
            cells = cell_grid(images.steps, height, width)
            text = images.text(height, width)
            beside = (images.beside_others or images).text(height, width)
            opened[path] = _Opened(text, beside, problems, cells)
    return opened
