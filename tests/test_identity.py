"""The identity recipe gives the unmodified transformers model's logits, in torch and in ONNX Runtime."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.compressed import compress, load_compressed, save_compressed
from compressor.families import LoadedModel, load
from compressor.plan.edits import identity_plan
from compressor.samples.layout import layout_of
from export.backends.onnxruntime import OnnxSession
from export.backends.torch_model import TorchSession
from export.graphs.spec import decoder_graph, embed_graph, vision_graph
from export.session.feeds import CallRows
from export.session.session import Session
from export.writer.weights import SharedWeights
from export.writer.write import export_decoder, export_embed, export_vision, save_graph
from tests.models import SIDE, VARIANTS, WORDS

TOLERANCE = 1e-4
IMAGE = WORDS.index("<image>")
TEXT = (5, 7, 8, 9, 11, 13, 15, 17, 12, 14)
STEPS = (20, 31, 40, 5, 9, 46, 13, 27)


@dataclass(frozen=True)
class Pair:
    """An original model and its identity compression in both forms."""

    original: LoadedModel
    torch: Session
    onnx: Session


@pytest.fixture(scope="module", params=VARIANTS)
def pair(
    request: pytest.FixtureRequest,
    llava: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Pair:
    model = load(str(llava(request.param)))
    plan = identity_plan(model.facts, model.digest)
    small = compress(model, plan)
    folder = tmp_path_factory.mktemp("identity")
    specs = (
        vision_graph(model.facts, "float32"),
        embed_graph(model.facts, "float32"),
        decoder_graph(plan, "float32", "last"),
    )
    with SharedWeights(folder) as weights:
        save_graph(export_vision(small, specs[0]), folder / specs[0].file, weights)
        save_graph(export_embed(small, specs[1]), folder / specs[1].file, weights)
        save_graph(export_decoder(small.decoder, specs[2]), folder / specs[2].file, weights)
    return Pair(model, TorchSession(small), OnnxSession(folder, specs, threads=1))


def prompt(layout: str, tokens: int) -> list[int]:
    """Ids of a prompt; `i` in the layout is an image, `t` three words."""
    ids: list[int] = []
    words = iter(TEXT * 3)
    for part in layout:
        ids += [IMAGE] * tokens if part == "i" else [next(words) for _ in range(3)]
    return ids


def pixels(images: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((images, 3, SIDE, SIDE)).astype(np.float32)


LAYOUTS = {
    "image at the start": "it",
    "image in the middle": "tit",
    "image near the end": "ttit",
    "two images together": "tiit",
    "two images apart": "itit",
    "no image": "tt",
}


@pytest.mark.parametrize("side", ["torch", "onnx"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("batch", [1, 2])
def test_logits_of_prefill_and_decode_are_the_originals(
    pair: Pair, side: str, layout: str, batch: int
) -> None:
    session: Session = getattr(pair, side)
    facts = pair.original.facts
    ids = prompt(layout, facts.visual_tokens)
    rows = layout_of(ids, facts, (facts.tile_rows,) * layout.count("i"))
    images = [pixels(layout.count("i"), seed) for seed in range(batch)]
    texts = np.stack([(rows.text_ids + 3 * b) % 20 + 5 for b in range(batch)])
    full = np.tile(np.array(ids), (batch, 1))
    full[:, rows.text_index] = texts

    embeds = session.embed(texts)
    visual = np.zeros((batch, 0, facts.decoder.hidden), np.float32)
    if layout.count("i"):
        visual = np.stack(
            [session.vision(p).features[0].reshape(-1, facts.decoder.hidden) for p in images]
        )
    places = (np.tile(rows.visual_index, (batch, 1)), np.tile(rows.text_index, (batch, 1)))
    logits, past = session.decode(CallRows(visual, embeds, *places), session.empty_past(batch))

    stacked = torch.from_numpy(np.concatenate(images)) if layout.count("i") else None
    with torch.inference_mode():
        wanted = pair.original.original(
            input_ids=torch.from_numpy(full), pixel_values=stacked, use_cache=True
        )
    difference = np.abs(logits[:, -1] - wanted.logits[:, -1].numpy()).max()
    assert difference <= TOLERANCE

    cache, place = wanted.past_key_values, len(ids)
    for step in STEPS:
        token = np.full((batch, 1), step)
        no_rows, no_index = visual[:, :0], np.zeros((batch, 0), np.int64)
        index = np.full((batch, 1), place)
        logits, past = session.decode(
            CallRows(no_rows, session.embed(token), no_index, index), past
        )
        with torch.inference_mode():
            wanted = pair.original.original(
                input_ids=torch.from_numpy(token), past_key_values=cache, use_cache=True
            )
        cache, place = wanted.past_key_values, place + 1
        assert np.abs(logits[:, -1] - wanted.logits[:, -1].numpy()).max() <= TOLERANCE


def test_the_logits_depend_on_the_picture_and_on_its_place(pair: Pair) -> None:
    """Guards the test above: on a model that ignored its image every layout would agree."""
    facts = pair.original.facts
    answers = []
    for layout, seed in (("tit", 0), ("tit", 1), ("itt", 0)):
        ids = prompt(layout, facts.visual_tokens)
        with torch.inference_mode():
            out = pair.original.original(
                input_ids=torch.tensor([ids]), pixel_values=torch.from_numpy(pixels(1, seed))
            )
        answers.append(out.logits[0, -1].numpy())
    assert np.abs(answers[0] - answers[1]).max() > 100 * TOLERANCE
    assert np.abs(answers[0] - answers[2]).max() > 100 * TOLERANCE


def test_a_compressed_folder_loads_back_to_the_same_model(pair: Pair, tmp_path: Path) -> None:
    plan = identity_plan(pair.original.facts, pair.original.digest)
    save_compressed(pair.original, plan, tmp_path)
    session = TorchSession(load_compressed(tmp_path))
    facts = pair.original.facts
    assert np.array_equal(
        session.vision(pixels(1)).features[0], pair.torch.vision(pixels(1)).features[0]
    )
    rows = layout_of(prompt("tit", facts.visual_tokens), facts, (facts.tile_rows,))
    outputs = []
    for one in (session, pair.torch):
        visual = one.vision(pixels(1)).features[0].reshape(1, -1, facts.decoder.hidden)
        text = one.embed(rows.text_ids[None])
        places = (rows.visual_index[None], rows.text_index[None])
        outputs.append(one.decode(CallRows(visual, text, *places), one.empty_past(1))[0])
    # Not bit for bit: kernels may differ by the alignment of the loaded tensors.
    assert np.abs(outputs[0] - outputs[1]).max() <= 1e-6
