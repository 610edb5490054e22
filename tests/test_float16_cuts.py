"""Float16 graphs of cut decoders give the numbers of float32, up to float16's rounding."""

from pathlib import Path

import numpy as np
import pytest
import torch

from export.backends.onnxruntime import OnnxSession
from export.checks.probes import ProbedGraph
from export.graphs.spec import GraphSpec, decoder_graph
from export.session.feeds import CallRows
from export.session.session import GraphSession
from export.writer.passes.float32 import read_graph
from export.writer.weights import SharedWeights
from export.writer.write import export_decoder, save_graph
from tests.cuts import WIDE_GRID, conversation, decoder_of, plan_of, tensors_of

# A float16 number is off by 2^-11 of itself at most. From its embedding to its logits a row is rounded some
# ten times in each of four layers; errors of either sign add up as the square root of that: some six of them.
# Measured, against the largest logit: 1.9 as the graphs are, 3.2 with every value rounded.
TOLERANCE = 6 * 2.0**-11
# Places that float16 cannot tell apart.
FAR = 3000


@pytest.mark.parametrize(
    "name",
    [
        "window",
        "everything, frozen, then exit",
        "masked",
        "head norms: heads and neurons",
        "goes without",
    ],
)
def test_a_float16_graph_with_cuts_is_as_near_to_float32_as_float16_can_be(
    name: str, tmp_path: Path
) -> None:
    """Calls behind each other: 2N visual rows, text alone, N visual rows of a later turn, a step."""
    plan = plan_of(name, 2, WIDE_GRID)
    tensors = {name: tensor.half() for name, tensor in tensors_of(plan).items()}
    exact = decoder_of(plan, {n: t.float() for n, t in tensors.items()})
    spec = decoder_graph(plan, "float16", "all")
    with SharedWeights(tmp_path) as weights:
        decoder = decoder_of(plan, tensors)
        save_graph(export_decoder(decoder, spec), tmp_path / spec.file, weights)

    def rounded(spec: GraphSpec) -> ProbedGraph:
        # ONNX Runtime's CPU leaves values in float32 between most nodes; so every one is rounded.
        return ProbedGraph(tmp_path, spec, read_graph(tmp_path / spec.file))

    for session in (OnnxSession(tmp_path, [spec], threads=1), GraphSession([spec], rounded)):
        past, graph_past = exact.empty_past(1), session.empty_past(1)
        for visual, text, *near in conversation(grid=WIDE_GRID)[1]:
            halves, places = [visual.half(), text.half()], [place + FAR for place in near]
            with torch.inference_mode():
                logits, past = exact(*(rows.float() for rows in halves), *places, past)
            call = (rows.contiguous().numpy() for rows in (*halves, *places))
            found, graph_past = session.decode(CallRows(*call), graph_past)
            wanted = logits.numpy()
            np.testing.assert_allclose(found, wanted, atol=TOLERANCE * np.abs(wanted).max(), rtol=0)
