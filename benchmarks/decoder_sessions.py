"""ONNX Runtime sessions of the decoder benchmark, with all inputs bound before the clock starts."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnxruntime as ort

Array = NDArray[Any]


@dataclass(frozen=True)
class Prompt:
    """One call's rows and the caches before them; the same content for every graph.

    Attributes:
        rows: [S, D] embeddings in the order of the prompt.
        visual: [V] places of the visual rows among them.
        caches: keys and values per layer, [H_kv, P, d] each, as `{layer}.key` and `{layer}.value`.
        kept: [K] the visual rows that this project's graph gets; None: all.
    """

    rows: Array
    visual: NDArray[np.int64]
    caches: Mapping[str, Array]
    kept: NDArray[np.int64] | None = None

    @property
    def past(self) -> int:
        """P."""
        return int(next(iter(self.caches.values())).shape[1])

    def as_text(self) -> "Prompt":
        """Return the same prompt with every row a text row."""
        return Prompt(self.rows, self.visual[:0], self.caches)

    def feeds(self, inputs: Collection[str]) -> dict[str, Array]:
        """Return what a graph with inputs of these names is fed, whoever made it."""
        if "visual_embeds" in inputs:
            feeds = self.ours()
        elif "past_key_values.0.key" in inputs:
            feeds = self.genai()
        else:
            feeds = self.transformers()
        return {
            name: np.asarray(array, order="C") for name, array in feeds.items() if name in inputs
        }

    def ours(self) -> dict[str, Array]:
        """Return the inputs of this project's decoder graph, B = 1."""
        places = np.arange(len(self.rows))
        text = np.setdiff1d(places, self.visual)
        visual = self.visual if self.kept is None else self.kept
        return {
            "visual_embeds": self.rows[None, visual],
            "inputs_embeds": self.rows[None, text],
            "visual_index": self.past + visual[None],
            "text_index": self.past + text[None],
            **self._past(),
        }

    def genai(self) -> dict[str, Array]:
        """Return the inputs of the graph that onnxruntime-genai's builder makes, B = 1."""
        return {**self._in_order(), **self._past()}

    def transformers(self) -> dict[str, Array]:
        """Return the inputs of the graphs that transformers' exporters make, B = 1."""
        past = {
            f"input.past_key_values.layers.{name}s": cache[None]
            for name, cache in self.caches.items()
        }
        one = {"logits_to_keep": np.array(1), "beam_idx": np.zeros(1, np.int32)}
        return {**self._in_order(), **one, **past}

    def _in_order(self) -> dict[str, Array]:
        total = self.past + len(self.rows)
        return {
            "inputs_embeds": self.rows[None],
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(self.past, total)[None],
        }

    def _past(self) -> dict[str, Array]:
        return {f"past_key_values.{name}": cache[None] for name, cache in self.caches.items()}


class Call:
    """One run of a graph: inputs are bound without a copy, outputs stay where they are made."""

    def __init__(self, session: "ort.InferenceSession", binding: "ort.IOBinding") -> None:
        self._session = session
        self._binding = binding

    def __call__(self) -> None:
        """Run."""
        self._session.run_with_iobinding(self._binding)

    def logits(self) -> Array:
        """Run and return the next-token logits [vocab]."""
        self()
        names = [output.name for output in self._session.get_outputs()]
        logits: Array = self._binding.get_outputs()[names.index("logits")].numpy()
        return logits.reshape(-1)


def open_session(file: Path, threads: int) -> "ort.InferenceSession":
    """Return a graph in ONNX Runtime on the CPU, with its own choices."""
    import onnxruntime as ort  # when our own packages have switched off what it reports

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads of one session must not spin while another is being timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])


class Graph:
    """One decoder graph, loaded."""

    def __init__(self, file: Path, *, threads: int) -> None:
        self._session = open_session(file, threads)
        self._inputs = {i.name for i in self._session.get_inputs()}

    def call(self, prompt: Prompt, *, in_place: bool = False) -> Call:
        """Bind a prompt.

        Args:
            prompt: what to run.
            in_place: new keys and values go into the past's own buffers, which onnxruntime-genai's
                runtime does; its graph alone can.
        """
        from onnxruntime import OrtValue

        binding = self._session.io_binding()
        places = {}
        for name, array in prompt.feeds(self._inputs).items():
            if in_place and name.startswith("past_key_values."):
                # One row more than the past, for the row to come.
                room = np.pad(array, ((0, 0), (0, 0), (0, len(prompt.rows)), (0, 0)))
                value = OrtValue.ortvalue_from_numpy(room)
                places[name.replace("past_key_values", "present")] = value
            else:
                value = OrtValue.ortvalue_from_numpy(array)
            binding.bind_ortvalue_input(name, value)
        for output in self._session.get_outputs():
            if output.name in places:
                binding.bind_ortvalue_output(output.name, places[output.name])
            else:
                binding.bind_output(output.name, "cpu")
        return Call(self._session, binding)
