"""The safetensors file of routers: a matrix for each layer, or one for all.

Names are `model.layers.{i}.router.weight`, as gamma-MoD's released code has them in the model's own file, or
`router.weight`, which serves every layer; `model.` may be missing. Other tensors of the file are not read.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compressor.disk.weight_file import WeightFile, not_finite, other_model
from compressor.errors import RoutersError

NAME = re.compile(r"^(?:model\.)?(?:layers\.(\d+)\.)?router\.weight$")
FORM = "layers.0.router.weight .., or router.weight for all layers"


@dataclass(frozen=True)
class RouterFile:
    """What a file of routers holds, read from its header.

    Attributes:
        path: of the file.
        names: of the tensors in the file, by layer; None: of all layers that have none of their own.
        shapes: likewise.
        model_digest: of the model they were trained on; None: the file does not say.
        digest: sha256 of the file.
    """

    path: Path
    names: dict[int | None, str]
    shapes: dict[int | None, tuple[int, ...]]
    model_digest: str | None
    digest: str

    @classmethod
    def read(cls, path: Path) -> "RouterFile":
        """Read the header of a file of routers.

        Raises:
            RoutersError: missing, no safetensors file, or without routers.
        """
        remedy = "give the file of routers that were trained for this model"
        file = WeightFile.read(path, RoutersError, remedy)
        matches = {name: match for name in file.shapes if (match := NAME.match(name))}
        if not matches:
            raise RoutersError([f"{path}: no router in it; expected tensors named {FORM}"])
        names = {int(m[1]) if m[1] else None: name for name, m in matches.items()}
        shapes = {layer: file.shapes[name] for layer, name in names.items()}
        return cls(path, names, shapes, file.model_digest, file.digest)

    def place(self, layer: int) -> int | None:
        """Return under which of `names` a layer's router is."""
        return layer if layer in self.names else None

    def check(
        self, hidden: int, outputs: int, model_digest: str | None, layers: Sequence[int] = ()
    ) -> None:
        """Refuse routers that do not fit.

        Args:
            hidden: D of the model.
            outputs: numbers that a router gives of a row.
            model_digest: of the model; None, or empty: not taken yet, so that shapes alone are compared.
            layers: whose routers are needed.

        Raises:
            RoutersError: of another model, of other shapes, missing, or no numbers; all are named.
        """
        problems = []
        if (differs := other_model(self.model_digest, model_digest)) is not None:
            problems.append(
                f"{self.path}: trained on another model ({differs}); give routers of this one"
            )
        problems += [
            f"{self.path}: {self.names[layer]}: shape {list(shape)}, this model (hidden {hidden}) needs "
            f"{[outputs, hidden]}"
            for layer, shape in self.shapes.items()
            if shape != (outputs, hidden)
        ]
        problems += [
            f"{self.path}: layers.{layer}.router.weight: missing; leave layer {layer} out, or train it"
            for layer in layers
            if self.place(layer) not in self.names
        ]
        if problems := problems or not_finite(self.path, self.names.values()):
            raise RoutersError(problems)
