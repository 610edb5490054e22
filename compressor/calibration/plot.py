"""Draws a profile: what was measured of every layer, the layers that the plan chose marked."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.contract.measure import Drawing
from compressor.disk.files import DRAWING_MARK, write_bytes
from compressor.methods import MEASURES
from compressor.plan.plan import Plan
from compressor.profile import Profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")
# Distinguishable by colour-blind readers, and by brightness in print.
KEPT, CHOSEN = "#0b5394", "#e69138"
ONE_PLOT = (8.0, 3.5)  # inches


def draw_profile(profile: Profile, plan: Plan, base: Path) -> tuple[Path, ...]:
    """Write `base`.png and `base`.svg, one plot for each measure; return their paths.

    Args:
        profile: with at least one sample.
        plan: whose layers are marked: those that are frozen, those behind an exit, those without an MLP on
            visual tokens.
        base: path without suffix.

    Raises:
        VtcompressError: the plots cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = ONE_PLOT
    figure = Figure(figsize=(width, height * len(profile.measures)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(profile.measures), squeeze=False)[:, 0]
    for measure, place in zip(profile.measures, axes, strict=True):
        _draw(place, MEASURES[measure].drawing(profile.measurement(measure), plan))
    axes[0].set_title(f"{profile.model}: {len(profile.samples)} samples of {profile.data}")
    paths = tuple(base.with_name(base.name + suffix) for suffix in SUFFIXES)
    # A fixed salt and no date: the same profile gives the same files.
    with mpl.rc_context({"svg.hashsalt": "vtcompress"}):
        for path in paths:
            svg = {"Date": None, "Creator": DRAWING_MARK}
            metadata = svg if path.suffix == ".svg" else {"Software": DRAWING_MARK}
            drawn = BytesIO()
            figure.savefig(drawn, dpi=120, metadata=metadata, format=path.suffix[1:])
            write_bytes(path, drawn.getvalue())
    return paths


def _draw(axes: "Axes", drawing: Drawing) -> None:
    """Draw one measure: a bar or dot a value, crosses where there is none."""
    values = []
    for series in drawing.series:
        if not series.points:
            continue
        places, heights = zip(*series.points, strict=True)
        colour, label = CHOSEN if series.chosen else KEPT, series.label or None
        if series.mark == "cross":
            axes.scatter(places, heights, marker="x", color=colour, label=label)
        elif drawing.kind == "dots":
            axes.scatter(places, heights, s=9, color=colour, label=label)
        else:
            axes.bar(places, heights, color=colour, label=label)
            values += [height for height in heights if height > 0]
    axes.set_xlabel(drawing.x)
    axes.set_ylabel(drawing.y)
    labelled = any(series.label for series in drawing.series)
    if drawing.share:
        # Room for whole crosses below, and for the legend above full bars.
        axes.set_ylim(-0.04, 1.2)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.legend(loc="upper center", ncols=2)
    elif labelled:
        if values and max(values) > 20 * min(values):
            axes.set_yscale("log")
        axes.legend()
