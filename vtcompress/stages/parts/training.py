"""The stage that trains what a method learns: routers, a projector."""

import hashlib
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from compressor.contract.asked import method_words
from compressor.contract.learned import PartTraining
from compressor.contract.method import Method
from compressor.disk.files import made_parent, write_bytes
from compressor.disk.gate_file import stable_header
from compressor.disk.locks import exclusive
from compressor.disk.paths import working_stem
from compressor.disk.weight_file import MODEL_DIGEST, PART_OF
from compressor.errors import PlanError, RecipeError, VtcompressError
from compressor.facts import ModelFacts
from compressor.plan.plan import Plan
from compressor.planner import plan_recipe
from compressor.profile import Profile
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.samples.questions import check_answered, choose, data_digest, read_samples
from compressor.schema.arguments import check_above_zero
from export.artifact.places import check_file
from export.backends.torch_device import ON_CPU, check_device, whole_float32
from vtcompress.console import shown
from vtcompress.stages.checks.prompts import Asked
from vtcompress.stages.checks.recipe import check_digest, check_recipe
from vtcompress.stages.checks.rewrite import check_rewrite
from vtcompress.stages.compress import load_weights_in_front, with_routers
from vtcompress.stages.inputs import (
    load_model,
    model_facts,
    model_folder,
    open_profile,
    read_files,
    require_compress,
    require_recipe,
    source_paths,
)
from vtcompress.stages.parts.report import PartsReport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from compressor.compressed import CompressedModel
    from compressor.families import LoadedModel

SUFFIX = ".safetensors"
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
        minutes: after which no step begins; None: all steps are taken.
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
    method = _learner(recipe)
    train = _settled(train or PartTraining(), method)
    data, output, progress = Path(data), Path(output), shown(progress)
    measured, name = open_profile(profile)
    report_file = output.with_suffix(".json")
    if output.suffix != SUFFIX:
        raise VtcompressError(f"{output}: parts are a {SUFFIX} file; give `output` such a name")
    sources = (*source_paths(recipe), *read_files((data,), profile))

    def check() -> None:
        check_file(output, "parts", overwrite=overwrite, sources=sources)
        check_file(report_file, "parts report", overwrite=overwrite)

    check()
    with made_parent(output), exclusive(output), whole_float32(device), TemporaryDirectory() as own:
        check()
        require_compress("training parts")
        samples = read_samples(data)
        check_answered(samples, data.name)
        _check_place(recipe, output)
        # A file of zeros stands for what is to be trained, so that all is checked and planned as ever.
        untrained = Path(own) / f"untrained{SUFFIX}"
        write_bytes(untrained, _zeros(method, model_facts(recipe)))
        whole = recipe.override({f"compress.{method.name}.{method.learns}": untrained})
        asked = [Asked(samples, forced=True)]
        facts = check_recipe(whole, measured, planned=True, asked=asked, progress=progress)
        digest = check_digest(whole, facts, measured, name)
        model = load_model(whole, progress, digest, device=device)
        check_rewrite(model, samples, progress=progress)
        plan = plan_recipe(whole, model.facts, digest, measured)
        _check_trainable(plan)
        checkpoint = output.with_name(f".{working_stem(output.name)}.training{SUFFIX}")
        from compressor.training.distillation import PartTask, distil, learned_in

        small = _compressed(model, plan, whole)
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
            method.learned_start,
            checkpoint,
            minutes=minutes,
            start_samples=choose(samples, START_SAMPLES, train.seed),
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
            train=train,
            steps=trained.steps,
            best_step=trained.best,
            seconds=trained.seconds,
            data=data.name,
            data_digest=task.data_digest,
            samples=len(samples),
            kl_before=trained.before,
            kl_after=trained.after,
        )
        # The parts last: where they are, the report is too.
        report.save(report_file)
        write_bytes(output, content)
        checkpoint.unlink(missing_ok=True)
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


def _check_place(recipe: Recipe, output: Path) -> None:
    if model_folder(recipe, weights=False).resolve() == output.absolute().parent.resolve():
        problem = (
            "lies in the model's folder, where weights are the model's; choose another `output`"
        )
        raise VtcompressError(f"{output}: {problem}")


def _check_trainable(plan: Plan) -> None:
    """Refuse plans that read the end of the prompt, where a training has the answer."""
    if plan.gates is not None:
        raise PlanError(
            ["compress: gates decide at the end of the prompt, and a training goes on to the answer; leave "
             "them out while parts are trained"]
        )  # fmt: skip
    if by := {kept.by for kept in plan.keeps().values()}:
        raise PlanError(
            [
                f"compress: {' and '.join(sorted(by))} chooses by the end of the prompt, and a training goes "
                "on to the answer; leave it out while parts are trained"
            ]
        )


def _compressed(model: "LoadedModel", plan: Plan, recipe: Recipe) -> "CompressedModel":
    from compressor.compressed import compress

    routed, embedding = with_routers(model, plan, recipe), model.embedding
    near = {name: tensor.to(embedding.device) for name, tensor in routed.tensors.items()}
    front = load_weights_in_front(plan, recipe).beside(embedding)
    return compress(replace(routed, tensors=near), plan, logits="all", front=front)


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
