"""Runs calibration over the samples; a killed run resumes from the profile it left."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from compressor.calibration.resume import Task
from compressor.decoder import decoder_from
from compressor.decoder.full_pass import FullPass, full_pass
from compressor.decoder.weights import LoadedGates
from compressor.errors import ModelError
from compressor.families import LoadedModel
from compressor.methods.contribution import layer_contribution
from compressor.methods.exit_scores import exit_kl, gate_margins, margins_behind_cuts
from compressor.methods.yopo.heads import head_score
from compressor.methods.yopo.neurons import neuron_activity
from compressor.plan.edits import identity_plan
from compressor.plan.plan import Gates, Plan
from compressor.profile import Measure, Profile, SampleScore
from compressor.progress import SILENT, Progress
from compressor.samples.prompts import embed, encode
from compressor.samples.questions import Sample, check_pictures

SAVE_EVERY_SECONDS = 2.0
MEASURED: Mapping[Measure, Callable[[FullPass], Tensor]] = {
    "layer_contribution": layer_contribution,
    "exit_kl": exit_kl,
    "gate_margin": gate_margins,
    "head_score": head_score,
}
"""What is kept of every sample; of `neuron_activity` the profile keeps the mean alone."""


def calibrate(
    model: LoadedModel,
    task: Task,
    path: Path,
    *,
    gates: LoadedGates | None = None,
    anew: bool = False,
    progress: Progress = SILENT,
) -> Profile:
    """Measure every sample and keep the profile at `path` as it grows.

    Args:
        model: the original model.
        task: what to measure on it, on which samples; each has at least one picture.
        path: profile file; if it exists it must belong to this model and data, and is continued, also where
            it has fewer of the samples.
        gates: of the task, where it asks any.
        anew: replace the profile at `path` instead.
        progress: shows the samples and the time left.

    Raises:
        DataError: samples without pictures, or pictures that cannot be read.
        ProfileError: the file at `path` belongs to another model or other data, or holds other measures.
    """
    check_pictures(task.samples, task.data)
    profile = task.new() if anew else task.go_on(path)
    plan, tensors = identity_plan(model.facts, model.digest), model.tensors
    if gates is not None:
        asked = Gates(
            candidates=gates.layers, mode="dynamic", width=gates.width, digest=gates.digest
        )
        plan, tensors = plan.model_copy(update={"gates": asked}), {**tensors, **gates.tensors}
    decoder = decoder_from(plan, tensors)
    saved = time.monotonic()
    remaining = task.left(profile)
    if remaining and profile.gates_under:
        # Asked behind cuts before, and of the original now: nobody may take them for either.
        profile = profile.model_copy(update={"gates_under": "in part"})
    for digest, sample in progress.track(remaining, "calibrating", len(remaining)):
        rows = embed(model, encode(model.processor, sample))
        full = full_pass(decoder, *rows.call)
        scores: dict[str, Any] = {
            name: measure(full).tolist()
            for name, measure in MEASURED.items()
            if name in task.measures
        }
        visual, text = rows.visual_index.shape[1], rows.text_index.shape[1]
        score = SampleScore(visual=visual, text=text, sample=digest, **scores)
        if names := score.no_numbers:
            problem = (
                f"{model.facts.name}: {', '.join(names)}: NaN or infinite for {sample.question!r}, so no "
                "layer can be ranked: the model's own outputs are no numbers there; check its weights, or "
                "leave the question out"
            )
            raise ModelError([problem])
        active = "neuron_activity" in task.measures
        profile = profile.with_sample(score, neuron_activity(full).tolist() if active else None)
        if time.monotonic() - saved > SAVE_EVERY_SECONDS:
            profile.save(path)
            saved = time.monotonic()
    profile = task.ordered(profile)
    profile.save(path)
    return profile


def ask_gates_again(
    model: LoadedModel,
    samples: Sequence[Sample],
    profile: Profile,
    plan: Plan,
    gates: LoadedGates,
    progress: Progress = SILENT,
) -> Profile:
    """Return a whole profile with the gates' margins on the states that a plan's other cuts leave.

    Args:
        model: the original model.
        samples: those of the profile, in their order.
        profile: its margins are replaced.
        plan: with these gates.
        gates: their weights.
        progress: shows the samples.
    """
    decoder = decoder_from(plan, {**model.tensors, **gates.tensors})
    found = []
    asked = list(zip(samples, profile.samples, strict=True))
    for sample, score in progress.track(asked, "asking gates behind the other cuts", len(asked)):
        rows = embed(model, encode(model.processor, sample))
        margin = tuple(margins_behind_cuts(decoder, rows).tolist())
        found.append(score.model_copy(update={"gate_margin": margin}))
    return profile.model_copy(update={"samples": tuple(found), "gates_under": plan.gates_see()})
