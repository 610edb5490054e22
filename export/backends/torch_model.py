"""The compressed torch model behind the session call; the reference of export fidelity."""

import torch

from compressor.arrangement import Arrangement
from compressor.compressed import CompressedModel
from compressor.decoder import KeyValue
from compressor.plan.plan import Cache
from compressor.samples.layout import VisualRows
from compressor.samples.prompts import see
from export.session.arrays import Array
from export.session.feeds import CallRows
from export.session.session import Past, in_rows, place_of


class TorchSession:
    """A compressed model in torch; see `export.session.session.Session`."""

    def __init__(self, model: CompressedModel) -> None:
        self.model = model

    @property
    def max_batch(self) -> int | None:
        """See `Session.max_batch`."""
        return 1 if self.model.plan.gates is not None else None

    @property
    def reads_question(self) -> bool:
        """See `Session.reads_question`."""
        return self.model.plan.gates is not None or bool(self.model.plan.keeps())

    @property
    def moves_text(self) -> bool:
        """See `Session.moves_text`."""
        return self.model.plan.moves_text

    @property
    def caches(self) -> tuple[Cache, ...]:
        """See `Session.caches`."""
        return self.model.decoder.caches

    @property
    def rows_kept(self) -> int | None:
        """See `Session.rows_kept`."""
        return self.model.plan.rows_kept

    @torch.inference_mode()
    def vision(self, pixel_values: Array, arrangement: Arrangement | None = None) -> VisualRows:
        """See `Session.vision`."""
        pixels = torch.from_numpy(pixel_values).to(self.model.embedding)
        features, kept = see(self.model.vision, pixels, arrangement)
        return VisualRows(tuple(map(_array, features)), None if kept is None else _array(kept))

    @torch.inference_mode()
    def embed(self, input_ids: Array) -> Array:
        """See `Session.embed`."""
        return _array(self.model.embed(self._beside(input_ids)))

    @torch.inference_mode()
    def decode(self, rows: CallRows, past: Past) -> tuple[Array, Past]:
        """See `Session.decode`."""
        *arrays, further = rows
        *inputs, positions = (None if a is None else self._beside(a) for a in arrays)
        deepstack = [*map(self._beside, further)]
        logits, present = self.model.decoder(*inputs, past, positions, deepstack)
        return _array(logits), present

    def _beside(self, array: Array) -> torch.Tensor:
        """Return an array where the weights are, numbers that are no places in their dtype."""
        given = torch.from_numpy(array)
        weights = self.model.decoder.norm.weight
        return given.to(weights) if given.is_floating_point() else given.to(weights.device)

    def empty_past(self, batch: int) -> Past:
        """See `Session.empty_past`."""
        return self.model.decoder.empty_past(batch)

    def check_room(self, past: Past, visual: int, text: int) -> None:
        """See `Session.check_room`; caches grow."""

    def past_shapes(self, past: list[KeyValue | torch.Tensor]) -> tuple[tuple[int, ...], ...]:
        """See `Session.past_shapes`."""
        return tuple(tuple(tensor.shape) for item in past for tensor in _tensors(item))

    def cached_keys(self, past: list[KeyValue], layer: int) -> Array:
        """See `Session.cached_keys`."""
        return in_rows(_array(past[place_of(self.caches, layer)].key.float()))

    def past_bytes(self, past: list[KeyValue | torch.Tensor]) -> int:
        """See `Session.past_bytes`."""
        pairs = (item for item in past if isinstance(item, tuple))
        return sum(tensor.nbytes for pair in pairs for tensor in pair)

    def buffer_bytes(self, past: Past) -> int | None:  # noqa: ARG002 - see `Session.buffer_bytes`
        """See `Session.buffer_bytes`; caches grow."""
        return None


def _array(tensor: torch.Tensor) -> Array:
    """Return a tensor's numbers; numpy has no bfloat16."""
    array: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
    return array


def _tensors(item: KeyValue | torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return a cache's tensors; what tells visual rows is one by itself."""
    return item if isinstance(item, tuple) else (item,)
