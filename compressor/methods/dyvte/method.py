"""What of DyVTE a plan needs: its gates, and the layers that they may leave before."""

from compressor.disk.gate_file import GateFile
from compressor.errors import GatesError
from compressor.facts import ModelFacts
from compressor.methods.entries import DyVTE

QUANTILE = 0.9


def gate_candidates(method: DyVTE, layers: int) -> tuple[int, ...]:
    """Return the layers with a gate: those listed, or all but the last of the decoder."""
    return method.candidates or tuple(range(layers - 1))


def gate_file(method: DyVTE, facts: ModelFacts, model_digest: str | None) -> GateFile:
    """Return the gate file of a method, checked against the model; see `GateFile.check`.

    Raises:
        GatesError: none is named, it is missing, or it does not fit the model and the candidates.
    """
    if method.gates is None:
        raise GatesError(
            [
                "dyvte.gates: the recipe names no gates; give --gates FILE, or train them with "
                "`vtcompress train-gates`"
            ]
        )
    file = GateFile.read(method.gates)
    file.check(facts, model_digest, gate_candidates(method, facts.decoder.layers))
    return file
