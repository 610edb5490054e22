"""What stands for a picture in the prompt, and how it becomes pixels, as data.

A family gives both (`Family.picture_steps`, `Family.picture_text`), the manifest holds them, `export.runtime`
reads them. A new kind of text is a class here, its place in `PictureText` and a case in `text_of`.
"""

from typing import Annotated, Literal, TypeAlias, assert_never

from pydantic import Field

from compressor.facts import Facts
from compressor.families.picture_steps import PictureSteps


class TextRun(Facts):
    """One image token for each row of the picture, in one run.

    Attributes:
        before: text in front of it.
        after: text behind it.
    """

    text: Literal["run"] = "run"
    before: str = ""
    after: str = ""


# A union of several kinds is told apart by their field `text`.
PictureText: TypeAlias = Annotated[TextRun, Field()]


class PictureForm(Facts):
    """How a model takes pictures.

    Attributes:
        token: text of the image token; in a rendered prompt each picture is one of them.
        steps: what is done to a picture before the vision graph; None: the processor's files tell it.
        text: what the image token is replaced by.
    """

    token: str
    steps: PictureSteps | None = None
    text: PictureText = TextRun()


def text_of(form: PictureForm, rows: int) -> str:
    """Return what stands for one picture in a prompt; its image tokens are as many as its rows.

    Args:
        form: of the model.
        rows: of the picture.
    """
    text = form.text
    match text:
        case TextRun():
            return text.before + form.token * rows + text.after
        case _:
            assert_never(text)
