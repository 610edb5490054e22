"""Caches of fixed size: they give what growing ones give, stay values, and take the planned memory."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from compressor.decoder import Decoder, KeyValue, Stage, decoder_from
from compressor.errors import DataError
from compressor.plan import Gates, LayerPlan, Plan
from export.graphs import GraphSpec, decoder_graphs
from export.limits import Limits
from export.onnx_graph import export_decoder, save_graph
from export.sessions import OnnxSession
from export.weights import SharedWeights
from tests.test_cuts import HIDDEN, IMAGE, LAYERS, cut, dead, frozen, gone, model, tensors_of
from vtcompress.exporting import decoder_makers

TOLERANCE = 1e-5
TOKENS = 64
CONTEXT = 4 * IMAGE + 100
LIMITS = Limits(max_batch=2, max_images=2, max_text=64, max_context=CONTEXT, visual_tokens=IMAGE)

PLANS: dict[str, Sequence[LayerPlan]] = {
    "identity": [cut(0), cut(1), cut(2), dead(3)],
    "exit": [cut(0), cut(1), gone(2), gone(3)],
    "split heads": [
        cut(0, groups=(1,)),
        cut(1, groups=()),
        cut(2, groups=(0,)),
        dead(3, groups=(0,)),
    ],
    "window": [cut(0, window=3), cut(1, window=3, window_causal=True), cut(2), dead(3)],
    "composed": [
        cut(0, window=3, groups=(1,), neurons=tuple(range(12))),
        frozen(1, groups=(0,)),
        gone(2),
        gone(3),
    ],
    "masked": [
        cut(0, window=3, groups=(1,), masked=True),
        cut(1, masked=True, groups=()),
        cut(2, masked=True, off=True),
        dead(3, masked=True, off=True, groups=(0,)),
    ],
}


def plan_of(name: str, mode: str | None = None) -> Plan:
    gates = Gates(candidates=(0, 2), mode=mode, width=4, digest="") if mode else None
    layers = [cut(i) for i in range(LAYERS)] if mode else PLANS[name]
    return Plan(model=model(2), model_digest="0" * 64, layers=tuple(layers), gates=gates)


def written(plan: Plan, folder: Path, limits: Limits | None) -> OnnxSession:
    folder.mkdir(parents=True, exist_ok=True)
    decoder = decoder_from(plan, weights_of(plan), logits="all")
    specs = decoder_graphs(plan, "float32", "all", limits)
    with SharedWeights(folder) as weights:
        for spec, make in zip(specs, decoder_makers(decoder, plan), strict=True):
            save_graph(make(spec), folder / spec.file, weights)
    return OnnxSession(folder, specs, threads=1)


def weights_of(plan: Plan) -> dict[str, torch.Tensor]:
    tensors = tensors_of(plan)
    generator = torch.Generator().manual_seed(5)
    with torch.device("meta"):
        named = Decoder(plan).named_parameters()
        shapes = {n: p.shape for n, p in named if n.startswith("gates")}
    from compressor.decoder.weights import source_of

    for name, shape in shapes.items():
        source, transposed = source_of(name)
        tensor = torch.randn(*shape, generator=generator)
        tensors[source] = tensor.T.contiguous() if transposed else tensor
    return tensors


class Both:
    """One plan's decoder with growing and with fixed caches."""

    def __init__(self, name: str, folder: Path) -> None:
        self.plan = plan_of(name, "staged" if name == "staged" else None)
        self.growing = written(self.plan, folder / "growing", None)
        self.fixed = written(self.plan, folder / "fixed", LIMITS)
        self.folder = folder


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Both]:
    made: dict[str, Both] = {}

    def get(name: str) -> Both:
        if name not in made:
            made[name] = Both(name, tmp_path_factory.mktemp("caches"))
        return made[name]

    return get


def call(images: int, text: int, start: int, batch: int = 1) -> list[np.ndarray]:
    """Rows of a call: a text row, the images, the other text rows."""
    rng = np.random.default_rng(start + 1000 * images)
    rows = images * IMAGE + text
    embeds = rng.standard_normal((batch, rows, HIDDEN)).astype(np.float32)
    visual = np.zeros(rows, bool)
    visual[1 : 1 + images * IMAGE] = True
    places = np.tile(np.arange(start, start + rows, dtype=np.int64), (batch, 1))
    return [embeds[:, visual], embeds[:, ~visual], places[:, visual], places[:, ~visual]]


def sequence(
    turns: Sequence[tuple[int, int]], tokens: int, batch: int = 1
) -> list[list[np.ndarray]]:
    """Calls of several turns and of tokens decoded behind them."""
    calls, start = [], 0
    for images, text in (*turns, *[(0, 1)] * tokens):
        calls.append(call(images, text, start, batch))
        start += images * IMAGE + text
    return calls


TURNS = {
    "an image": [(1, 5)],
    "two images, a question, a later image": [(2, 6), (0, 3), (1, 4)],
    "text": [(0, 7)],
}


@pytest.mark.parametrize("turns", TURNS.values(), ids=TURNS)
@pytest.mark.parametrize("name", [*PLANS, "staged"])
def test_64_tokens_are_decoded_as_with_growing_caches(
    name: str, turns: Sequence[tuple[int, int]], both: Callable[[str], Both]
) -> None:
    pair = both(name)
    past, fixed_past = pair.growing.empty_past(1), pair.fixed.empty_past(1)
    buffers = fixed_past.buffers
    for number, rows in enumerate(sequence(turns, TOKENS)):
        wanted, past = pair.growing.decode(*rows, past)
        found, fixed_past = pair.fixed.decode(*rows, fixed_past)
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE, rtol=0, err_msg=str(number))
        assert pair.fixed.past_shapes(fixed_past) == pair.growing.past_shapes(past)
    assert pair.fixed.past_bytes(fixed_past) == pair.growing.past_bytes(past)
    assert fixed_past.buffers is buffers, "a sequence that nobody shares was copied"
