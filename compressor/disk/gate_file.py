"""The safetensors file of DyVTE's gates.

Names are those of the released code: `model.visual_gates_router.{i}.w1.weight`, `.w2.weight`.
`train-gates` writes into its metadata which model the gates belong to.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compressor.disk.weight_file import WeightFile, not_finite, other_model
from compressor.errors import GatesError
from compressor.facts import ModelFacts

NAME = re.compile(r"^(?:model\.)?visual_gates_router\.(\d+)\.(w[12])\.weight$")


@dataclass(frozen=True)
class GateFile:
    """What a gate file holds, read from its header.

    Attributes:
        path: of the file.
        shapes: of every gate tensor by layer and part, e.g. `(3, "w1")`: [W, 2D]; `(3, "w2")`: [2, W].
        names: of these tensors in the file.
        model_digest: of the model they were trained on; None: the file does not say.
        digest: sha256 of the file.
    """

    path: Path
    shapes: dict[tuple[int, str], tuple[int, ...]]
    names: dict[tuple[int, str], str]
    model_digest: str | None
    digest: str

    @property
    def width(self) -> int:
        """Hidden width W of the gates."""
        return next(shape[0] for (_, part), shape in self.shapes.items() if part == "w1")

    @classmethod
    def read(cls, path: Path) -> "GateFile":
        """Read the header of a gate file.

        Raises:
            GatesError: missing, no safetensors file, or without gates.
        """
        file = WeightFile.read(path, GatesError, "train gates with `vtcompress train-gates`")
        found = file.shapes
        places = {name: (int(match[1]), match[2]) for name in found if (match := NAME.match(name))}
        if not any(part == "w1" for _, part in places.values()):
            raise GatesError(
                [
                    f"{path}: no gate in it; expected tensors named visual_gates_router.0.w1.weight .."
                ]
            )
        return cls(
            path=path,
            shapes={place: found[name] for name, place in places.items()},
            names={place: name for name, place in places.items()},
            model_digest=file.model_digest,
            digest=file.digest,
        )

    def check(self, facts: ModelFacts, model_digest: str | None, candidates: Sequence[int]) -> None:
        """Refuse gates that do not fit.

        Args:
            facts: of the model.
            model_digest: of the model; None: not taken yet, so only shapes are looked at.
            candidates: layers whose gates are needed.

        Raises:
            GatesError: of another model, of other shapes, missing, or no numbers; all are named.
        """
        problems = []
        if (differs := other_model(self.model_digest, model_digest)) is not None:
            problems.append(
                f"{self.path}: trained on another model ({differs}); train gates for this one with "
                "`vtcompress train-gates`"
            )
        hidden, width = facts.decoder.hidden, self.width
        for layer in candidates:
            for part, wanted in (("w1", (width, 2 * hidden)), ("w2", (2, width))):
                shape = self.shapes.get((layer, part))
                name = f"visual_gates_router.{layer}.{part}.weight"
                if shape is None:
                    problems.append(
                        f"{self.path}: {name}: missing; leave layer {layer} out of candidates, or train it"
                    )
                elif shape != wanted:
                    problems.append(
                        f"{self.path}: {name}: shape {list(shape)}, this model (hidden {hidden}) and "
                        f"gates of width {width} need {list(wanted)}"
                    )
        if problems := problems or not_finite(self.path, self.names.values()):
            raise GatesError(problems)


def stable_header(content: bytes) -> bytes:
    """Return the bytes of a safetensors file with its header in one order.

    The library writes metadata in another order every run; equal content shall give equal files.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]
