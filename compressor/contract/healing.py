"""What `heal` trains of a compressed decoder, what a recipe says of it, and the file of what came of it.

Tensors of the file, S being a source tensor's name as in `compressor.decoder.weights.source_of`: `S`, a
norm's gains; `S.lora_A` [rank, in] and `S.lora_B` [out, rank], whose product is added to S; `S.scale`,
factors of the neurons that visual rows have; and `questions`, the numbers of all questions that were read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from compressor.contract.learned import PartTraining
from compressor.disk.weight_file import WeightFile, not_finite, other_model
from compressor.errors import PlanError
from compressor.facts import Facts
from compressor.schema.problems import apply_rule, rule
from compressor.schema.values import (
    Count,
    DataPath,
    Rate,
    RecipeSection,
    Seed,
    WeightsPath,
    each_once,
)

if TYPE_CHECKING:
    from torch import Tensor

Healable = Literal["norms", "neurons_scale", "lora"]
HEALABLE: tuple[Healable, ...] = get_args(Healable)

HEALED = "healed"
"""Key of what was done, in the metadata."""
QUESTIONS = "questions"
LORA_A, LORA_B, SCALE = ".lora_A", ".lora_B", ".scale"


class HealTraining(PartTraining):
    """How `heal` trains.

    Attributes:
        learning_rate: as in `PartTraining`.
        learn: `norms`: the gains of every RMS norm; `neurons_scale`: a factor for each neuron that visual
            rows have in a layer where they have some alone; `lora`: an update of low rank for each matrix of
            a layer.
        rank: of these updates, 1 or more.
    """

    learning_rate: Rate = 0.005
    learn: Annotated[tuple[Healable, ...], Field(strict=False, min_length=1)] = HEALABLE
    rank: Count = 8


class HealSection(RecipeSection):
    """Weights of the compressed decoder that are trained: which file has them, or how a run trains them.

    At most one of `file`, `minutes` and `steps` is given; with none all weights are the original's.

    Attributes:
        file: safetensors file of `heal`.
        minutes: that a run trains, above 0.
        steps: or: updates that it takes, 1 or more.
        data: jsonl file of questions to learn from; None: those of the calibration.
        train: as `HealTraining.learn`.
        rank: as there.
        batch: as in `PartTraining`.
        learning_rate: likewise.
        seed: likewise.
    """

    file: WeightsPath | None = None
    minutes: Rate | None = None
    steps: Count | None = None
    data: DataPath | None = None
    train: Annotated[tuple[Healable, ...], rule(each_once)] = HEALABLE
    rank: Count = 8
    batch: Count = 4
    learning_rate: Rate = 0.005
    seed: Seed = 0

    @property
    def trained_in_the_run(self) -> str:
        """The key that asks for a training, as errors name it; empty: none does."""
        given = (name for name in ("minutes", "steps") if getattr(self, name) is not None)
        return next((f"heal.{name}: {getattr(self, name):g}" for name in given), "")

    @property
    def given(self) -> str:
        """What says that weights are trained, or are already, as errors name it; empty: nothing does."""
        return self.trained_in_the_run or ("" if self.file is None else f"heal.file: {self.file}")

    @property
    def training(self) -> HealTraining:
        """How a run trains."""
        given = self.model_dump(include={"rank", "batch", "learning_rate", "seed"})
        steps = {} if self.steps is None else {"steps": self.steps}
        return HealTraining(learn=self.train, **given, **steps)

    @model_validator(mode="wrap")
    @classmethod
    def _one_way(cls, value: Any, handler: Callable[[Any], Self]) -> Self:
        keys = ("file", "minutes", "steps")
        section = value if isinstance(value, dict) else {}
        given = [key for key in keys if section.get(key) is not None]
        problem = None
        if len(given) > 1:
            problem = f"{' and '.join(given)} are given together; give one of {', '.join(keys)}"
        elif section.get("data") is not None and given in ([], ["file"]):
            problem = "data goes with minutes or steps, which say how long is trained on it"
        result: Self = apply_rule(value, handler, problem)
        return result


class Healed(Facts):
    """What a healing was given and what came of it, as far as it is the same whenever it is done again.

    Attributes:
        model_digest: of the original.
        work_digest: `Plan.work_digest` of the plan whose decoder was healed.
        train: settings.
        trained: how many tensors changed, by what of `Healable` they are.
        steps: that were taken; fewer than asked for where the time was over.
        best_step: behind which the best weights were, which the file has; 0: the start was the best.
        data: name of the training data.
        data_digest: of its questions.
        samples: that were learned from.
        judged: others of the data, which chose the best and were not learned from.
        own_answers: of all these, how many had no answer, so that the original's own was taken.
        kl_before: mean KL(original || compressed) at answer tokens of the judged prompts, in nats, where the
            training started.
        kl_after: the same of what the file has.
    """

    model_digest: str
    work_digest: str
    train: HealTraining
    trained: dict[str, int]
    steps: int
    best_step: int
    data: str
    data_digest: str
    samples: int
    judged: int
    own_answers: int
    kl_before: float
    kl_after: float


def _no_healed(path: Path, why: str) -> str:
    return (
        f"{path}: no healed weights{why}; give a file that this version's `vtcompress heal` wrote"
    )


def source_of_change(name: str) -> str:
    """Return the source tensor that a tensor of such a file changes."""
    for ending in (LORA_A, LORA_B, SCALE):
        name = name.removesuffix(ending)
    return name


@dataclass(frozen=True)
class HealedFile:
    """What such a file holds, read from its header.

    Attributes:
        path: of the file.
        healed: what was done.
        shapes: of its tensors, by name, the questions' numbers left out.
        digest: sha256 of the file.
    """

    path: Path
    healed: Healed
    shapes: Mapping[str, tuple[int, ...]]
    digest: str

    @classmethod
    def read(cls, path: Path) -> "HealedFile":
        """Read the header of a file.

        Raises:
            PlanError: missing, no safetensors file, or not written by `heal`.
        """
        file = WeightFile.read(path, PlanError, "make it with `vtcompress heal`")
        try:
            # Through JSON text: the settings are strict about types, which JSON has fewer of.
            healed = Healed.model_validate_json(file.metadata[HEALED])
        except (KeyError, ValidationError):
            raise PlanError([_no_healed(path, "")]) from None
        shapes = {name: shape for name, shape in file.shapes.items() if name != QUESTIONS}
        lacking = [] if QUESTIONS in file.shapes else [QUESTIONS]
        for one, other in ((LORA_A, LORA_B), (LORA_B, LORA_A)):
            pairs = (name.removesuffix(one) + other for name in shapes if name.endswith(one))
            lacking += [name for name in pairs if name not in shapes]
        if lacking:
            raise PlanError([_no_healed(path, f": it lacks {', '.join(lacking)}")])
        return cls(path, healed, shapes, file.digest)

    def check(self, model_digest: str | None, work_digest: str | None) -> None:
        """Refuse weights of another model or another plan.

        Args:
            model_digest: of the model; None: not taken yet.
            work_digest: of the plan whose decoder will have them; None: it is not made yet.

        Raises:
            PlanError: they are, or hold values that are no numbers.
        """
        remedy = "heal this one with `vtcompress heal`, or set heal.file to null"
        if (differs := other_model(self.healed.model_digest, model_digest)) is not None:
            raise PlanError([f"{self.path}: healed for another model ({differs}); {remedy}"])
        if work_digest not in (None, self.healed.work_digest):
            raise PlanError(
                [
                    f"{self.path}: healed for another plan, in which visual rows do other work than in this "
                    f"recipe's; {remedy}"
                ]
            )
        if problems := not_finite(self.path, self.shapes):
            raise PlanError(problems)

    def questions(self) -> frozenset[int]:
        """Return the numbers of all questions that were read: `question_numbers`."""
        from safetensors import safe_open

        with safe_open(self.path, framework="numpy") as file:
            return frozenset(file.get_tensor(QUESTIONS).tolist())

    def tensors(self) -> "dict[str, Tensor]":
        """Return its tensors by name, float32, the questions' numbers left out."""
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in self.shapes}

    def numbers(self, hidden: int, intermediate: int) -> int:
        """Return how many numbers the tensors have that it changes, which an artifact holds besides.

        Args:
            hidden: D of the decoder.
            intermediate: width of its MLP.
        """
        found: dict[str, int] = {}
        for name, shape in self.shapes.items():
            source = source_of_change(name)
            if name.endswith(LORA_B):
                found[source] = shape[0] * self.shapes[source + LORA_A][1]
            elif name.endswith(SCALE):
                found[source] = hidden * intermediate
            elif name == source:
                found[source] = shape[0]
        return sum(found.values())
