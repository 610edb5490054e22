"""Marked graphs compute what the artifact's own do: rows merged by a client are taken apart again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.artifact.artifact import Artifact
from export.clients.marker import last_logits, mark_text, mark_visual, take_apart
from export.clients.packing import Packing
from export.runtime.runtime import Runtime
from export.session.feeds import prompt_rows
from export.session.session import look

QUESTION = "what is this"


def session(file: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def pictures(seed: int, count: int = 1) -> list[Any]:
    sizes = ((40, 33, 3), (32, 57, 3))
    return [
        np.random.default_rng([seed, i]).integers(0, 256, sizes[i % 2], np.uint8)
        for i in range(count)
    ]


@pytest.fixture(scope="module", params=["plain", "exit"])
def packing(request, plain_artifact: Path, plain_exit: Path) -> Packing:
    return Packing(Artifact.open(plain_artifact if request.param == "plain" else plain_exit))


@pytest.fixture(scope="module")
def marked(packing: Packing, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("marked")
    graphs = {name: packing.graph(name) for name in ("vision", "embed", "decoder")}
    mark_visual(graphs["vision"], packing.spec("vision"), packing.facts.tile_rows)
    mark_text(graphs["embed"], packing.spec("embed"))
    take_apart(graphs["decoder"], packing.spec("decoder"))
    last_logits(graphs["decoder"], packing.spec("decoder"))
    packing.save({folder / f"{n}.onnx": g for n, g in graphs.items()}, folder / "weights.bin")
    return folder


@pytest.mark.parametrize("images", [0, 1, 2])
def test_a_prompt_and_a_step_behind_it_have_the_logits_and_caches_of_the_artifact(
    packing, marked, images
):
    runtime = Runtime.load(packing.artifact.folder)
    prompt = runtime.prepare(QUESTION, pictures(1, images))
    text = runtime.session.embed(prompt.layout.text_ids[None])
    seen = look(runtime.session, [_pictured(one) for one in prompt.seen]) if images else ()
    rows = prompt_rows(prompt.layout, text, *seen)
    wanted, past = runtime.session.decode(rows, runtime.session.empty_past(1))

    # As a client does it: all tokens are embedded, and picture rows put over the image tokens.
    ids = np.array(prompt.ids)
    (merged,) = session(marked / "embed.onnx").run(None, {"input_ids": ids[None]})
    if images:
        pixels = np.concatenate([one.pixels for one in prompt.seen])
        (found,) = session(marked / "vision.onnx").run(None, {"pixel_values": pixels})
        merged[0, ids == packing.facts.image_token_id] = found.reshape(-1, found.shape[-1])
    decoder = session(marked / "decoder.onnx")
    names = [one.name for one in decoder.get_inputs()]
    assert names[:2] == ["inputs_embeds", "position_ids"]
    empty = {
        t.name: np.zeros(t.shape({"batch": 1, "past": 0}), t.numpy)
        for t in packing.spec("decoder").cached
    }
    places = np.arange(len(ids))[None]
    logits, *present = decoder.run(None, {"inputs_embeds": merged, "position_ids": places} | empty)
    np.testing.assert_allclose(logits, wanted, atol=1e-5)
    shapes = [tuple(one.shape) for one in present]
    assert shapes == [tuple(s) for s in runtime.session.past_shapes(past)]

    token = int(logits[0, -1].argmax())
    (one,) = session(marked / "embed.onnx").run(None, {"input_ids": np.array([[token]])})
    later = dict(zip(empty, present, strict=True))
    logits, *_ = decoder.run(
        None, {"inputs_embeds": one, "position_ids": np.array([[len(ids)]])} | later
    )
    behind = runtime.answer(
        QUESTION, pictures(1, images), max_new_tokens=2, generation_config=False
    )
    assert behind.token_ids[0] == token
    assert behind.token_ids[1] == logits[0, -1].argmax()


def test_weights_are_copied_once(packing, marked):
    size = sum(path.stat().st_size for path in marked.iterdir())
    folder = packing.artifact.folder
    used = [spec.file for spec in packing.manifest.graphs if spec.name != "baseline_decoder"]
    own = sum((folder / name).stat().st_size for name in (*used, "weights.bin"))
    assert size <= own + 16384


def test_weights_that_graphs_share_are_copied_once(packing, tmp_path):
    graphs = {tmp_path / f"{number}.onnx": packing.graph("decoder") for number in range(2)}
    packing.save(graphs, tmp_path / "weights.bin")
    packing.save({tmp_path / "alone.onnx": packing.graph("decoder")}, tmp_path / "alone.bin")
    sizes = {path.stat().st_size for path in tmp_path.glob("*.bin")}
    assert len(sizes) == 1


def _pictured(one):
    from compressor.samples.layout import Pictured

    return Pictured(one.pixels, one.rows, one.arrangement)
