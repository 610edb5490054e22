"""Safetensors files of weights that a method reads beside the model: gates, routers.

Metadata may say which model they belong to; files of others have none, and then shapes alone are compared.
"""

from dataclasses import dataclass
from pathlib import Path

from compressor.disk.files import is_file, sha256_of
from compressor.disk.mistaken import mistaken
from compressor.disk.model_digest import difference, same_model
from compressor.errors import ProblemsError

MODEL_DIGEST = "model_digest"


@dataclass(frozen=True)
class WeightFile:
    """What such a file holds, read from its header.

    Attributes:
        path: of the file.
        shapes: of its tensors, by name.
        model_digest: of the model they were trained on; None: the file does not say.
        digest: sha256 of the file.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    model_digest: str | None
    digest: str

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
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as failure:
            raise error([f"{path}: no readable safetensors file: {failure}"]) from None
        return cls(path, found, metadata.get(MODEL_DIGEST), sha256_of(path))


def other_model(own: str | None, model_digest: str | None) -> str | None:
    """Return in words how the model that weights were trained on differs from another; None: nobody can tell.

    Args:
        own: digest of the first.
        model_digest: of the second; None, or empty: not taken yet.
    """
    if not own or not model_digest or same_model(own, model_digest):
        return None
    return difference(own, model_digest)
