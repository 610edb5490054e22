"""An artifact on its way into a stock client's folder: its graphs, without weights, and its weights, once."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import TYPE_CHECKING, Any, NamedTuple

from compressor.disk.opening import open_regular
from compressor.facts import ModelFacts
from compressor.plan.plan import Plan
from compressor.progress import SILENT, Megabytes, Progress
from export.artifact.artifact import PLAN_FILE, Artifact
from export.artifact.manifest import Manifest
from export.graphs.spec import GraphSpec

if TYPE_CHECKING:
    import onnx_ir as ir

# Offsets that are multiples of the page size can be mapped without copying.
PAGE = 4096
COPIED = 1 << 22
"""Bytes that are copied at a time."""
# Files that describe the tokenizer; those of them that an artifact has.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "generation_config.json",
)  # fmt: skip


class WeightPiece(NamedTuple):
    """Where bytes of a weight file lie."""

    file: Path
    offset: int
    length: int


@dataclass(frozen=True)
class Packing:
    """What a client's folder is made of.

    Attributes:
        artifact: opened and verified.
        progress: shows the bytes that are copied.
    """

    artifact: Artifact
    progress: Progress = SILENT

    @property
    def manifest(self) -> Manifest:
        """The artifact's."""
        return self.artifact.manifest

    @property
    def facts(self) -> ModelFacts:
        """Of the model."""
        return self.manifest.model

    @property
    def plan(self) -> Plan:
        """What visual rows do in each layer."""
        return Plan.load(self.artifact.folder / PLAN_FILE)

    def spec(self, name: str) -> GraphSpec:
        """Return the declaration of a graph: `vision`, `embed` or `decoder`."""
        return next(spec for spec in self.manifest.graphs if spec.name == name)

    def graph(self, name: str) -> "ir.Model":
        """Return a fresh graph whose weights stay in the artifact's file; it may be changed."""
        import onnx_ir as ir

        return ir.load(self.artifact.folder / self.spec(name).file)

    def settings(self, name: str) -> dict[str, Any]:
        """Return what a JSON file of the artifact holds; empty: there is none."""
        from compressor.disk.model_json import optional_json

        return dict(optional_json(self.artifact.folder / name))

    def copy(self, folder: Path, names: Iterable[str] = TOKENIZER_FILES) -> None:
        """Copy small files of the artifact, those that are there."""
        for name in names:
            if name in self.manifest.files:
                copyfile(self.artifact.folder / name, folder / name)

    def save(self, graphs: Mapping[Path, "ir.Model"], weights: Path) -> None:
        """Write graphs whose large tensors lie in one file, each of them once.

        Args:
            graphs: by the file that each is written to.
            weights: file beside them, or in a folder beside them, for what they read of the artifact's.

        Raises:
            ValueError: the weights do not lie below the folder of each graph.
        """
        import onnx_ir as ir

        places: dict[WeightPiece, int] = {}
        end = 0
        for file, model in graphs.items():
            location = weights.relative_to(file.parent).as_posix()
            for value in model.graph.initializers.values():
                tensor = value.const_value
                if not isinstance(tensor, ir.ExternalTensor):
                    continue
                piece = piece_of(tensor)
                if piece not in places:
                    places[piece] = end
                    end += -(-piece.length // PAGE) * PAGE
                value.const_value = ir.ExternalTensor(
                    location,
                    places[piece],
                    piece.length,
                    ir.DataType(tensor.dtype),
                    shape=ir.Shape(tensor.shape),
                    name=value.name or "",
                    base_dir=str(file.parent),
                )
        done = Megabytes(self.progress, f"copying {weights.name}, MB")
        with done.of(sum(piece.length for piece in places)):
            write_pieces(places, weights, done)
        for file, model in graphs.items():
            ir.save(model, file)


def piece_of(tensor: "ir.ExternalTensor") -> WeightPiece:
    """Return where a tensor's bytes lie."""
    if tensor.offset is None or tensor.length is None:
        raise RuntimeError(f"{tensor.name}: says not where it lies")
    return WeightPiece(Path(tensor.base_dir) / tensor.location, tensor.offset, tensor.length)


def write_pieces(places: Mapping[WeightPiece, int], file: Path, done: Megabytes) -> None:
    """Write pieces of weight files to offsets of a new file; `done` is told the bytes."""
    with file.open("wb") as target:
        for piece, offset in places.items():
            target.seek(offset)
            with open_regular(piece.file) as source:
                source.seek(piece.offset)
                for block in _blocks(source, piece.length):
                    target.write(block)
                    done.add(len(block))


def _blocks(source: Any, length: int) -> Iterator[bytes]:
    while length:
        block = source.read(min(length, COPIED))
        if not block:
            raise OSError("the weight file ends too soon")
        length -= len(block)
        yield block
