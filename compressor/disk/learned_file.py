"""A safetensors file of weights that a method brings along, and that no model of its own holds."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compressor.disk.weight_file import WeightFile, not_finite
from compressor.errors import PlanError

SHOWN = 2
"""Names of a file that an error lists."""


@dataclass(frozen=True)
class LearnedFile:
    """What such a file holds, read from its header.

    Attributes:
        path: of the file.
        shapes: of the tensors below a prefix, by their names without it.
        names: of these tensors in the file.
        digest: sha256 of the file.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    names: Mapping[str, str]
    digest: str

    @classmethod
    def read(cls, path: Path, prefix: str) -> "LearnedFile":
        """Read the header of a file.

        Args:
            path: of the file.
            prefix: pattern of what stands in front of the names of the tensors that are read.

        Raises:
            PlanError: missing, a pickle, no safetensors file, or without such tensors.
        """
        file = WeightFile.read(path, PlanError, "give the file of trained weights")
        found = file.shapes
        names = {re.sub(f"^(?:{prefix})", "", n): n for n in found if re.match(prefix, n)}
        if not names:
            has = ", ".join(sorted(found)[:SHOWN]) or "no tensor"
            raise PlanError([f"{path}: none of the tensors that are read are in it, but {has} .."])
        return cls(path, {own: found[n] for own, n in names.items()}, names, file.digest)

    def misfits(self, wanted: Mapping[str, Sequence[int]]) -> list[str]:
        """Return a line for each tensor that is missing, of another shape than is wanted, or no numbers."""
        found = []
        for name, shape in wanted.items():
            has = self.shapes.get(name)
            if has is None:
                found.append(f"{self.path}: {name}: missing; give the whole file")
            elif has != tuple(shape):
                found.append(
                    f"{self.path}: {name}: shape {[*has]}, this model needs {[*shape]}; give weights that "
                    "were trained with it"
                )
        return found or not_finite(self.path, (self.names[name] for name in wanted))
