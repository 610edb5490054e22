"""Draws a profile: the contribution of every layer, the chosen layers marked."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from compressor.calibration.profile import Profile
from compressor.files import write_bytes

SUFFIXES = (".png", ".svg")
# Distinguishable by colour-blind readers, and by brightness in print.
UPDATED, FROZEN = "#0b5394", "#e69138"


def draw_profile(profile: Profile, frozen: Sequence[int], base: Path) -> tuple[Path, ...]:
    """Write `base`.png and `base`.svg; return their paths.

    Args:
        profile: with at least one sample.
        frozen: layers to mark as frozen.
        base: path without suffix.

    Raises:
        VtcompressError: the plots cannot be written.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    contribution = profile.layer_contribution()
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for chosen, colour, label in ((False, UPDATED, "updated"), (True, FROZEN, "frozen")):
        layers = [i for i in range(profile.layers) if (i in frozen) is chosen]
        if layers:
            axes.bar(layers, [contribution[i] for i in layers], color=colour, label=label)
    positive = [c for c in contribution if c > 0]
    if positive and max(contribution) > 20 * min(positive):
        axes.set_yscale("log")
    axes.set_xlabel("decoder layer")
    axes.set_ylabel("layer contribution (KL, nats)")
    axes.set_title(f"{profile.model}: {len(profile.samples)} samples of {profile.data}")
    axes.legend()
    paths = tuple(base.with_name(base.name + suffix) for suffix in SUFFIXES)
    # A fixed salt and no date: the same profile gives the same files.
    with mpl.rc_context({"svg.hashsalt": "vtcompress"}):
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else {}
            drawn = BytesIO()
            figure.savefig(drawn, dpi=120, metadata=metadata, format=path.suffix[1:])
            write_bytes(path, drawn.getvalue())
    return paths
