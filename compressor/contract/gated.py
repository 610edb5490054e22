"""Methods whose exits gates decide on: what recipe, calibration, training and engines must know of them."""

from typing import ClassVar, Literal

from compressor.contract.method import Method
from compressor.disk.gate_file import GateFile
from compressor.errors import GatesError
from compressor.facts import ModelFacts
from compressor.schema.values import (
    Candidates,
    Count,
    Quantile,
    Rate,
    RecipeSection,
    Seed,
    WeightsPath,
)


class GateTraining(RecipeSection):
    """How `train-gates` trains gates.

    Attributes:
        steps: updates of one gate each, 1 or more.
        batch: prompts a step, 1 or more.
        learning_rate: of AdamW, above 0.
        seed: of initial weights and of the order of prompts and layers, 0 to 2**32 - 1.
    """

    steps: Count = 4000
    batch: Count = 4
    learning_rate: Rate = 1e-3
    seed: Seed = 0


class GatedMethod(Method):
    """A method whose exits gates decide on.

    Attributes:
        gates: safetensors file of the gates' weights; None: given later, by flag.
        exit: `dynamic`: one graph that decides for each prompt; `staged`: the decoder cut at the gates, for
            backends that take no size from a computed value; `baked`: a fixed exit where most gates fire.
        candidates: layers with a gate, ascending, counted from 0; None: all but the last.
        quantile: share of calibration prompts that have exited by the baked exit, above 0, up to 1; None:
            0.9.
        gate_width: hidden width of a gate to train, 1 or more; 2048 is the paper's.
        train: settings of `train-gates`.
    """

    weights_key: ClassVar[str] = "gates"

    gates: WeightsPath | None = None
    exit: Literal["dynamic", "staged", "baked"] = "dynamic"
    candidates: Candidates | None = None
    quantile: Quantile | None = None
    gate_width: Count = 2048
    train: GateTraining = GateTraining()

    def gate_layers(self, layers: int) -> tuple[int, ...]:
        """Return the layers with a gate: those listed, or all but the last of the decoder."""
        return self.candidates or tuple(range(layers - 1))

    def gate_file(self, facts: ModelFacts, model_digest: str | None) -> GateFile:
        """Return the gate file, checked against the model; see `GateFile.check`.

        Raises:
            GatesError: none is named, it is missing, or it does not fit the model and the candidates.
        """
        if self.gates is None:
            raise GatesError(
                [
                    f"{self.name}.gates: the recipe names no gates; give `gates`, or train them with "
                    "`vtcompress train-gates`"
                ]
            )
        file = GateFile.read(self.gates)
        file.check(facts, model_digest, self.gate_layers(facts.decoder.layers))
        return file
