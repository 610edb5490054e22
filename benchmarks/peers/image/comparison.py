"""The comparison from pixels to the first token."""

from benchmarks.decoder_sessions import Array
from benchmarks.peers.contenders import Contender
from benchmarks.peers.image.contenders import contenders, frozen_layers
from benchmarks.peers.image.model import (
    HIDDEN,
    INTERMEDIATE,
    TEXT,
    VISUAL,
    load_torch,
    make_model,
    question,
    torch_answer,
    torch_answer_of_plan,
)
from benchmarks.peers.image.running import FIRST, VISION, load
from benchmarks.peers.measuring import Comparison, Conditions

LAYERS = 8


def comparison() -> Comparison:
    """Return it."""
    return Comparison(
        contenders=contenders(),
        calls={FIRST: 1, VISION: 1},
        wanted={FIRST: None},
        make_model=make_model,
        load=load,
        expected=_expected,
        flops=_flops,
        product=(VISUAL + TEXT, HIDDEN, INTERMEDIATE),
    )


def _expected(changes: str | None, kept: Array | None, conditions: Conditions) -> Array:
    model, asked = load_torch(conditions.folder), question(conditions.folder)
    if changes is None:
        found = torch_answer(model, asked)
    else:
        found = torch_answer_of_plan(model, asked, frozen_layers(conditions.layers), kept)
    logits: Array = found.numpy()
    return logits


def _flops(contender: Contender, conditions: Conditions) -> None:
    """Tell none: the project counts those of decoders."""
