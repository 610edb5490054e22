"""A picture with the cells over it whose visual tokens go on (clear) or do not (shaded)."""

from collections.abc import Iterator

from markupsafe import Markup

from compressor.samples.small_pictures import LARGEST_PICTURE, SmallPicture
from export.report.kept_pictures import KeptPicture, KeptView, TileCells
from export.report.text.svg import element, picture


def cells_charts(
    key: str, name: str, seen: KeptPicture, small: SmallPicture
) -> Iterator[tuple[Markup, str]]:
    """Yield a drawing of each view of a picture, and the words below it.

    Args:
        key: distinguishes its identifiers from those of other drawings of the page.
        name: what the picture is called.
        seen: what goes on of it.
        small: the picture as the page shows it; it is in the first drawing, the others refer to it.
    """
    height, width = seen.size
    image = {"width": width, "height": height, "id": f"{key}-image", "href": small.uri}
    shown = element("image", **image, preserveAspectRatio="none", class_=_pixels(small))
    for number, view in enumerate(seen.views):
        words = seen.said(view)
        title = f"{name}: {words}"
        description = (
            f"Cells that go on are clear, the others shaded. Of those that go on: {view.thirds}."
        )
        yield _drawing(f"{key}-{number}", view, seen, shown, title, description), words
        shown = element("use", href=f"#{key}-image")


def _pixels(small: SmallPicture) -> str | None:
    return "tiny" if small.width < LARGEST_PICTURE // 2 else None


def _drawing(
    key: str, view: KeptView, seen: KeptPicture, shown: Markup, title: str, description: str
) -> Markup:
    (height, width), frames = seen.size, [tile.frame for tile in view.tiles]
    top, left = min(0.0, *(f.top for f in frames)), min(0.0, *(f.left for f in frames))
    high = max(height, *(f.top + f.height for f in frames)) - top
    wide = max(width, *(f.left + f.width for f in frames)) - left
    scale = LARGEST_PICTURE / max(high, wide)
    parts = [shown, _unseen(seen, view), *map(_left_out, view.tiles)]
    place = f"scale({scale:.6f}) translate({-left:.3f} {-top:.3f})"
    inside = element("g", *parts, transform=place)
    return picture(key, scale * wide, scale * high, title, description, [inside])


def _left_out(tile: TileCells) -> Markup:
    """Return the cells of a tile that do not go on, in its own units: a cell is 1 high and 1 wide."""
    frame, (rows, columns) = tile.frame, tile.grid
    path = "".join(f"M{column} {row}h{count}v1h-{count}z" for row, column, count in tile.left_out)
    place = (
        f"translate({frame.left:.3f} {frame.top:.3f}) "
        f"scale({frame.width / columns:.6f} {frame.height / rows:.6f})"
    )
    return element("path", d=path, transform=place, class_="left-out")


def _unseen(seen: KeptPicture, view: KeptView) -> Markup:
    """Return what no tile shows of the picture: all of it, without a hole for what they show."""
    (height, width), frames = seen.size, [tile.frame for tile in view.tiles]
    top, left = max(0.0, min(f.top for f in frames)), max(0.0, min(f.left for f in frames))
    bottom = min(float(height), max(f.top + f.height for f in frames))
    right = min(float(width), max(f.left + f.width for f in frames))
    hole = f"M{left:.2f} {top:.2f}V{bottom:.2f}H{right:.2f}V{top:.2f}z"
    return element(
        "path", d=f"M0 0H{width}V{height}H0z{hole}", fill_rule="evenodd", class_="unseen"
    )
