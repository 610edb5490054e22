"""The file of known answers: what the machine that exported an artifact had, step by step.

    selftest/known.json     the answers
    selftest/wide.png ...   the pictures, made by formulas (`compressor.samples.made_pictures`)

Numbers are those of the backend that artifacts are checked on. Logits are not stored as float16: its
rounding, 0.008 of a logit of 20, is more than the 0.001 that two backends may differ by.
"""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from compressor.disk.files import read_json, write_text
from compressor.errors import ArtifactError
from compressor.facts import Facts, Positive
from export.checks.known.sums import Digest, Logits, Pixels, Sums, TokenId
from export.results.fidelity import Difference

KNOWN_FOLDER = "selftest"
KNOWN_FILE = f"{KNOWN_FOLDER}/known.json"
Runs = tuple[tuple[int, Positive], ...]


class Followed(Facts):
    """A second question about the picture, in front of which the picture's keys and values are kept.

    Attributes:
        question: it.
        runs: tokens of the whole prompt.
        first: logits of the first token, of the whole prompt run at once.
    """

    question: str
    runs: Runs
    first: Logits


class KnownPicture(Facts):
    """One picture with a question.

    Attributes:
        image: its file.
        question: about it.
        pixels: what the vision graph is given.
        runs: tokens of the prompt.
        text_places: digest of places and rotary positions of the prompt's text rows, and of all its visual
            ones where all go on.
        visual_places: digest of places and positions of the visual rows that go on; None: all do.
        vision: visual rows [V, D], and those that are added behind the first layers.
        answer: tokens of the greedy answer, as far as it was taken.
        steps: logits that they were picked from; the first are those of the first token.
        second: see `Followed`.
    """

    image: Annotated[str, Field(pattern="^[a-z]{1,32}[.]png$")]
    question: str
    pixels: Pixels
    runs: Runs
    text_places: Digest
    visual_places: Digest | None = None
    vision: tuple[Sums, ...]
    answer: tuple[TokenId, ...]
    steps: tuple[Logits, ...]
    second: Followed | None = None

    @model_validator(mode="after")
    def _logits_of_each_token(self) -> Self:
        if len(self.answer) != len(self.steps):
            raise ValueError("answer and steps differ in number")
        return self


class LayerEnd(Facts):
    """Where states lie between a layer and the next one.

    Attributes:
        graph: name of the graph that has the layer.
        layer: its number.
        text: name of the value that holds the states of text rows behind it.
        visual: likewise of visual rows; None: it changes none, or nobody reads them.
    """

    graph: str
    layer: int
    text: str
    visual: str | None = None


class KnownLayer(LayerEnd):
    """The states there.

    Attributes:
        text_states: of text rows.
        visual_states: of visual rows; None: see `visual`.
    """

    text_states: Sums
    visual_states: Sums | None = None


class KnownGraphs(Facts):
    """One call of each graph on made-up numbers: it needs neither picture nor tokenizer.

    Attributes:
        vision: what the vision graph gives of made-up pixels.
        kept: which rows it keeps; None: all.
        sizes: root mean square of `vision`; made-up visual rows have it too.
        embedded: what made-up tokens are embedded as.
        logits: of made-up visual rows and these tokens.
        layers: what is between layers on the way there; none where they cannot be told.
    """

    vision: tuple[Sums, ...]
    kept: tuple[int, ...] | None = None
    sizes: tuple[float, ...]
    embedded: Sums
    logits: Logits | None = None
    layers: tuple[KnownLayer, ...] = ()

    @model_validator(mode="after")
    def _a_size_for_each_array(self) -> Self:
        if len(self.sizes) != len(self.vision):
            raise ValueError("vision and sizes differ in number")
        return self


class KnownAnswers(Facts):
    """All of them.

    Attributes:
        measured_in: the backend, for people.
        pictures: with what became of them.
        graphs: of made-up calls; None: none fits.
        rounding: how far logits are off, at most, where weights in whole numbers are multiplied by inputs in
            whole numbers, as this backend answers; the known ones are computed exactly. None: weights are
            float.
        rounding_within: likewise of states between layers.
        left_out: what could not be recorded, and why.
    """

    selftest_format: Literal[1] = 1
    measured_in: str
    pictures: tuple[KnownPicture, ...]
    graphs: KnownGraphs | None
    rounding: Difference | None = None
    rounding_within: Difference | None = None
    left_out: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of which something is known."""
        steps = [len(one.steps) for one in self.pictures]
        made = self.graphs
        there = {
            "preprocessing": bool(steps),
            "prompt": bool(steps),
            "vision": bool(steps) or made is not None,
            "decoder": any(steps) or (made is not None and made.logits is not None),
            "cache": max(steps, default=0) > 1,
        }
        return tuple(name for name, known in there.items() if known)

    def save(self, folder: Path) -> None:
        """Write the file into an artifact under construction."""
        write_text(folder / KNOWN_FILE, self.model_dump_json(exclude_none=True) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "KnownAnswers":
        """Read an artifact's.

        Raises:
            ArtifactError: it holds none, or they are broken.
        """
        path = folder / KNOWN_FILE
        if not path.is_file():
            raise ArtifactError(
                [
                    f"{folder}: holds no known answers, so that nothing can be compared: export the model "
                    "anew, with export.selftest: true"
                ]
            )
        return read_json(path, cls, ArtifactError, "known answers", "copy the artifact anew")


def all_finite(known: KnownPicture | KnownGraphs) -> bool:
    """Whether every number is one; an artifact whose logits are not has no answers to compare with."""
    return _finite(known.model_dump())


def _finite(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
