"""How far the pixels that openvino.genai makes of a picture are from the runtime's, measured in the client.

It hands out no pixels. So it is given a model whose vision part passes them on as rows, and whose decoder
says as its one token how far they are from the wanted ones.

Letters: I pictures, S tokens of the prompt, N rows of a picture, W = 3 * H * W / N values of a row.
"""

import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from shutil import copyfile
from typing import Any, NamedTuple

import numpy as np

from export.session.arrays import Array

STEPS = 4
"""Of one 8-bit level that are told apart."""


class PixelProbe(NamedTuple):
    """What pixels are compared with.

    Attributes:
        ids: [S] tokens of the prompt.
        image_token: of these, what stands for a row of a picture.
        pixels: [I, 3, H, W] as the runtime makes them.
        level: difference of values between two 8-bit levels.
        vocab: number of tokens.
    """

    ids: Sequence[int]
    image_token: int
    pixels: Array
    level: float
    vocab: int

    @property
    def rows(self) -> int:
        """N."""
        return list(self.ids).count(self.image_token) // len(self.pixels)


def largest_difference(
    folder: Path, question: str, pictures: Sequence[Any], probe: PixelProbe
) -> float:
    """Return the largest difference of pixel values, in steps of a quarter of a level.

    Args:
        folder: the packed folder, whose settings and tokenizer the client reads.
        question: what is asked.
        pictures: [I] tensors as the client takes them.
        probe: what they are to become.
    """
    genai, openvino = import_module("openvino_genai"), import_module("openvino")
    told: list[int] = []

    class Listener(genai.StreamerBase):  # type: ignore[misc, name-defined]
        def write(self, token: Any) -> Any:
            told.extend([token] if isinstance(token, int) else token)
            return genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    with tempfile.TemporaryDirectory(dir=folder, prefix=".pixels-") as made:
        for file in folder.iterdir():
            if file.suffix == ".json" or "tokenizer" in file.name or file.suffix == ".jinja":
                copyfile(file, Path(made) / file.name)
        for name, model in _models(probe).items():
            openvino.save_model(
                model, Path(made) / f"openvino_{name}_model.xml", compress_to_fp16=False
            )
        pipeline = genai.VLMPipeline(made, "CPU", INFERENCE_PRECISION_HINT="f32")
        options = {"max_new_tokens": 1, "do_sample": False, "ignore_eos": True}
        pipeline.generate(question, images=list(pictures), streamer=Listener(), **options)
    return told[0] / STEPS * probe.level


def _models(probe: PixelProbe) -> dict[str, Any]:
    import openvino
    from openvino import opset15 as ops

    width = probe.pixels[0].size // probe.rows
    ids = np.array(probe.ids)
    wanted = np.zeros((1, len(ids), width), np.float32)
    wanted[0, ids == probe.image_token] = probe.pixels.reshape(-1, width)

    def port(name: str, kind: str, *axes: int) -> Any:
        made = ops.parameter(
            openvino.PartialShape(list(axes)), getattr(openvino.Type, kind), name=name
        )
        made.output(0).get_tensor().set_names({name})
        return made

    def model(result: Any, name: str, *inputs: Any) -> Any:
        result.output(0).get_tensor().set_names({name})
        return openvino.Model([ops.result(result)], list(inputs), name)

    pixels = port("pixel_values", "f32", -1, 3, -1, -1)
    passed = ops.reshape(pixels, np.array([-1, probe.rows, width]), special_zero=False)
    tokens = port("input", "i64", -1, -1)
    sizes = ops.concat([ops.shape_of(tokens, "i64"), np.array([width])], 0)
    nothing = ops.broadcast(np.array(0, np.float32), sizes)
    rows = port("inputs_embeds", "f32", -1, -1, width)
    mask, places = port("attention_mask", "i64", -1, -1), port("position_ids", "i64", -1, -1)
    beam = port("beam_idx", "i32", -1)
    off = ops.reduce_max(ops.absolute(ops.subtract(rows, wanted)), np.array([0, 1, 2]))
    steps = ops.round(ops.divide(off, np.array(probe.level / STEPS, np.float32)))
    number = ops.convert(ops.minimum(steps, np.array(probe.vocab - 1, np.float32)), "i64")
    chosen = ops.one_hot(
        ops.reshape(number, np.array([1, 1]), special_zero=False),
        np.array(probe.vocab), np.array(1, np.float32), np.array(0, np.float32), -1,
    )  # fmt: skip
    return {
        "vision_embeddings": model(passed, "last_hidden_state", pixels),
        "text_embeddings": model(nothing, "inputs_embeds", tokens),
        "language": model(chosen, "logits", rows, mask, places, beam),
    }
