"""What stands for a picture in the prompt, and how it becomes pixels, as data.

A family gives both (`Family.picture_steps`, `Family.picture_text`), the manifest holds them, `export.runtime`
reads them. A new kind of text is a class here, its place in `PictureText` and a case in `text_of`.
"""

from typing import Annotated, Literal, TypeAlias, assert_never

from pydantic import Field

from compressor.facts import Facts
from compressor.families.pictures.sizes import tile_count
from compressor.families.pictures.steps import PictureSteps


class TextRun(Facts):
    """One image token for each row of the picture, in one run.

    Attributes:
        before: text in front of it.
        after: text behind it.
    """

    text: Literal["run"] = "run"
    before: str = ""
    after: str = ""


class TileRows(Facts):
    """A run of image tokens for each tile, with the tile's row and column in front; a line a row of tiles.

    The whole picture, or a picture of one tile, comes behind an empty line, or alone.

    Attributes:
        tile: text in front of every run, and behind the last.
        whole: text between that and the run of the whole picture.
    """

    text: Literal["tile_rows"] = "tile_rows"
    tile: str
    whole: str


PictureText: TypeAlias = Annotated[TextRun | TileRows, Field(discriminator="text")]


class PictureForm(Facts):
    """How a model takes pictures.

    Attributes:
        token: text of the image token; in a rendered prompt each picture is one of them.
        steps: what is done to a picture before the vision graph; None: the processor's files tell it.
        text: what the image token is replaced by.
        steps_beside_others: what is done to each of several pictures of a prompt; None: the same.
    """

    token: str
    steps: PictureSteps | None = None
    text: PictureText = TextRun()
    steps_beside_others: PictureSteps | None = None


def text_of(form: PictureForm, rows: int, grid: tuple[int, int] = (1, 1)) -> str:
    """Return what stands for one picture in a prompt; its image tokens are as many as its rows.

    Args:
        form: of the model.
        rows: of the picture.
        grid: rows and columns of its tiles.
    """
    text = form.text
    match text:
        case TextRun():
            return text.before + form.token * rows + text.after
        case TileRows():
            run = form.token * (rows // tile_count(grid))
            whole = text.tile + text.whole + run + text.tile
            if grid == (1, 1):
                return whole
            lines = (
                "".join(
                    f"{text.tile}<row_{row}_col_{column}>{run}" for column in range(1, grid[1] + 1)
                )
                for row in range(1, grid[0] + 1)
            )
            return "\n".join((*lines, "", whole))
        case _:
            assert_never(text)
