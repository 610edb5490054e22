"""What a torch model of stand-ins can tell: its pictures and tokens now, its layers one at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from compressor.compressed import CompressedModel
from compressor.decoder.by_layer import ByLayer, OneCall, sharing
from compressor.decoder.quantization import in_whole_numbers
from compressor.decoder.weights import source_of, stored_weights
from compressor.plan.plan import Plan
from compressor.schema.sections import ExportSection
from export.backends.torch_model import TorchSession
from export.checks.fidelity import TEXT_ROWS, LabelledCall, Recording, prompts
from export.session.arrays import Array
from export.session.feeds import CallRows
from export.session.session import Session

IMAGES, TEXTS, STEPS = (0, 1), TEXT_ROWS[:1], 2
"""Fewer calls than of a model in memory, because every layer runs them three times."""


@dataclass(frozen=True)
class Reference:
    """The torch side of a check by layer.

    Attributes:
        layers: the decoder.
        recording: what came out of the vision tower and the embedding.
        prompts: names and calls, on these.
    """

    layers: ByLayer
    recording: Recording
    prompts: tuple[tuple[str, list[LabelledCall]], ...]

    def begun(self) -> list[list[OneCall]]:
        """Return every prompt's calls in front of the first layer."""
        found = []
        for _, calls in self.prompts:
            behind: list[OneCall] = []
            for _, rows in calls:
                behind.append(self._begin(rows, behind[-1] if behind else None))
            found.append(behind)
        return found

    def _begin(self, rows: CallRows, behind: OneCall | None) -> OneCall:
        *arrays, positions, further = rows
        return self.layers.begin(
            [*map(torch.from_numpy, arrays)],
            None if positions is None else torch.from_numpy(positions),
            [*map(torch.from_numpy, further)],
            behind,
        )


def read_reference(small: CompressedModel, settings: ExportSection, room: int | None) -> Reference:
    """Run what of a compressed model is in memory.

    Args:
        small: in float32; its decoder and its embedding are stand-ins.
        settings: how weights are stored; in whole numbers they are what torch computes with, too.
        room: rows of one conversation in caches of fixed size; see `export.checks.fidelity.record`.
    """
    recording = Recording()
    session = _StoredEmbedding(small)
    made = tuple(prompts_by_layer(recording, session, small.plan, room))
    return Reference(layers_as_stored(small, settings), recording, made)


def layers_as_stored(small: CompressedModel, settings: ExportSection) -> ByLayer:
    """Return the layers of a compressed model, in float32, whole numbers with what they stand for.

    Args:
        small: in float32; its decoder has stand-ins.
        settings: how weights are stored.
    """
    decoder = sharing(small.decoder)
    weights = stored_weights(decoder)
    if settings.block_size is not None:
        floats = {name: replace(one, dtype=settings.dtype) for name, one in weights.items()}
        weights = in_whole_numbers(floats, settings.weights, settings.block_size)
    return ByLayer(decoder, small.stored, weights)


def prompts_by_layer(
    recording: Recording, session: Session, plan: Plan, room: int | None
) -> Iterator[tuple[str, list[LabelledCall]]]:
    """Yield what is run by layer; see `export.checks.fidelity.prompts`."""
    return prompts(recording, session, plan, images=IMAGES, room=room, texts=TEXTS, steps=STEPS)


class _StoredEmbedding(TorchSession):
    """A torch session that reads rows of the token embedding from their file."""

    @torch.inference_mode()
    def embed(self, input_ids: Array) -> Array:
        """See `Session.embed`."""
        stored = self.model.stored.get(source_of("tied_head")[0])
        if stored is None:
            return super().embed(input_ids)
        rows: Array = stored.read()[torch.from_numpy(input_ids)].float().numpy()
        return rows
