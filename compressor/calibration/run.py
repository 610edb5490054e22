"""Runs calibration over the samples; a killed run resumes from the profile it left."""

import time
from collections.abc import Sequence
from pathlib import Path

from compressor.calibration.contribution import layer_contribution
from compressor.calibration.data import Sample, data_digest
from compressor.calibration.profile import Profile, SampleScore
from compressor.decoder import decoder_from
from compressor.errors import DataError
from compressor.families import LoadedModel
from compressor.planner import identity_plan
from compressor.progress import SILENT, Progress
from compressor.prompts import embed, encode

SAVE_EVERY_SECONDS = 2.0


def calibrate(
    model: LoadedModel,
    samples: Sequence[Sample],
    path: Path,
    *,
    data_name: str,
    progress: Progress = SILENT,
) -> Profile:
    """Measure the layer contribution on every sample and keep the profile at `path` as it grows.

    Args:
        model: the original model.
        samples: questions, each with at least one picture.
        path: profile file; if it exists it must belong to this model and data, and is continued.
        data_name: named in the profile.
        progress: shows the samples and the time left.

    Raises:
        DataError: samples without pictures, or pictures that cannot be read.
        ProfileError: the file at `path` belongs to another model or other data.
    """
    blind = [s for s in samples if not s.images]
    if blind:
        raise DataError(
            f"{data_name}: {s.question[:60]!r} has no image; calibration needs one"
            for s in blind[:20]
        )
    profile = _start(model, samples, path, data_name)
    decoder = decoder_from(identity_plan(model.facts, model.digest), model.tensors)
    saved = time.monotonic()
    remaining = samples[len(profile.samples) :]
    for sample in progress.track(remaining, "calibrating", len(remaining)):
        rows = embed(model, encode(model.processor, sample))
        scores = layer_contribution(
            decoder, rows.visual_embeds, rows.text_embeds, rows.visual_index, rows.text_index
        )
        profile = profile.with_sample(
            SampleScore(
                visual=rows.visual_index.shape[1],
                text=rows.text_index.shape[1],
                layer_contribution=tuple(scores.tolist()),
            )
        )
        if time.monotonic() - saved > SAVE_EVERY_SECONDS:
            profile.save(path)
            saved = time.monotonic()
    profile.save(path)
    return profile


def _start(model: LoadedModel, samples: Sequence[Sample], path: Path, data_name: str) -> Profile:
    digest = data_digest(samples)
    if path.exists():
        profile = Profile.load(path)
        profile.check_belongs(path, model_digest=model.digest, data_digest=digest)
        return profile
    return Profile(
        model=model.facts.name,
        model_digest=model.digest,
        data=data_name,
        data_digest=digest,
        layers=model.facts.decoder.layers,
        total=len(samples),
    )
