"""SVG as text: elements whose names, numbers and words are written safely.

Every chart is a picture with a title and a description for those who do not see it. Colours are classes
(`templates/charts.css`), so that one drawing serves light, dark and paper.
"""

from collections.abc import Iterable
from pathlib import Path

from markupsafe import Markup, escape

from compressor.disk.files import DRAWING_MARK
from export.report.text.characters import printable

NAMESPACE = "http://www.w3.org/2000/svg"
CHARTS_CSS = Path(__file__).parent.parent / "templates" / "charts.css"


def element(name: str, *children: Markup, **attributes: object) -> Markup:
    """Return `<name ...>children</name>`; `class_` and `stroke_width` become `class` and `stroke-width`.

    Numbers are rounded to a hundredth, None is left out, everything else is escaped.
    """
    given = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _value(value))
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, given, Markup("").join(children))


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return printable(str(value))


def text(x: float, y: float, words: str, class_: str = "label", anchor: str = "start") -> Markup:
    """Return words at a place; `y` is their base line."""
    content = escape(printable(words))
    return element("text", content, x=x, y=y, class_=class_, text_anchor=anchor)


def rect(
    x: float, y: float, width: float, height: float, class_: str, hint: str = "", stripes: str = ""
) -> Markup:
    """Return a rectangle; `hint` is shown when a mouse rests on it.

    `stripes` is the key of the drawing, for one that is marked by stripes besides its colour.
    """
    inside = (element("title", escape(printable(hint))),) if hint else ()
    place = {"x": x, "y": y, "width": max(width, 0.0), "height": height}
    if stripes:
        return element("rect", *inside, **place, fill=f"url(#{stripes}-hatch)", class_="edge")
    return element("rect", *inside, **place, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """Return a straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def picture(
    key: str, width: float, height: float, title: str, description: str, parts: Iterable[Markup]
) -> Markup:
    """Return a whole drawing.

    Args:
        key: distinguishes its identifiers from those of other drawings of the page.
        width: of the drawing, in its own units.
        height: likewise.
        title: what it is, in a few words.
        description: what is to be seen in it, for people who do not see it.
        parts: elements, in drawing order.
    """
    attributes = {"patternUnits": "userSpaceOnUse", "patternTransform": "rotate(45)"}
    hatch = element(
        "pattern",
        element("rect", width=6, height=6, class_="hatch-back"),
        element("line", x1=0, y1=0, x2=0, y2=6, class_="hatch-stripe"),
        id=f"{key}-hatch",
        width=6,
        height=6,
        **attributes,
    )
    return element(
        "svg",
        element("title", escape(printable(title)), id=f"{key}-title"),
        element("desc", escape(printable(description)), id=f"{key}-description"),
        element("defs", hatch),
        *parts,
        xmlns=NAMESPACE,
        viewBox=f"0 0 {_value(float(width))} {_value(float(height))}",
        role="img",
        aria_labelledby=f"{key}-title",
        aria_describedby=f"{key}-description",
        class_="chart",
    )


def standalone(drawing: Markup) -> str:
    """Return a drawing as the text of an SVG file, its colours inside."""
    # A file of ours, not of a user.
    style = element("style", Markup(CHARTS_CSS.read_text(encoding="utf-8")))  # noqa: S704
    head, mark, rest = str(drawing).partition(">")
    first = f'<?xml version="1.0" encoding="UTF-8"?>\n<!-- {DRAWING_MARK} -->\n'
    return f"{first}{head}{mark}{style}{rest}\n"


def shortened(words: str, most: int) -> str:
    """Return words cut to `most` characters, with an ellipsis where something is gone."""
    return words if len(words) <= most else words[: most - 1] + "…"
