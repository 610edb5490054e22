"""The comparison of decoders alone: prefill and decode step on embeddings."""

from benchmarks.decoder import STEPS_PER_REPEAT
from benchmarks.decoder_models import HIDDEN, INTERMEDIATE, TEXT, VISUAL
from benchmarks.decoder_sessions import Array
from benchmarks.peers.contenders import Contender, contenders, make_model, our_plans
from benchmarks.peers.measuring import Comparison, Conditions
from benchmarks.peers.running import Loaded
from compressor.plan.cost import predict

LAYERS = 24


def comparison() -> Comparison:
    """Return it."""
    return Comparison(
        contenders=contenders(),
        calls={"prefill": 1, "decode": STEPS_PER_REPEAT},
        wanted={"prefill": 4.0, "decode": 3.0},
        make_model=make_model,
        load=_load,
        expected=_expected,
        flops=_flops,
        product=(VISUAL + TEXT, HIDDEN, INTERMEDIATE),
    )


def _load(contender: Contender, conditions: Conditions) -> Loaded:
    return Loaded(contender, conditions.place(contender), conditions.layers, conditions.threads)


def _expected(changes: str | None, kept: Array | None, conditions: Conditions) -> Array:  # noqa: ARG001
    """Return genai's logits: they are compared on text, which no plan changes."""
    return _load(contenders()[0], conditions).judged().logits


def _flops(contender: Contender, conditions: Conditions) -> int:
    plans = our_plans(conditions.layers, conditions.vocab)
    return predict(plans[contender.plan or "naive"]).flops
