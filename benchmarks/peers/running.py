"""Loads a contender, and gives its prefill and its decode step as calls without arguments."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from benchmarks.decoder import prompts
from benchmarks.decoder_sessions import Array, Graph, Prompt
from benchmarks.peers.contenders import Contender, load_torch
from benchmarks.peers.measuring import Judged
from export.backends.openvino import shared_core
from export.backends.rotations import keep_apart

if TYPE_CHECKING:
    import torch


class Called(Protocol):
    """One call of a decoder."""

    def __call__(self) -> object:
        """Run."""

    def logits(self) -> Array:
        """Run and return the next-token logits [vocab]."""


class Loaded:
    """A contender in memory, on the prompts of `benchmarks.decoder`.

    Args:
        contender: which.
        folder: that it was written to.
        layers: of the model.
        threads: of a call.
        rotations_apart: OpenVINO must not fuse rotations, as `Runtime` has it; else it compiles a graph as
            it is.

    Attributes:
        calls: `prefill` and `decode`.
    """

    def __init__(
        self,
        contender: Contender,
        folder: Path,
        layers: int,
        threads: int,
        *,
        rotations_apart: bool = False,
    ) -> None:
        prompt, row = prompts(layers)
        self._text = prompt.as_text()
        if contender.kept is not None:
            kept = prompt.visual[np.arange(contender.kept) * len(prompt.visual) // contender.kept]
            prompt = replace(prompt, kept=kept)
        self._call = _opened(contender, folder, threads, rotations_apart)
        self.calls: dict[str, Callable[[], object]] = {
            "prefill": self._call(prompt),
            "decode": self._call(row),
        }

    def judged(self) -> Judged:
        """Return the logits of the prompt with every row a text row: no method changes these."""
        return Judged(self._call(self._text).logits())


def _opened(
    contender: Contender, folder: Path, threads: int, rotations_apart: bool
) -> Callable[[Prompt], Called]:
    file = folder / contender.file
    if contender.runs == "onnxruntime":
        return Graph(file, threads=threads).call
    if contender.runs == "torch":
        return _Torch(folder, threads).call
    f32 = contender.runs == "openvino f32"
    return _OpenVino(file, threads, f32=f32, rotations_apart=rotations_apart).call


def compile_in_openvino(
    file: Path, threads: int, *, f32: bool, rotations_apart: bool = False
) -> Any:
    """Return a graph compiled for the CPU, with OpenVINO's own choice of precision or in f32."""
    options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads}
    if f32:
        options |= {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
    read = shared_core().read_model(str(file))
    if rotations_apart:
        keep_apart(read)
    return shared_core().compile_model(read, "CPU", options)


class _OpenVino:
    """A graph in OpenVINO; caches go in and out, or are a state inside."""

    def __init__(self, file: Path, threads: int, *, f32: bool, rotations_apart: bool) -> None:
        self._model = compile_in_openvino(file, threads, f32=f32, rotations_apart=rotations_apart)
        self._inputs = {name for port in self._model.inputs for name in port.names}

    def call(self, prompt: Prompt) -> "_OpenVinoCall":
        request = self._model.create_infer_request()
        feeds = prompt.feeds(self._inputs)
        if (states := request.query_state()) and prompt.past:
            _fill(states, prompt)
            return _OpenVinoCall(request, feeds, resets=False)
        return _OpenVinoCall(request, feeds, resets=bool(states))


def _fill(states: Any, prompt: Prompt) -> None:
    """Put the past into the states; each is named for the input that it takes the place of."""
    from openvino import Tensor

    for state in states:
        layer, part = re.findall(r"layers\.(\d+)\.(key|value)s", state.name)[0]
        cache = prompt.caches[f"{layer}.{part}"]
        state.state = Tensor(np.ascontiguousarray(cache[None]))


class _OpenVinoCall:
    """A request with what it is fed.

    Where caches are a state, a decode step lengthens them by one row: a hundred steps behind a past of 800
    take some percent longer at the end, in its disfavour.
    """

    def __init__(self, request: Any, feeds: dict[str, Array], *, resets: bool) -> None:
        self._request, self._feeds, self._resets = request, feeds, resets

    def __call__(self) -> None:
        if self._resets:
            self._request.reset_state()
        self._request.infer(self._feeds, share_inputs=True)

    def logits(self) -> Array:
        self()
        return np.array(self._request.get_tensor("logits").data).reshape(-1)


class _Torch:
    """The model in torch, as transformers runs it."""

    def __init__(self, folder: Path, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._model = load_torch(folder)

    def call(self, prompt: Prompt) -> "_TorchCall":
        return _TorchCall(self._model, prompt)


class _TorchCall:
    """A call on a cache that is cut back to the past behind each."""

    def __init__(self, model: Any, prompt: Prompt) -> None:
        import torch
        from transformers import DynamicCache

        self._model, self._rows, self._past = (
            model,
            torch.from_numpy(prompt.rows)[None],
            prompt.past,
        )
        self._cache = DynamicCache(config=model.config)
        for layer in range(len(prompt.caches) // 2):
            key, value = (
                torch.from_numpy(prompt.caches[f"{layer}.{part}"])[None]
                for part in ("key", "value")
            )
            self._cache.update(key, value, layer)

    def __call__(self) -> "torch.Tensor":
        import torch

        with torch.inference_mode():
            found = self._model(
                inputs_embeds=self._rows, past_key_values=self._cache, logits_to_keep=1
            )
        self._cache.crop(self._past - self._cache.get_seq_length())
        logits: torch.Tensor = found.logits
        return logits

    def logits(self) -> Array:
        return self().numpy().reshape(-1)
