"""What stages start from: the recipe's model and samples, and the packages that they need."""

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.contract.healing import HealedFile
from compressor.disk.files import is_folder
from compressor.errors import MissingExtraError, ProfileError, RecipeError
from compressor.facts import ModelFacts
from compressor.plan.plan import Plan
from compressor.profile import Profile
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.samples.questions import (
    Sample,
    check_pictures,
    check_unseen,
    choose,
    read_samples,
)
from compressor.samples.scores import EXACT
from compressor.schema.sections import CalibrateSection, ValidateSection
from compressor.schema.values import RunDType
from export.artifact.artifact import PROFILE_FILE
from export.backends.checked_on import CHECKED_ON
from export.backends.torch_device import AUTO, ON_CPU, device_for, room_on_gpus, why_no_gpu
from export.results.loss_report import NO_DATA_WORDS, NO_LIMIT_WORDS

if TYPE_CHECKING:
    from compressor.families import LoadedModel

Section = CalibrateSection | ValidateSection
ACCELERATE = "accelerate"
COMPRESS_PACKAGES = ("torch", "transformers", "optimum", "onnx", "onnxscript", "safetensors")


def require_compress(what: str) -> None:
    """Refuse a stage whose packages are not installed.

    Raises:
        MissingExtraError: names the extra.
    """
    if any(importlib.util.find_spec(name) is None for name in COMPRESS_PACKAGES):
        raise MissingExtraError(what, "compress")


def require_recipe(recipe: object) -> None:
    """Refuse what is no recipe, such as the name of one.

    Raises:
        TypeError: says what it is and how a recipe is made.
    """
    if not isinstance(recipe, Recipe):
        kind = type(recipe).__name__
        remedy = "give load_recipe(...) of a name or a file"
        raise TypeError(f"recipe: {recipe!r:.60} is a {kind}, not a recipe; {remedy}")


def require_runtime(what: str) -> None:
    """Refuse a stage that runs graphs where ONNX Runtime is not installed.

    Raises:
        MissingExtraError: names the extra.
    """
    if importlib.util.find_spec(CHECKED_ON.package) is None:
        raise MissingExtraError(what, CHECKED_ON.extra)


def calibration_samples(recipe: Recipe) -> tuple[Sample, ...]:
    """Return the samples that the recipe's calibration uses.

    Raises:
        RecipeError: no data is named.
        DataError: the data cannot be used, or has questions without pictures.
    """
    section = recipe.calibrate
    if section.data is None:
        problem = (
            "calibrate.data: the recipe's methods need calibration data; give `calibrate.data`"
        )
        raise RecipeError([problem])
    samples = choose(read_samples(section.data), section.samples, section.seed)
    check_pictures(samples, section.data.name)
    return samples


def validation_samples(recipe: Recipe) -> tuple[Sample, ...]:
    """Return the samples of the second check, none if the recipe names no data.

    Raises:
        DataError: the data cannot be used, or was learned from.
        PlanError: the recipe's healed weights cannot be read.
    """
    section = recipe.validation
    if section.data is None:
        return ()
    samples = choose(read_samples(section.data), section.samples, section.seed)
    check_not_learned(recipe, samples)
    return samples


def check_not_learned(recipe: Recipe, samples: Sequence[Sample]) -> None:
    """Refuse to judge on questions that the recipe's healed weights were trained on, or chosen by.

    Raises:
        DataError: they are among them.
        PlanError: the healed weights cannot be read.
    """
    if recipe.heal.file is not None:
        seen = HealedFile.read(recipe.heal.file).questions()
        problem = (
            f"were read when {recipe.heal.file.name} was trained (heal.file), and prove nothing"
        )
        check_unseen(samples, seen, problem, "judge by others")


def refuse_searched(recipe: Recipe, what: str) -> None:
    """Refuse a stage that needs a plan by rules.

    Raises:
        RecipeError: the recipe leaves its plan to a search.
        TypeError: it is none.
    """
    require_recipe(recipe)
    if recipe.searched is not None:
        raise RecipeError(
            [
                f"compress.{recipe.searched.name}: {what}, and this plan is found by a search; run "
                "`vtcompress search`, which measures what it needs itself"
            ]
        )


def open_profile(profile: Profile | str | Path | None) -> tuple[Profile | None, Path]:
    """Return a profile that was given as it is or by its file, and what errors call it.

    Raises:
        ProfileError: the file cannot be read, or is a shard's.
    """
    name = Path(PROFILE_FILE)
    if isinstance(profile, str | Path):
        name = Path(profile)
        profile = Profile.load(name)
    if profile is not None and profile.shard is not None:
        remedy = "make one profile of all shards with `vtcompress merge-profiles`"
        raise ProfileError([f"{name}: is shard {profile.shard} of a profile; {remedy}"])
    return profile, name


def open_plan(plan: Plan | str | Path) -> tuple[Plan, str]:
    """Return a plan that was given as it is or by its file, and what errors call it.

    Raises:
        PlanError: the file cannot be read.
    """
    if isinstance(plan, Plan):
        return plan, "the plan"
    return Plan.load(Path(plan)), f"{plan}: the plan"


def read_files(sources: Iterable[str | Path], *given: object) -> tuple[Path, ...]:
    """Return the files that a stage reads beside those that its recipe names.

    Args:
        sources: files that recipe, plan and profile were read from.
        given: plans and profiles, or their files; None: none.
    """
    return tuple(map(Path, (*sources, *(one for one in given if isinstance(one, str | Path)))))


def note_unread_data(recipe: Recipe, why: str, progress: Progress) -> None:
    """Say that the recipe's calibration data is not read, or what else it asks of a calibration in vain."""
    section, usual = recipe.calibrate, CalibrateSection()
    if section.data is not None:
        progress.say(f"note: {section.data}: calibration data that is not read: {why}")
    elif recipe.searched is None:  # else they say what the search chose by
        _note_draw("calibrate", section, usual, why, progress)


def note_no_validation(recipe: Recipe, progress: Progress) -> None:
    """Say what a recipe without validation data asks of a validation in vain."""
    section, why = recipe.validation, "there is no validation data"
    if section.data is None:
        _note_draw("validate", section, ValidateSection(), why, progress)
        if section.score != EXACT.name and recipe.searched is None:  # a search judges by it
            note_in_vain("validate.score", section.score, why, progress)


def warn_unjudged(recipe: Recipe, progress: Progress) -> None:
    """Say loudly, when nothing is left to refuse, that nobody will judge what answers lose, if so."""
    section = recipe.validation
    if section.data is None:
        progress.say(f"WARNING: {NO_DATA_WORDS}")
    elif not any(limit is not None for _, limit in section.loss):
        progress.say(f"WARNING: {NO_LIMIT_WORDS}")


def _note_draw(key: str, section: Section, usual: Section, why: str, progress: Progress) -> None:
    """Say which of the two settings of a draw have no effect."""
    for name in ("samples", "seed"):
        if (value := getattr(section, name)) != getattr(usual, name):
            note_in_vain(f"{key}.{name}", value, why, progress)


def note_in_vain(key: str, value: object, why: str, progress: Progress) -> None:
    """Say that a setting has no effect."""
    progress.say(f"note: {key}: {value}: has no effect: {why}")


def source_paths(recipe: Recipe) -> tuple[Path, ...]:
    """Return the files and folders that a recipe names and a run reads."""
    named = [
        recipe.calibrate.data,
        recipe.validation.data,
        recipe.heal.file,
        recipe.heal.data,
        *(path for method in recipe.methods for path in method.paths()),
    ]
    if recipe.model.id is not None and is_folder(Path(recipe.model.id)):
        named.append(Path(recipe.model.id))
    return tuple(path for path in named if path is not None)


def model_id(recipe: Recipe) -> str:
    """Return the hub id or folder of the recipe's model.

    Raises:
        RecipeError: it names none.
    """
    if recipe.model.id is None:
        raise RecipeError(["model.id: the recipe names no model; give `model.id`"])
    return recipe.model.id


def model_facts(recipe: Recipe) -> ModelFacts:
    """Return the facts of the recipe's model, without loading weights.

    Raises:
        VtcompressError: none is named, it cannot be read or is not supported.
    """
    require_compress("reading a model")
    from compressor.families.registry import describe

    return describe(
        model_id(recipe),
        recipe.model.revision,
        image_size=recipe.export.image_size,
        budget=recipe.image,
        trust_remote_code=recipe.model.trust_remote_code,
        context=recipe.export.profiles.max_context,
    )


def model_folder(recipe: Recipe, *, weights: bool = True) -> Path:
    """Return the folder of the recipe's model; a hub id is fetched, with its weights or without.

    Raises:
        VtcompressError: no model is named, or it cannot be found.
    """
    require_compress("reading a model")
    from compressor.families.registry import local_folder

    section = recipe.model
    return local_folder(
        model_id(recipe), section.revision, weights=weights, code=section.trust_remote_code
    )


def model_digest(recipe: Recipe) -> str:
    """Return the digest of the recipe's model; every weight file is read for it.

    Raises:
        VtcompressError: no model is named, or it cannot be found.
    """
    folder = model_folder(recipe)
    from compressor.families.folder import digest

    return digest(folder, code=recipe.model.trust_remote_code)


def load_model(
    recipe: Recipe,
    progress: Progress,
    known_digest: str | None = None,
    *,
    dtype: RunDType = "float32",
    device: str = ON_CPU,
    outline: bool = False,
    several: bool = False,
) -> "LoadedModel":
    """Load the recipe's model.

    Args:
        recipe: names the model.
        progress: announces it.
        known_digest: the model's digest, just taken by `model_digest`; None: it is taken here.
        dtype: in which it runs; where that is not the recipe's, a note says so.
        device: where it runs; see `check_device`.
        outline: leave the decoder's large weights in their files.
        several: let `auto` lay it over several devices; its decoder must then be run by layers that are read
            when they run, see `compressor.decoder.elsewhere`.

    Raises:
        VtcompressError: none is named, it cannot be loaded or is not supported.
    """
    require_compress("loading a model")
    from compressor.families import load, moved

    name = model_id(recipe)
    if recipe.model.dtype != dtype:
        why = f"the original runs in {dtype} where its weights are compressed"
        note_in_vain("model.dtype", recipe.model.dtype, why, progress)
    progress.say(f"loading {name}")
    model = load(
        name,
        revision=recipe.model.revision,
        image_size=recipe.export.image_size,
        budget=recipe.image,
        trust_remote_code=recipe.model.trust_remote_code,
        known_digest=known_digest,
        dtype=dtype,
        device=ON_CPU if device == AUTO else device,
        outline=outline,
    )
    if device != AUTO:
        return model
    weights, room = sum(weight.nbytes for weight in model.original.parameters()), room_on_gpus()
    chosen, told = device_for(weights, room), f"{weights / 1e9:,.1f} GB of weights"
    if not room:
        progress.say(f"device: {ON_CPU} ({told}; {why_no_gpu()})")
        return model
    if chosen != ON_CPU:
        progress.say(f"device: {chosen} ({told})")
        return moved(model, chosen)
    return _over_several(model, room, told, progress, several=several)


def _over_several(
    model: "LoadedModel", room: Mapping[str, int], told: str, progress: Progress, *, several: bool
) -> "LoadedModel":
    """Return a model that no GPU takes with its weights on all of them, if it can be so, and say where."""
    from compressor.families import device_map_of, laid_out

    missing = importlib.util.find_spec(ACCELERATE) is None
    if several and not missing and (places := device_map_of(model, room)) is not None:
        progress.say(f"device: {places.first} ({told}; {places.words})")
        return laid_out(model, places)
    why = "its layers cannot be laid over several devices"
    if not several:
        why = "here models run on one device"
    elif missing:
        why = f"its layers are laid over several devices by a package: pip install {ACCELERATE}"
    progress.say(f"device: {ON_CPU} ({told}, more than a GPU has room for; {why})")
    return model


def on_cpu(model: "LoadedModel") -> "LoadedModel":
    """Return a loaded model on the CPU, where graphs are made of it; it is no longer elsewhere then."""
    from compressor.families import moved

    return model if model.embedding.device.type == ON_CPU else moved(model, ON_CPU)


def check_streamed(device: str) -> None:
    """Refuse a device for a model that is read from its files layer by layer.

    Raises:
        RecipeError: it is not the CPU.
    """
    if device != ON_CPU:
        problem = f"stream: layers are read into the CPU's memory: leave the device ({device}) out"
        raise RecipeError([problem])
