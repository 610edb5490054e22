"""The healing that an export makes itself, between plan and graphs."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.disk.files import write_bytes
from compressor.plan.plan import Plan
from export.artifact.artifact import HEALED_FILE
from vtcompress.stages.exporting.job import Job
from vtcompress.stages.healing.course import HealCourse
from vtcompress.stages.healing.report import gain_words

if TYPE_CHECKING:
    from compressor.families import LoadedModel


def healed_here(
    job: Job,
    course: HealCourse,
    model: "LoadedModel",
    plan: Plan,
    checkpoint: Path,
    folder: Path,
) -> Job:
    """Heal the decoder of the plan that an export has chosen, and put the file into the artifact.

    Args:
        job: the export.
        course: what its recipe asks for.
        model: the original.
        plan: that was chosen.
        checkpoint: that the training grows and goes on from; one of another training is removed.
        folder: the artifact under construction.

    Returns:
        The export of these weights: its recipe names the file, and no training.

    Raises:
        PlanError: the plan cannot be trained.
    """
    course.drop_foreign(model, plan, checkpoint)
    with job.peaks.of("healing"):
        report, content = course.run(model, plan, checkpoint, job.progress)
    for line in gain_words(report):
        job.progress.say(line)
    write_bytes(folder / HEALED_FILE, content)
    return replace(job, recipe=job.recipe.with_healed(folder / HEALED_FILE))
