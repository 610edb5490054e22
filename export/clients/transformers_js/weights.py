"""Weights beside graphs under names that the client derives from the graph's: each of them once on disk.

The client reads `FILE.onnx_data`, `FILE.onnx_data_1` ... for `FILE.onnx`, so tensors that several graphs read
need several names. Pieces that the same graphs read lie in one file together, which has a name for each of
these graphs: hard links, or copies where the file system has none.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import copyfile

import onnx_ir as ir

from compressor.progress import Megabytes
from export.clients.packing import PAGE, Packing, WeightPiece, piece_of, write_pieces

LARGEST_PART = 1 << 30
"""Bytes of a file of weights, unless one tensor has more: browsers hold each file in one buffer."""


def save_linked(packing: Packing, models: Mapping[Path, ir.Model]) -> dict[Path, int]:
    """Write graphs and what they read of the artifact's weights.

    Args:
        packing: shows the bytes that are copied.
        models: by the file that each is written to; their folders are there.

    Returns:
        How many files of weights each graph has.
    """
    counts = dict.fromkeys(models, 0)
    places: dict[tuple[Path, WeightPiece], tuple[Path, int]] = {}
    readers = _readers(models)
    done = Megabytes(packing.progress, "copying weights, MB")
    with done.of(sum(piece.length for piece in readers)):
        for files, pieces in _parts(readers):
            names = [_part_name(file, counts[file]) for file in files]
            write_pieces(pieces, names[0], done)
            for file, name in zip(files, names, strict=True):
                counts[file] += 1
                if name != names[0]:
                    _link(names[0], name)
                places |= {(file, piece): (name, offset) for piece, offset in pieces.items()}
    for file, model in models.items():
        for value, tensor in _outside(model):
            name, offset = places[file, piece_of(tensor)]
            value.const_value = ir.ExternalTensor(
                name.name,
                offset,
                tensor.length,
                ir.DataType(tensor.dtype),
                shape=ir.Shape(tensor.shape),
                name=value.name or "",
                base_dir=str(file.parent),
            )
        ir.save(model, file)
    return counts


def _outside(model: ir.Model) -> Iterator[tuple[ir.Value, ir.ExternalTensor]]:
    """Yield what a graph reads of a file of weights."""
    for value in model.graph.initializers.values():
        if isinstance(tensor := value.const_value, ir.ExternalTensor):
            yield value, tensor


def _readers(models: Mapping[Path, ir.Model]) -> dict[WeightPiece, list[Path]]:
    """Return which graphs read each piece."""
    found: dict[WeightPiece, list[Path]] = {}
    for file, model in models.items():
        for piece in dict.fromkeys(piece_of(tensor) for _, tensor in _outside(model)):
            found.setdefault(piece, []).append(file)
    return found


def _part_name(file: Path, number: int) -> Path:
    return file.with_name(f"{file.name}_data{f'_{number}' if number else ''}")


def _parts(
    readers: Mapping[WeightPiece, Sequence[Path]],
) -> list[tuple[tuple[Path, ...], dict[WeightPiece, int]]]:
    """Return files of weights: who reads each, and the offset of each piece in it."""
    found: list[tuple[tuple[Path, ...], dict[WeightPiece, int]]] = []
    for files in dict.fromkeys(map(tuple, readers.values())):
        pieces: dict[WeightPiece, int] = {}
        end = 0
        for piece in (piece for piece, wanting in readers.items() if tuple(wanting) == files):
            if pieces and end + piece.length > LARGEST_PART:
                found.append((files, pieces))
                pieces, end = {}, 0
            pieces[piece] = end
            end += -(-piece.length // PAGE) * PAGE
        found.append((files, pieces))
    return found


def _link(there: Path, name: Path) -> None:
    with suppress(OSError):
        os.link(there, name)
        return
    copyfile(there, name)
