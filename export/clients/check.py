"""The self-check of a packed folder: the stock client and the runtime are asked the same questions."""

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from compressor.errors import ArtifactWarning, MissingExtraError, VtcompressError, first_line
from compressor.progress import Progress
from export.artifact.artifact import Artifact
from export.checks import stored
from export.clients.client import Answered, CheckQuestion, Client
from export.clients.pack_file import CheckedAnswer, PackCheck
from export.runtime.runtime import Runtime
from export.session.arrays import Array

if TYPE_CHECKING:
    from export.clients.packing import Packing

ASKED = 5
NEW_TOKENS = 16
# Of prompts and pictures that are made where the artifact holds none.
QUESTIONS = (
    "What is this?",
    "Describe the picture.",
    "How many are there?",
    "What colour is it?",
    "Is there a person?",
)
SIZES = ((64, 64), (97, 64), (64, 131), (160, 120), (48, 48))


def self_check(packing: "Packing", client: Client, folder: Path, progress: Progress) -> PackCheck:
    """Ask a client's folder and the runtime the same; see `questions_of` for what.

    What is made for that lies in the folder while it runs: of a killed run it goes with the folder.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".asked-") as made:
        questions = questions_of(packing.artifact, Path(made))
        try:
            wanted = runtime_answers(packing.artifact, questions)
        except MissingExtraError as failure:
            return PackCheck(not_run=f"the runtime to compare with cannot run: {failure}")
        try:
            found = client.check(packing, folder, questions)
        except ImportError as failure:  # it is installed, and does not start
            return PackCheck(not_run=f"{client.name} cannot be loaded: {first_line(failure)}")
        except RuntimeError as failure:  # what the clients raise
            return PackCheck(failed=first_line(failure))
    if isinstance(found, str):
        return PackCheck(not_run=found)
    progress.say(f"{client.name} was asked {len(found)} questions")
    return outcome_of(questions, wanted, found, client.pixel_limit)


def questions_of(artifact: Artifact, folder: Path) -> list[CheckQuestion]:
    """Return five questions that the artifact holds, or made ones; pictures are made where it has none.

    Args:
        artifact: whose questions are asked.
        folder: where made pictures are put.
    """
    try:
        samples = [one.sample for one in stored.stored_samples(artifact.folder)]
    except (VtcompressError, OSError, ValueError):
        samples = []
    step = max(1, len(samples) // ASKED)
    texts = [sample.question for sample in samples[::step][:ASKED]] or list(QUESTIONS)
    kept = [sample.images for sample in samples[::step][:ASKED]] or [()] * len(texts)
    found = []
    for number, (text, images) in enumerate(zip(texts, kept, strict=True)):
        pictures = images or (made_picture(folder / f"{number}.png", number),)
        found.append(CheckQuestion(text, pictures[:1], NEW_TOKENS))
    return found


def made_picture(file: Path, number: int) -> Path:
    """Write a small picture of patches of colour, the same one for the same number."""
    width, height = SIZES[number % len(SIZES)]
    patches = np.random.default_rng(number).integers(0, 256, (5, 4, 3), np.uint8)
    Image.fromarray(patches).resize((width, height), Image.Resampling.BILINEAR).save(file)
    return file


def runtime_answers(artifact: Artifact, questions: Sequence[CheckQuestion]) -> list[Answered]:
    """Return what the runtime makes of questions, greedy and without the generation configuration.

    Raises:
        MissingExtraError: its backend is not installed.
    """
    with warnings.catch_warnings():  # whether it answers well is not asked here
        warnings.simplefilter("ignore", ArtifactWarning)
        runtime = Runtime.load(artifact.folder, verify=False)
    found = []
    for one in questions:
        prompt = runtime.prepare(one.question, one.images)
        reply = runtime.answer(
            one.question, one.images, max_new_tokens=one.max_new_tokens, generation_config=False
        )
        pixels = np.concatenate([seen.pixels for seen in prompt.seen]) if prompt.seen else None
        found.append(Answered(reply.text, prompt.ids, pixels))
    return found


def outcome_of(
    questions: Sequence[CheckQuestion],
    wanted: Sequence[Answered],
    found: Sequence[Answered],
    pixel_limit: float,
) -> PackCheck:
    """Return how a client's answers compare with the runtime's; blanks around an answer do not count."""
    rows = []
    for one, right, other in zip(questions, wanted, found, strict=True):
        same_ids = None if other.token_ids is None else other.token_ids == right.token_ids
        off = other.pixels_off
        if off is None:
            off = _largest_difference(right.pixels, other.pixels)
        rows.append(
            CheckedAnswer(
                question=one.question,
                images=len(one.images),
                wanted=right.text.strip(),
                found=other.text.strip(),
                token_ids=same_ids,
                pixels=off,
                pixels_equal=None if off is None else off <= pixel_limit,
            )
        )
    return PackCheck(answers=tuple(rows))


def _largest_difference(one: Array | None, other: Array | None) -> float | None:
    if one is None or other is None:
        return None
    if one.shape != other.shape:
        return float("inf")
    return float(np.abs(one - other).max(initial=0))
