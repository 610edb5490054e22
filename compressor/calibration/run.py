"""Runs calibration over the samples; a killed run resumes from the profile it left."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.calibration.by_layer import Ended
from compressor.calibration.portions import Portions, states_beside
from compressor.calibration.resume import Task
from compressor.calibration.states import PromptStates
from compressor.chosen_rows import FrontWeights, vision_of
from compressor.decoder import Decoder, decoder_from
from compressor.decoder.cache import opened
from compressor.decoder.elsewhere import read_layers_when_run
from compressor.decoder.full_pass import full_pass
from compressor.decoder.gates import gate_input, gate_selection, margins
from compressor.decoder.model import added_by
from compressor.decoder.weights import LoadedGates
from compressor.errors import ModelError, ProfileError, VtcompressError
from compressor.families import LoadedModel
from compressor.methods import MEASURES, owner_of_measure
from compressor.plan.edits import identity_plan
from compressor.plan.plan import Gates, Plan
from compressor.profile import Profile, SampleScore
from compressor.progress import SILENT, Progress
from compressor.samples.prompts import PromptRows, embed, encode, fronts_of
from compressor.samples.questions import Sample, check_pictures

SAVE_EVERY_SECONDS = 2.0


def calibrate(
    model: LoadedModel,
    task: Task,
    path: Path,
    *,
    gates: LoadedGates | None = None,
    anew: bool = False,
    progress: Progress = SILENT,
    disk_bytes: int | None = None,
) -> Profile:
    """Measure every sample and keep the profile at `path` as it grows.

    Args:
        model: the original model; weights of its layers may be stand-ins, which are read when a layer runs.
        task: what to measure on it, on which samples; each has at least one picture.
        path: profile file; if it exists it must belong to this model and data, and is continued, also where
            it has fewer of the samples.
        gates: of the task, where it asks any.
        anew: replace the profile at `path` instead.
        progress: shows the samples and the time left.
        disk_bytes: that states may take while layers are read from disk; None: half of what is free.

    Raises:
        DataError: samples without pictures, or pictures that cannot be read.
        ProfileError: the file at `path` belongs to another model or other data, or holds other measures; or a
            measure gives another shape than it says.
    """
    check_pictures(task.samples, task.data)
    profile = task.new() if anew else task.go_on(path)
    plan, tensors = identity_plan(model.facts, model.digest), model.tensors
    if gates is not None:
        asked = Gates(
            candidates=gates.layers, mode="dynamic", width=gates.width, digest=gates.digest
        )
        plan, tensors = (
            plan.model_copy(update={"gates": asked}),
            {**tensors, **gates.beside(model.embedding)},
        )
    decoder = decoder_from(plan, tensors)
    read_layers_when_run(decoder, model.stored)
    saved = time.monotonic()
    remaining = task.left(profile)
    if remaining and profile.gates_under:
        # Asked behind cuts before, and of the original now: nobody may take them for either.
        profile = profile.changed(gates_under="in part")
    states = states_beside(path, task, model.embedding.device) if model.stored else None
    if states is not None and anew:
        states.remove()
    walks = {name: walk() for name in task.measures if (walk := MEASURES[name].walk) is not None}
    if states is not None and len(walks) == len(task.measures):
        portions = Portions(model, decoder, walks, remaining, states, progress, disk_bytes)
        with _removed_on_errors(states):
            for ended in portions.measured():
                now, remaining = remaining[: len(ended)], remaining[len(ended) :]
                for (digest, sample), one in zip(now, ended, strict=True):
                    profile = _with_sample(profile, model, digest, sample, one)
                profile.save(path)
        states.remove()
    for digest, sample in progress.track(remaining, "calibrating", len(remaining)):
        prompt = encode(model.processor, sample, model.facts)
        rows = embed(model, prompt)
        full = replace(
            full_pass(decoder, *rows.call),
            fronts=torch.inference_mode()(partial(fronts_of, model, prompt)),
        )
        values = {name: MEASURES[name].of(full) for name in task.measures}
        one = Ended(rows.visual_index.shape[1], rows.text_index.shape[1], values)
        profile = _with_sample(profile, model, digest, sample, one)
        if time.monotonic() - saved > SAVE_EVERY_SECONDS:
            profile.save(path)
            saved = time.monotonic()
    profile = task.ordered(profile).finished()
    profile.save(path)
    return profile


@contextmanager
def _removed_on_errors(states: PromptStates) -> Iterator[None]:
    """Remove states where a run ends with an error of the user's; a killed run goes on from them."""
    try:
        yield
    except VtcompressError:
        states.remove()
        raise


def _with_sample(
    profile: Profile, model: LoadedModel, digest: str, sample: Sample, ended: Ended
) -> Profile:
    """Return a profile with what was found of one more sample.

    Raises:
        ModelError: values that are no numbers.
        ProfileError: a measure gives another shape than it says.
    """
    found = {name: _values(name, values, profile) for name, values in ended.values.items()}
    scores = {n: values for n, values in found.items() if MEASURES[n].kept == "samples"}
    means = {n: values for n, values in found.items() if MEASURES[n].kept == "mean"}
    score = SampleScore(visual=ended.visual, text=ended.text, sample=digest, **scores)
    if names := score.no_numbers:
        problem = (
            f"{model.facts.name}: {', '.join(names)}: NaN or infinite for {sample.question!r}, so no "
            "layer can be ranked: the model's own outputs are no numbers there; check its weights, or "
            "leave the question out"
        )
        raise ModelError([problem])
    return profile.with_sample(score, means)


def _values(measure: str, found: Any, profile: Profile) -> Any:
    """Return what a measure found of one prompt, as nested tuples of numbers.

    Raises:
        ProfileError: it has another shape than its measure says.
    """
    values = _tupled(found.tolist()) if isinstance(found, Tensor) else None
    if not profile.holds(measure, values):
        gave = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        axes = ", ".join(MEASURES[measure].shape)
        raise ProfileError(
            [
                f"{measure}: its function gave {gave} for a prompt, where a tensor [{axes}] with "
                f"{profile.length(measure)} {MEASURES[measure].shape[0]} is asked for; mend or remove "
                f"{owner_of_measure(measure)}"
            ]
        )
    return values


def _tupled(values: Any) -> Any:
    return tuple(map(_tupled, values)) if isinstance(values, list) else values


def ask_gates_again(
    model: LoadedModel,
    samples: Sequence[Sample],
    profile: Profile,
    plan: Plan,
    gates: LoadedGates,
    progress: Progress = SILENT,
    front: FrontWeights | None = None,
) -> Profile:
    """Return a whole profile with the gates' margins on the states that a plan's other cuts leave.

    Args:
        model: the original model.
        samples: those of the profile, in their order.
        profile: its margins are replaced.
        plan: with these gates.
        gates: their weights.
        progress: shows the samples.
        front: weights that the plan's choice in front of the decoder reads.
    """
    decoder = decoder_from(plan, {**model.tensors, **gates.beside(model.embedding)})
    read_layers_when_run(decoder, model.stored)
    weights = None if front is None else front.beside(model.embedding)
    reader = replace(model, vision=vision_of(plan, model.vision, weights), facts=plan.model)
    found = []
    asked = list(zip(samples, profile.samples, strict=True))
    for sample, score in progress.track(asked, "asking gates behind the other cuts", len(asked)):
        rows = embed(reader, encode(model.processor, sample, model.facts))
        margin = tuple(margins_behind_cuts(decoder, rows).tolist())
        found.append(score.model_copy(update={"gate_margin": margin}))
    return profile.changed(samples=tuple(found), gates_under=plan.gates_see())


@torch.inference_mode()
def margins_behind_cuts(decoder: Decoder, rows: PromptRows) -> Tensor:
    """Return the margin of each gate of a compressed decoder on a prompt, as if none before it had fired.

    Args:
        decoder: with gates, and with whatever its plan cuts or freezes beside them.
        rows: of the prompt.
    """
    visual, text = rows.visual_embeds, rows.text_embeds
    places = decoder.rotary.places(rows.visual_index, rows.text_index, text.dtype, rows.positions)
    selection = gate_selection(rows.visual_index, rows.text_index, text.dtype)
    added = added_by(rows.deepstack, decoder.deepstack, visual)
    pairs, *_ = opened(decoder.empty_past(1), decoder.caches, tells_rows=False)
    found = []
    for segment in decoder.segments[:-1]:
        mine = [p for p, c in zip(pairs, decoder.caches, strict=True) if c.layer in segment]
        visual, text, *_ = decoder.run(segment, visual, text, places, mine, added=added)
        found.append(margins(decoder.gates[str(segment[-1])](gate_input(selection, text))))
    return torch.cat(found)
