"""Loads a contender, and gives its way from pixels to logits, and to visual rows, as calls."""

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.decoder_sessions import Array, Prompt, open_session
from benchmarks.peers.contenders import Contender
from benchmarks.peers.image.contenders import (
    DECODER,
    EMBEDDING,
    PIECES,
    PROJECTOR,
    TOWER,
    WHOLE,
)
from benchmarks.peers.image.model import Question, load_torch, question, torch_answer
from benchmarks.peers.measuring import Conditions, Judged
from benchmarks.peers.running import compile_in_openvino
from export.backends.openvino import shared_core
from export.runtime.images import SeenPicture
from export.runtime.runtime import Runtime

FIRST, VISION = "first token", "vision"


class ImageLoaded:
    """A contender in memory.

    Args:
        first: gives the logits behind the prompt.
        vision: gives the visual rows; None: no call of the contender does.
        kept: gives which visual rows stay; None: all do.
    """

    def __init__(
        self,
        first: Callable[[], Any],
        vision: Callable[[], object] | None = None,
        kept: Callable[[], Array | None] = lambda: None,
    ) -> None:
        self.calls: dict[str, Callable[[], object]] = {FIRST: first}
        if vision is not None:
            self.calls[VISION] = vision
        self._kept = kept

    def judged(self) -> Judged:
        """Return the logits of the picture and prompt."""
        return Judged(np.array(self.calls[FIRST]()).reshape(-1), self._kept())


def load(contender: Contender, conditions: Conditions) -> ImageLoaded:
    """Load a contender on the question."""
    folder, threads = conditions.place(contender), conditions.threads
    asked = question(folder)
    if contender.plan is not None:
        return _ours(folder / contender.file, contender.runs, threads, asked)
    if contender.runs == "torch":
        return _torch(folder, threads, asked)
    opened = partial(_opened, contender.runs, threads)
    if contender.file == WHOLE:
        return _whole(opened(folder / WHOLE), asked)
    return _Pieces(folder / PIECES, opened, asked).loaded()


class Run(Protocol):
    """A graph in a runtime."""

    inputs: set[str]

    def __call__(self, feeds: dict[str, Array], output: str) -> Array:
        """Run on those of the feeds that it takes; return the output whose name begins so."""


class _Onnx:
    """A graph in ONNX Runtime; outputs that are not asked for stay where they are made."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._session = open_session(folder / "model.onnx", threads)
        self.inputs = {given.name for given in self._session.get_inputs()}
        self._outputs = [found.name for found in self._session.get_outputs()]

    def __call__(self, feeds: dict[str, Array], output: str) -> Array:
        from onnxruntime import OrtValue

        values = {
            name: OrtValue.ortvalue_from_numpy(feeds[name]) for name in self.inputs & feeds.keys()
        }
        found = self._session.run_with_ort_values(self._outputs, values)
        place = next(i for i, name in enumerate(self._outputs) if name.startswith(output))
        array: Array = found[place].numpy()
        return array


class _OpenVino:
    """A graph in OpenVINO; caches are a state inside, which is empty before each call."""

    def __init__(self, folder: Path, threads: int, *, f32: bool) -> None:
        model = compile_in_openvino(folder / "openvino_model.xml", threads, f32=f32)
        self.inputs = {name for port in model.inputs for name in port.names}
        self._outputs = [name for port in model.outputs for name in port.names]
        self._request = model.create_infer_request()

    def __call__(self, feeds: dict[str, Array], output: str) -> Array:
        given = {name: feeds[name] for name in self.inputs & feeds.keys()}
        self._request.reset_state()
        self._request.infer(given, share_inputs=True)
        name = next(name for name in self._outputs if name.startswith(output))
        array: Array = self._request.get_tensor(name).data
        return array


def _opened(runs: str, threads: int, folder: Path) -> Run:
    if runs == "onnxruntime":
        return _Onnx(folder, threads)
    return _OpenVino(folder, threads, f32=runs == "openvino f32")


def _whole(graph: Run, asked: Question) -> ImageLoaded:
    ids = asked.ids[None]
    feeds = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "pixel_values": asked.pixels,
        "logits_to_keep": np.array(1),
    }
    return ImageLoaded(lambda: graph(feeds, "logits"))


class _Pieces:
    """Tower, projector and decoder, joined by hand."""

    def __init__(self, folder: Path, opened: Callable[[Path], Run], asked: Question) -> None:
        self._tower, self._projector, self._decoder = (
            opened(folder / name) for name in (TOWER, PROJECTOR, DECODER)
        )
        self._embedding = np.load(folder / EMBEDDING, mmap_mode="r")
        self._asked = asked
        self._past = _empty_past(folder)

    def loaded(self) -> ImageLoaded:
        """Return the calls."""
        return ImageLoaded(self._first, self._vision)

    def _vision(self) -> Array:
        states = self._tower({"pixel_values": self._asked.pixels}, "hidden_states")
        # The first row is the class token's.
        patches = np.ascontiguousarray(states[:, 1:])
        rows: Array = self._projector({"image_features": patches}, "output")[0]
        return rows

    def _first(self) -> Array:
        rows = self._embedding[self._asked.ids]
        rows[self._asked.visual] = self._vision()
        prompt = Prompt(rows, self._asked.visual, self._past)
        return self._decoder(prompt.feeds(self._decoder.inputs), "logits")


def _empty_past(folder: Path) -> dict[str, Array]:
    written = json.loads((folder / DECODER / "config.json").read_text(encoding="utf-8"))
    config = written["text_config"]
    empty = np.zeros((config["num_key_value_heads"], 0, config["head_dim"]), np.float32)
    layers = range(config["num_hidden_layers"])
    names = [f"{layer}.{part}" for layer in layers for part in ("key", "value")]
    return dict.fromkeys(names, empty)


def _torch(folder: Path, threads: int, asked: Question) -> ImageLoaded:
    import torch

    torch.set_num_threads(threads)
    model, pixels = load_torch(folder), torch.from_numpy(asked.pixels)

    def vision() -> None:
        with torch.inference_mode():
            model.get_image_features(pixels)

    return ImageLoaded(lambda: torch_answer(model, asked), vision)


def _ours(folder: Path, runs: str, threads: int, asked: Question) -> ImageLoaded:
    precision = "f32"
    # OpenVINO's own choice, as the others have it.
    if runs == "openvino" and "BF16" in shared_core().get_property(
        "CPU", "OPTIMIZATION_CAPABILITIES"
    ):
        precision = "bf16"
    with warnings.catch_warnings():  # that an artifact of random weights was not judged
        warnings.simplefilter("ignore")
        runtime = Runtime.load(
            folder, backend=runs, precision=precision, threads=threads, verify=False, preload=True
        )
    rows = len(asked.visual)
    picture = SeenPicture(asked.pixels, rows, runtime.prompter.image_token * rows)
    prompt = runtime.prompt_of(tuple(asked.ids.tolist()), (picture,))

    def kept() -> Array | None:
        found = runtime.session.vision(asked.pixels).kept
        return None if found is None else found[0]

    return ImageLoaded(
        lambda: runtime.prefill([prompt])[0],
        lambda: runtime.session.vision(asked.pixels),
        kept,
    )
