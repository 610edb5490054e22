"""The stage that heals: the compressed decoder learns to say what the original says."""

from pathlib import Path

from compressor.contract.healing import HealTraining
from compressor.errors import RecipeError
from compressor.plan.plan import Plan
from compressor.profile import Profile
from compressor.progress import Progress
from compressor.recipe import Recipe
from compressor.schema.arguments import check_above_zero
from export.backends.torch_device import ON_CPU, check_device
from vtcompress.console import shown
from vtcompress.stages.healing.course import REMEDY, HealCourse
from vtcompress.stages.healing.report import HealReport
from vtcompress.stages.inputs import (
    open_plan,
    open_profile,
    read_files,
    require_compress,
    require_recipe,
    source_paths,
)
from vtcompress.stages.training.model import Chosen, model_to_train, refuse_both
from vtcompress.stages.training.place import TrainedFile


def heal(
    recipe: Recipe,
    data: str | Path,
    output: str | Path,
    *,
    train: HealTraining | None = None,
    minutes: float | None = None,
    profile: Profile | str | Path | None = None,
    plan: Plan | str | Path | None = None,
    device: str = ON_CPU,
    overwrite: bool = False,
    progress: Progress | bool | None = None,
) -> HealReport:
    """Train some weights of a compressed decoder; write their changes, and a report as JSON beside them.

    The compressed decoder is trained towards the original's next-token distributions at answers
    (self-distillation): right ones, or the original's own where the data has none. A recipe with the file as
    its `heal.file` exports the compressed decoder with these weights; the original's stay the baseline's. A
    run that was stopped goes on from its checkpoint, a hidden file beside `output`.

    Args:
        recipe: names the model and the methods, and by `validate.data` questions that are not learned from.
        data: jsonl file of questions with pictures; all are used, a share of them to judge alone.
        output: safetensors file, as the recipe's `heal.file` takes it.
        train: what is trained, steps, batch, learning rate, rank and seed; None: the usual ones.
        minutes: that steps and judging may take, and that say how many steps there are, which the report
            tells; None: `train` says it.
        profile: an earlier calibration's or its file; needed where methods choose by it.
        plan: a plan that was made already, or its file; None: the recipe's methods make it.
        device: where both models run: `cpu`, or a GPU as torch names it; in float32.
        overwrite: replace healed weights that this tool wrote at `output`.
        progress: shows prompts and steps; None: on a terminal alone.

    Raises:
        VtcompressError: model, data or recipe cannot be used, questions are held out by `validate.data`, or
            `output` exists, is being written by another run, or holds the checkpoint of another training.
    """
    require_recipe(recipe)
    check_device(device)
    check_above_zero("minutes", minutes)
    train, progress, data = train or HealTraining(), shown(progress), Path(data)
    refuse_both(train, minutes)
    if recipe.heal.file is not None:
        problem = "a healing starts at the original's weights; set it to null"
        raise RecipeError([f"heal.file: {recipe.heal.file}: {problem}"])
    if asked := recipe.heal.trained_in_the_run:
        progress.say(
            f"note: {asked}: has no effect: `heal` goes by what it is told beside the recipe"
        )
    given, what = (None, "") if plan is None else open_plan(plan)
    chosen = Chosen(*open_profile(profile), given, what)
    sources = (*source_paths(recipe), *read_files((data,), profile, plan))
    file = TrainedFile(output, "heal", overwrite=overwrite, sources=sources)
    with file.held(device):
        require_compress("healing")
        course = HealCourse.of(recipe, data, train, minutes)
        file.check_outside(recipe)
        model, made = model_to_train(recipe, chosen, course.asked, device, progress, remedy=REMEDY)
        report, content = course.run(model, made, file.checkpoint, progress)
        file.write(report, content)
    return report
