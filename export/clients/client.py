"""What a stock client is to this tool: what it refuses, how its folder is written and how it is tried."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from export.session.arrays import Array

if TYPE_CHECKING:
    from export.artifact.artifact import Artifact
    from export.clients.packing import Packing


@dataclass(frozen=True)
class CheckQuestion:
    """A question of the self-check.

    Attributes:
        question: what is asked.
        images: files of its pictures.
        max_new_tokens: longest answer.
    """

    question: str
    images: tuple[Path, ...]
    max_new_tokens: int = 16


@dataclass(frozen=True)
class Answered:
    """What a client, or the runtime, made of one question.

    Attributes:
        text: the greedy answer without special tokens.
        token_ids: of the prompt as the decoder reads it; None: the client does not tell.
        pixels: [I, 3, H, W] float32; None: the client does not tell, or takes this tool's own.
        pixels_off: their largest difference from the runtime's, where the client tells that alone.
    """

    text: str
    token_ids: tuple[int, ...] | None = None
    pixels: Array | None = None
    pixels_off: float | None = None


class Client(ABC):
    """One stock client; an instance stands in `export.clients.registry.CLIENTS`.

    Attributes:
        name: that the command line takes.
        extra: of this tool, whose packages write its folder; the self-check may need more.
        packages: that must be there to write its folder, by the names they are imported by.
        pixel_limit: how far its pixel values may be from the runtime's.
        copies: how often the weights lie on the disk while its folder is written.
    """

    name: ClassVar[str]
    extra: ClassVar[str] = "clients"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnx_ir")
    pixel_limit: ClassVar[float] = 1e-3
    copies: ClassVar[int] = 1

    @abstractmethod
    def refuses(self, artifact: "Artifact") -> list[str]:
        """Return why the client cannot run an artifact, a reason with its remedy each; none: it can."""

    @abstractmethod
    def write(self, packing: "Packing", folder: Path) -> None:
        """Write what the client loads into an empty folder; the README comes from `readme`."""

    @abstractmethod
    def readme(self, packing: "Packing") -> str:
        """Return Markdown: what the folder is, and the client's own few lines of code that run it."""

    @abstractmethod
    def check(
        self, packing: "Packing", folder: Path, questions: Sequence[CheckQuestion]
    ) -> list[Answered] | str:
        """Ask the stock client the questions; return its answers in their order, or why it was not run."""

    def lacking(self) -> tuple[str, ...]:
        """Return the packages that cannot be imported and without which no folder can be written."""
        return tuple(name for name in self.packages if not _imports(name))


def _imports(name: str) -> bool:
    try:
        import_module(name)
    except ImportError:
        return False
    return True
