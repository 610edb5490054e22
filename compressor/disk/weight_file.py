"""Safetensors files of weights that a method reads beside the model: gates, routers, a projector.

Metadata may say which model they belong to; files of others have none, and then shapes alone are compared.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from compressor.disk.files import is_file
from compressor.disk.mistaken import mistaken
from compressor.disk.model_digest import difference, same_model
from compressor.disk.opening import sha256_of
from compressor.errors import ProblemsError

MODEL_DIGEST = "model_digest"
PART_OF = "part_of"
"""Key of the method's name, in the metadata of parts that `train-parts` trained."""
PICKLES = (".bin", ".pt", ".pth", ".pkl")


@dataclass(frozen=True)
class WeightFile:
    """What such a file holds, read from its header.

    Attributes:
        path: of the file.
        shapes: of its tensors, by name.
        metadata: what the file says of them.
        digest: sha256 of the file.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    digest: str

    @property
    def model_digest(self) -> str | None:
        """Of the model they were trained on; None: the file does not say."""
        return self.metadata.get(MODEL_DIGEST)

    @classmethod
    def read(cls, path: Path, error: type[ProblemsError], remedy: str) -> "WeightFile":
        """Read the header of a file.

        Args:
            path: of the file.
            error: to raise.
            remedy: where there is none.

        Raises:
            ProblemsError: `error`: it is missing, or no safetensors file.
        """
        from safetensors import SafetensorError, safe_open

        if (problem := mistaken(path, "gates")) is not None:
            raise error([problem])
        if not is_file(path):
            raise error([f"{path}: no such file; {remedy}"])
        if (problem := pickled(path)) is not None:
            raise error([problem])
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as failure:
            raise error([f"{path}: no readable safetensors file: {failure}"]) from None
        return cls(path, found, metadata, sha256_of(path))


def pickled(path: Path) -> str | None:
    """Return that a file is a pickle by its name, and how it is converted; None: it is none."""
    if path.suffix not in PICKLES:
        return None
    safe = path.with_suffix(".safetensors").name
    return (
        f"{path}: a pickle runs what is written in it, so none is read; where you trust it, convert it: "
        f'`safetensors.torch.save_file(torch.load("{path.name}", weights_only=True), "{safe}")`, '
        f"and give {safe}"
    )


def not_finite(path: Path, names: Iterable[str]) -> list[str]:
    """Return a line for each tensor of a safetensors file that holds NaN or infinite values.

    Args:
        path: of the file.
        names: of tensors in it that are read; others may be those of a whole model.
    """
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        bad = [name for name in names if not file.get_tensor(name).isfinite().all()]
    return [
        f"{path}: {name}: NaN or infinite values; take an earlier checkpoint of the training"
        for name in bad
    ]


def other_model(own: str | None, model_digest: str | None) -> str | None:
    """Return in words how the model that weights were trained on differs from another; None: nobody can tell.

    Args:
        own: digest of the first.
        model_digest: of the second; None, or empty: not taken yet.
    """
    if not own or not model_digest or same_model(own, model_digest):
        return None
    return difference(own, model_digest)
