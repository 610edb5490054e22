"""Finds the family of a model and loads it: a hub id or a local folder, safetensors only."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from compressor.disk.files import is_file, is_folder
from compressor.disk.paths import at_home
from compressor.errors import ModelError
from compressor.facts import ModelFacts
from compressor.families.base import Family, LoadedModel
from compressor.families.budget import check_budget_fits, kept_budget
from compressor.families.checkpoint import equal, headers, source_dtype
from compressor.families.configuration import plain_attention, problems_of, raw_config
from compressor.families.folder import CONFIG, digest, indexed, weight_files
from compressor.families.guard import broken_weight_files, quiet, reading
from compressor.families.hub import fetched
from compressor.families.known import family_of, family_that_read
from compressor.families.llama_text import EMBEDDING, HEAD, is_tied
from compressor.families.pictures.processors import values_of
from compressor.families.pictures.text import PictureForm
from compressor.families.processor import check_processor, load_processor, resized, saved_images
from compressor.families.told import by_files
from compressor.generation.settings import model_settings
from compressor.schema.sections import ImageSection
from compressor.schema.values import RunDType

HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "README.md")
HUB_CODE = "*.py"
NO_BUDGET = ImageSection()


def local_folder(
    model_id: str, revision: str | None = None, *, weights: bool = True, code: bool = False
) -> Path:
    """Return the local folder of a model; a hub id is fetched into the hub's cache.

    Args:
        model_id: hub id or local folder.
        revision: of a hub id.
        weights: fetch them too.
        code: fetch Python files too.

    Raises:
        ModelError: there is no such folder or hub model, or the hub cannot be reached.
    """
    folder = Path(at_home(model_id))
    if is_folder(folder):
        if revision is not None:
            raise ModelError(
                [f"model.revision: {revision!r} given for the local folder {folder}; remove it"]
            )
        return folder
    if is_file(folder):
        wanted = around_file(folder)
        raise ModelError([f"{model_id}: a file, and a model is a folder: give {wanted}"])
    if model_id.startswith((".", "/", "~")) or model_id.count("/") != 1:
        raise ModelError([f"{model_id}: no such folder, and no hub id of the form owner/name"])
    patterns = [p for p in HUB_FILES if weights or p != "*.safetensors"] + [HUB_CODE] * code
    return fetched(model_id, revision, tuple(patterns))


def around_file(path: Path) -> str:
    """Return which folder to give in place of a file: its own, if that holds a model."""
    if is_file(path.parent / CONFIG):
        return f"the folder that it lies in, {path.parent}"
    return f"the folder that holds the model's {CONFIG}"


def read_config(folder: Path, *, trust_remote_code: bool = False) -> tuple[Family, Any]:
    """Return the family and the transformers configuration of a model folder.

    Raises:
        ModelError: no readable `config.json`, or a model type that no family reads.
    """
    with by_files(folder):
        return _read_config(folder, trust_remote_code)


def _read_config(folder: Path, trust_remote_code: bool) -> tuple[Family, Any]:
    raw = raw_config(folder)
    where = str(folder / CONFIG)
    family = family_of(raw["model_type"], where)
    problems = [*problems_of(raw, folder), *family.problems(raw, where)]
    try:
        config = _config(folder, CONFIG, trust_remote_code=trust_remote_code)
    except ModelError as error:
        raise ModelError(problems or error.problems) from error.__cause__
    if problems:
        try:
            family.facts(config, model_name(str(folder)), where=where)
        except (ModelError, ValidationError) as error:
            told = {_key(line, where) for line in problems}
            more = getattr(error, "problems", ())
            problems += [line for line in more if _key(line, where) not in told]
        raise ModelError(problems)
    plain_attention(config)
    return family, config


def _key(problem: str, where: str) -> str:
    """The key of a configuration that a problem is about."""
    return problem.removeprefix(f"{where}: ").split(":")[0]


def saved_config(folder: Path, name: str) -> tuple[Family, Any]:
    """Return the family and the configuration that this tool kept of an original model.

    Args:
        folder: that it wrote.
        name: of the configuration's file in it.

    Raises:
        ModelError: the file cannot be read.
    """
    config = _config(folder, name)
    plain_attention(config)
    return family_of(config.model_type, str(folder / name)), config


def _config(folder: Path, name: str, *, trust_remote_code: bool = False) -> Any:
    from transformers import AutoConfig

    # The model's own code is not run once for every key that may be at fault.
    attempt = None if trust_remote_code or name != CONFIG else AutoConfig.from_pretrained
    with quiet(), reading(folder, name, attempt):
        return AutoConfig.from_pretrained(
            folder if name == CONFIG else folder / name,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
        )


def describe(
    model_id: str,
    revision: str | None = None,
    *,
    image_size: int | None = None,
    budget: ImageSection = NO_BUDGET,
    trust_remote_code: bool = False,
    context: int | None = None,
) -> ModelFacts:
    """Return the facts of a model without loading its weights.

    Args:
        model_id: hub id or local folder.
        revision: of a hub id.
        image_size: as in `load`.
        budget: as in `load`.
        trust_remote_code: as in `load`.
        context: rows of a conversation at most, within which a budget must leave room; None: all positions.

    Raises:
        ModelError: as `load`.
    """
    folder = local_folder(model_id, revision, weights=False, code=trust_remote_code)
    family, config = read_config(folder, trust_remote_code=trust_remote_code)
    with by_files(folder):
        return _facts(folder, family, config, model_name(model_id), image_size, budget, context)


def _facts(
    folder: Path,
    family: Family,
    config: Any,
    name: str,
    image_size: int | None,
    budget: ImageSection,
    context: int | None = None,
) -> ModelFacts:
    saved = saved_images(folder)
    changed = kept_budget(family, budget, saved)
    stored = headers(folder)
    names = stored or indexed(folder)
    tied = is_tied(
        bool(config.tie_word_embeddings),
        names,
        (lambda first, second: equal(folder, first, second)) if stored else None,
    )
    if config.dtype is None and stored:
        config.dtype = source_dtype(stored)
    try:
        facts = family.facts(
            config, name, where=str(folder / CONFIG), image_size=image_size, tied=tied
        )
    except ValidationError as failure:
        raise ModelError(
            f"{folder / CONFIG}: {'.'.join(map(str, e['loc']))}: {e['msg']}"
            for e in failure.errors()
        ) from failure
    family.check_stored(config, folder, stored, names)
    facts = family.with_pictures(facts, {**saved, **changed})
    check_budget_fits(family, facts, budget, saved, context)
    return facts.model_copy(
        update={
            "eos_token_ids": model_settings(folder).ends,
            "family_package": family.package,
            "budget": budget if budget.given else None,
        }
    )


@dataclass(frozen=True)
class ReadProcessor:
    """A model's processor without its weights.

    Attributes:
        folder: of the model.
        facts: of the model, at the image size that was asked for.
        native_facts: of the model as published.
        processor: fits `facts`.
        native: fits `native_facts`; the same object if no image size was asked for.
    """

    folder: Path
    facts: ModelFacts
    native_facts: ModelFacts
    processor: Any
    native: Any


def read_processor(
    model_id: str,
    revision: str | None = None,
    *,
    image_size: int | None = None,
    budget: ImageSection = NO_BUDGET,
    trust_remote_code: bool = False,
) -> ReadProcessor:
    """Return a model's processor within a budget for pictures; no weights are read.

    Raises:
        ModelError: the model is not supported, or its processor cannot be read or does not fit it.
    """
    folder = local_folder(model_id, revision, weights=False, code=trust_remote_code)
    family, config = read_config(folder, trust_remote_code=trust_remote_code)
    name = model_name(model_id)
    with by_files(folder):
        native_facts = _facts(folder, family, config, name, None, budget)
        native = load_processor(folder, family, config, trust_remote_code=trust_remote_code)
        saved = values_of(native.image_processor)
        for key, value in kept_budget(family, budget, saved).items():
            setattr(native.image_processor, key, value)
        check_processor(native, native_facts, folder)
        if image_size is None:
            return ReadProcessor(folder, native_facts, native_facts, native, native)
        facts = _facts(folder, family, config, name, image_size, budget)
        processor = resized(native, family, image_size)
        check_processor(processor, facts, folder)
        return ReadProcessor(folder, facts, native_facts, processor, native)


def picture_form(processor: Any, facts: ModelFacts, where: str = "image processor") -> PictureForm:
    """Return how a model takes pictures, as its family tells it.

    Args:
        processor: of the model, at the image size of the facts.
        facts: of the model.
        where: the image processor's file, for errors.

    Raises:
        ModelError: its processor does something that no step does; all such are named.
    """
    saved = values_of(processor.image_processor)
    family = family_that_read(facts)
    steps = family.picture_steps(saved, where)
    return PictureForm(
        token=processor.image_token,
        steps=steps,
        text=family.picture_text(processor),
        steps_beside_others=family.steps_beside_others(saved, where),
    )


def load(
    model_id: str,
    *,
    revision: str | None = None,
    image_size: int | None = None,
    budget: ImageSection = NO_BUDGET,
    trust_remote_code: bool = False,
    known_digest: str | None = None,
    dtype: RunDType = "float32",
    device: str = "cpu",
    outline: bool = False,
) -> LoadedModel:
    """Load an original model with its processor.

    Args:
        model_id: hub id or local folder.
        revision: of a hub id.
        image_size: side of the square input in pixels; None for the tower's own.
        budget: for pictures, of the recipe.
        trust_remote_code: let the model's repository run code of its own.
        known_digest: what `digest` gave for its folder; None: it is taken here.
        dtype: of its weights in memory.
        device: of torch, where they lie then.
        outline: leave the decoder's large weights in their files, with stand-ins in their places.

    Raises:
        ModelError: not found, not supported, without safetensors weights, or with a processor that does not
            fit it.
    """
    folder = local_folder(model_id, revision, code=trust_remote_code)
    family, config = read_config(folder, trust_remote_code=trust_remote_code)
    weight_files(folder)
    if problems := broken_weight_files(folder):
        raise ModelError(problems)
    read = read_processor(
        model_id,
        revision,
        image_size=image_size,
        budget=budget,
        trust_remote_code=trust_remote_code,
    )
    family.keep_budget(config, read.native)
    known_tied = read.facts.decoder.tied_embeddings
    with quiet():
        original, stored = (
            family.outline(folder, config, getattr(torch, dtype), tied=known_tied)
            if outline
            else (family.original(folder, config, getattr(torch, dtype)).to(device), {})
        )
    tensors = family.tensors(original)
    tied = tensors[HEAD].data_ptr() == tensors[EMBEDDING].data_ptr()
    return LoadedModel(
        facts=_as_loaded(read.facts, tied),
        native_facts=_as_loaded(read.native_facts, tied),
        folder=folder,
        digest=known_digest or digest(folder, code=trust_remote_code),
        original=original,
        processor=read.processor,
        native_processor=read.native,
        vision=family.vision(config, image_size=read.facts.image_size, source=original).to(device),
        tensors=tensors,
        stored=stored,
    )


def _as_loaded(facts: ModelFacts, tied: bool) -> ModelFacts:
    """Return facts as loaded weights tell them: before, the files may not all have been here."""
    return facts.model_copy(
        update={"decoder": facts.decoder.model_copy(update={"tied_embeddings": tied})}
    )


def model_name(model_id: str) -> str:
    """Return a hub id as it is, and of a folder its own name: artifacts hold no paths.

    A folder that is just called `model` goes by the name of the folder around it.
    """
    folder = Path(model_id)
    if not is_folder(folder):
        return model_id
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" else folder.name
