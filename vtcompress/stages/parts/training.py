"""The stage that trains what a method learns: routers, a projector."""

import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from compressor.contract.asked import method_words
from compressor.contract.learned import PartTraining
from compressor.contract.method import Method
from compressor.disk.files import write_bytes
from compressor.disk.gate_file import stable_header
from compressor.disk.weight_file import MODEL_DIGEST, PART_OF
from compressor.errors import RecipeError
from compressor.facts import ModelFacts
from compressor.profile import Profile
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.samples.questions import check_answered, choose, data_digest, read_samples
from compressor.schema.arguments import check_above_zero
from export.backends.torch_device import ON_CPU, check_device
from vtcompress.console import shown
from vtcompress.stages.checks.prompts import Asked
from vtcompress.stages.inputs import (
    model_facts,
    open_profile,
    read_files,
    require_compress,
    require_recipe,
    source_paths,
)
from vtcompress.stages.parts.report import PartsReport
from vtcompress.stages.training.model import (
    Chosen,
    compressed_to_train,
    model_to_train,
    refuse_both,
)
from vtcompress.stages.training.place import SUFFIX, TrainedFile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

START_SAMPLES = 64
"""Prompts that a training looks at to find where to start."""


def train_parts(
    recipe: Recipe,
    data: str | Path,
    output: str | Path,
    *,
    train: PartTraining | None = None,
    minutes: float | None = None,
    profile: Profile | str | Path | None = None,
    device: str = ON_CPU,
    overwrite: bool = False,
    progress: Progress | bool | None = None,
) -> PartsReport:
    """Train what a method of the recipe learns; write it, and a report as JSON beside it.

    The compressed model is trained towards the original's next-token distributions at the right answers
    (self-distillation); nothing but the method's own tensors changes. Trained is the entry that names no
    file of them; what others name is taken as it is. A run that was stopped goes on from its checkpoint, a
    hidden file beside `output`.

    Args:
        recipe: names the model and the methods.
        data: jsonl file of questions with pictures and answers; all are used.
        output: safetensors file of the parts, as the recipe's key takes it.
        train: steps, batch, learning rate and seed; None: the usual ones.
        minutes: that steps and judging may take, and that say how many steps there are, which the report
            tells; None: `train` says it.
        profile: an earlier calibration's or its file; needed where methods choose by it.
        device: where both models run: `cpu`, or a GPU as torch names it; in float32.
        overwrite: replace parts that this tool wrote at `output`.
        progress: shows prompts and steps; None: on a terminal alone.

    Raises:
        VtcompressError: model, data or recipe cannot be used, or `output` exists, is being written by
            another run, or holds the checkpoint of another training.
    """
    require_recipe(recipe)
    check_device(device)
    check_above_zero("minutes", minutes)
    method, train = _learner(recipe), train or PartTraining()
    refuse_both(train, minutes)
    train = _settled(train, method)
    data, progress = Path(data), shown(progress)
    chosen = Chosen(*open_profile(profile))
    sources = (*source_paths(recipe), *read_files((data,), profile))
    file = TrainedFile(output, "parts", overwrite=overwrite, sources=sources)
    with file.held(device), TemporaryDirectory() as own:
        require_compress("training parts")
        samples = read_samples(data)
        check_answered(samples, data.name)
        file.check_outside(recipe)
        # A file of zeros stands for what is to be trained, so that all is checked and planned as ever.
        untrained = Path(own) / f"untrained{SUFFIX}"
        facts = model_facts(recipe)
        write_bytes(untrained, _zeros(method, facts))
        whole = recipe.override({f"compress.{method.name}.{method.learns}": untrained})
        asked = Asked(samples, forced=True)
        remedy = "leave it out while parts are trained"
        model, plan = model_to_train(whole, chosen, asked, device, progress, remedy=remedy)
        digest = model.digest
        from compressor.training.checkpoint import PartTask
        from compressor.training.distillation import distil, learned_in

        small, _ = compressed_to_train(model, plan, whole)
        task = PartTask(
            model_digest=digest,
            data_digest=data_digest(samples),
            method=method.name,
            plan=hashlib.sha256(plan.model_dump_json().encode()).hexdigest(),
            train=train,
        )
        trained = distil(
            model,
            small,
            samples,
            task,
            learned_in(small, method.learned_shapes(facts)),
            file.checkpoint,
            start=method.learned_start,
            start_samples=choose(samples, START_SAMPLES, train.seed),
            minutes=minutes,
            progress=progress,
        )
        content = _file(method, trained.tensors, task.data_digest, digest)
        report = PartsReport(
            model=model.facts.name,
            model_digest=digest,
            method=method.name,
            asked=tuple(map(method_words, recipe.methods)),
            parts_digest=hashlib.sha256(content).hexdigest(),
            tensors={
                f"{method.learned_prefix}{k}": tuple(v.shape) for k, v in trained.tensors.items()
            },
            train=train.model_copy(update={"steps": max(1, trained.planned)}),
            steps=trained.steps,
            best_step=trained.best,
            seconds=trained.seconds,
            data=data.name,
            data_digest=task.data_digest,
            samples=len(samples),
            kl_before=trained.before,
            kl_after=trained.after,
        )
        file.write(report, content)
    return report


def _settled(train: PartTraining, method: Method) -> PartTraining:
    """Return settings with the learning rate of a method, where they have none."""
    if train.learning_rate is not None:
        return train
    return train.model_copy(update={"learning_rate": method.learned_rate})


def _learner(recipe: Recipe) -> Method:
    """Return the method whose parts are to be trained.

    Raises:
        RecipeError: none learns anything, all name their files, or several name none.
    """
    learners = [method for method in recipe.methods if method.learns]
    if not learners:
        remedy = f"add {' or '.join(_who_learns())} (gates are trained by `vtcompress train-gates`)"
        raise RecipeError([f"compress: no entry learns anything that could be trained; {remedy}"])
    found = [method for method in learners if getattr(method, method.learns) is None]
    if len(found) == 1:
        return found[0]
    keys = " and ".join(f"{method.name}.{method.learns}" for method in found or learners)
    if not found:
        problem = "names a file already, and nothing is left to train; leave it out"
    else:
        problem = "each name no file; train one after the other, and name the file of the first"
    raise RecipeError([f"compress: {keys}: {problem}"])


def _who_learns() -> list[str]:
    from compressor.methods import METHODS

    return [method.name for method in METHODS if method.learns]


def _zeros(method: Method, facts: ModelFacts) -> bytes:
    import torch

    shapes = method.learned_shapes(facts)
    return _file(method, {name: torch.zeros(shape) for name, shape in shapes.items()}, "", "")


def _file(
    method: Method, tensors: "Mapping[str, Tensor]", data_digest: str, model_digest: str
) -> bytes:
    """Return the safetensors file of parts, named as the method's recipe key takes them."""
    from safetensors.torch import save

    metadata = {PART_OF: method.name, MODEL_DIGEST: model_digest, "data_digest": data_digest}
    named = {f"{method.learned_prefix}{name}": t.float().cpu() for name, t in tensors.items()}
    return stable_header(save(named, metadata))
