"""`pack.json`: what a stock client's folder was made of, its files, and what came of the self-check."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from compressor.disk.files import read_json, write_text
from compressor.disk.mistaken import PACK_FILE
from compressor.errors import PackError
from compressor.facts import Facts, ModelFacts
from compressor.families.pictures.text import PictureForm
from export.artifact.manifest import FileEntry

NOT_ASKED = "it was switched off"


class CheckedAnswer(Facts):
    """One question of the self-check, asked of the runtime and of the client.

    Attributes:
        question: what was asked.
        images: how many pictures came with it.
        wanted: the runtime's answer.
        found: the client's.
        token_ids: whether the prompt's tokens are the same; None: the client does not tell.
        pixels: largest difference of pixel values, infinite where the sizes differ; None: the client does not
            tell, or takes those that this tool makes.
        pixels_equal: whether that is within the client's limit; None likewise.
    """

    question: str
    images: int = Field(ge=0)
    wanted: str
    found: str
    token_ids: bool | None = None
    pixels: float | None = None
    pixels_equal: bool | None = None


class PackCheck(Facts):
    """The outcome of the self-check.

    Attributes:
        not_run: why the client was not asked; empty: it was.
        failed: what the client said when it failed on the folder; empty: it did not.
        answers: a row each.
    """

    not_run: str = ""
    failed: str = ""
    answers: tuple[CheckedAnswer, ...] = ()

    @property
    def differs(self) -> tuple[str, ...]:
        """What is not the runtime's: of token ids, pixels and answers; or that the client fails."""
        rows = self.answers
        if self.failed:
            return (f"it fails ({self.failed})",)
        found = {
            "token ids": any(row.token_ids is False for row in rows),
            "pixels": any(row.pixels_equal is False for row in rows),
            "answers": any(row.wanted != row.found for row in rows),
        }
        return tuple(name for name, differ in found.items() if differ)


class PackFile(Facts):
    """What a packed folder says of itself; stored as `pack.json`.

    Attributes:
        client: name of the client that loads it.
        artifact: digest of the graphs and weights of the artifact that it was made of.
        dtype: of the graphs.
        model: facts of the model.
        pictures: how the model takes pictures.
        files: every other file by its relative name.
        check: outcome of the self-check.
    """

    pack_format: Literal[1] = 1
    client: str
    artifact: str
    dtype: Literal["float32", "float16", "bfloat16"]
    model: ModelFacts
    pictures: PictureForm
    files: dict[str, FileEntry]
    check: PackCheck = PackCheck(not_run=NOT_ASKED)

    def save(self, folder: Path) -> None:
        """Write it into its folder."""
        write_text(folder / PACK_FILE, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "PackFile":
        """Read it from its folder.

        Raises:
            PackError: it is missing, damaged, or of a newer format.
        """
        return read_json(folder / PACK_FILE, cls, PackError, "pack", "pack the artifact anew")
