"""Draws a profile: what was measured of every layer, the layers that the plan chose marked."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.disk.files import DRAWING_MARK, write_bytes
from compressor.methods.dyvte.rule import first_to_fire
from compressor.plan.plan import Plan
from compressor.profile import Measure, Profile

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
        plan: whose layers are marked: those that ShortV froze, those behind an exit, those without an MLP on
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
        _draw(place, measure, profile, plan)
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


def _draw(axes: "Axes", measure: Measure, profile: Profile, plan: Plan) -> None:
    exited = [layer.index for layer in plan.layers if layer.exited]
    match measure:
        case "layer_contribution":
            frozen = [layer.index for layer in plan.layers if layer.reason == "shortv"]
            _bars(axes, profile.layer_contribution(), frozen, "updated", "frozen")
            axes.set_xlabel("decoder layer")
            axes.set_ylabel("layer contribution (KL, nats)")
        case "exit_kl":
            _bars(axes, profile.exit_kl(), exited, "visual tokens stay", "visual tokens are gone")
            axes.set_xlabel("first layer without visual tokens")
            axes.set_ylabel("KL at the last prompt token (nats)")
        case "gate_margin":
            layers = profile.gate_layers
            found = [first_to_fire(sample.gate_margin, layers) for sample in profile.samples]
            names = [str(layer) for layer in layers] + ["never"]
            counts = [found.count(layer) for layer in layers] + [found.count(None)]
            axes.bar(names, counts, color=KEPT)
            axes.set_xlabel("layer whose gate fires first")
            axes.set_ylabel("prompts")
        case "head_score":
            _heads(axes, profile, plan)
        case "neuron_activity":
            _neurons(axes, profile, plan)


def _heads(axes: "Axes", profile: Profile, plan: Plan) -> None:
    """Draw one dot a query head, those in which visual tokens take part apart from the others."""
    group = plan.model.decoder.heads // plan.model.decoder.kv_heads
    dots = [
        (
            layer.index,
            score,
            not layer.exited and (layer.groups is None or head // group in layer.groups),
        )
        for layer, row in zip(plan.layers, profile.head_score(), strict=True)
        for head, score in enumerate(row)
    ]
    for mark, colour, label in ((True, KEPT, "kept"), (False, CHOSEN, "without visual tokens")):
        chosen = [(x, y) for x, y, stays in dots if stays is mark]
        if chosen:
            layers, scores = zip(*chosen, strict=True)
            axes.scatter(layers, scores, s=9, color=colour, label=label)
    axes.set_xlabel("decoder layer")
    axes.set_ylabel("head score (visual / text attention)")
    axes.legend()


def _neurons(axes: "Axes", profile: Profile, plan: Plan) -> None:
    """Draw one bar a layer in which visual tokens run the MLP, and a cross where they do not."""
    running = [layer for layer in plan.layers if not (layer.frozen or layer.exited)]
    others = [layer.index for layer in plan.layers if layer.frozen or layer.exited]
    if running:
        shares = [_share(profile.neuron_activity[x.index], x.neurons) for x in running]
        axes.bar([x.index for x in running], shares, color=KEPT, label="visual tokens run the MLP")
    if others:
        # A gap alone would look like a share of 0.
        axes.scatter(
            others,
            [0.0] * len(others),
            marker="x",
            color=CHOSEN,
            label="no visual tokens in the MLP",
        )
    # Room for whole crosses below, and for the legend above full bars.
    axes.set_ylim(-0.04, 1.2)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel("decoder layer")
    axes.set_ylabel("share of activation in kept neurons")
    axes.legend(loc="upper center", ncols=2)


def _share(activity: Sequence[float], neurons: Sequence[int] | None) -> float:
    """Return what share of all activation the given neurons have; None: all of them."""
    kept = activity if neurons is None else [activity[n] for n in neurons]
    return sum(kept) / (sum(activity) or 1.0)


def _bars(
    axes: "Axes", values: Sequence[float], chosen: Sequence[int], kept_word: str, chosen_word: str
) -> None:
    for mark, colour, label in ((False, KEPT, kept_word), (True, CHOSEN, chosen_word)):
        layers = [i for i in range(len(values)) if (i in chosen) is mark]
        if layers:
            axes.bar(layers, [values[i] for i in layers], color=colour, label=label)
    positive = [value for value in values if value > 0]
    if positive and max(values) > 20 * min(positive):
        axes.set_yscale("log")
    axes.legend()
