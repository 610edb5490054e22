"""What calibration can measure: all that profile, plots, console and reports know of it."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from compressor.plan.plan import Plan


@dataclass(frozen=True)
class Series:
    """Values that are drawn alike.

    Attributes:
        label: for the legend; empty: none.
        points: place and value; a place is a layer, or a word.
        chosen: by the plan.
        mark: `value`: a bar or dot; `cross`: where there is none.
    """

    label: str
    points: tuple[tuple[int | str, float], ...]
    chosen: bool = False
    mark: Literal["value", "cross"] = "value"


@dataclass(frozen=True)
class Drawing:
    """A chart of a measure, as data.

    Attributes:
        x: what places are.
        y: what values are, with the unit.
        series: kept and chosen values apart.
        kind: how values are drawn.
        share: values are shares, 0 to 1.
    """

    x: str
    y: str
    series: tuple[Series, ...]
    kind: Literal["bars", "dots"] = "bars"
    share: bool = False


@dataclass(frozen=True)
class MeasureTable:
    """Figures of a measure for the console: a table, or a sentence where columns are none."""

    title: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Measured:
    """What calibration found by one measure.

    Attributes:
        mean: over the samples, in the measure's shape; that of measures of gates is empty.
        samples: of each sample, where they are kept.
        count: how many samples.
        gate_layers: layers whose gates were asked.
        gates_digest: sha256 of their file; empty: no gates.
    """

    mean: tuple[Any, ...]
    samples: tuple[Any, ...] = ()
    count: int = 0
    gate_layers: tuple[int, ...] = ()
    gates_digest: str = ""


Axis = Literal["layers", "gates", "prompt", "heads", "neurons", "operators"]


@dataclass(frozen=True)
class Measure:
    """Something that calibration measures: all that profile, plots, console and reports know of it.

    Attributes:
        name: its key in profiles.
        shape: axes of one sample's values; the first is `layers`, `gates`, or `prompt`, which has one place.
        of: measures one prompt from a `compressor.decoder.full_pass.FullPass`; imports torch in its body.
        walk: gives the `compressor.decoder.walks.walk.Walk` that measures the same layer by layer; imports
            torch in its body. None: where layers are read from disk, each prompt reads all of them anew.
        chooses: what is chosen by it, for the problem of a profile without it.
        otherwise: what the recipe could say instead; ends that problem.
        title: of its table.
        unit: of a value; also names its column where there is one value a layer.
        kept: every sample's values, or their mean alone.
        infinite: whether a value may be infinite.
        unasked: also measured for a recipe without methods.
        draw: chart of it beside a plan; None: one bar a layer.
        show: table of it; None: one row a layer.
    """

    name: str
    shape: tuple[Axis, ...]
    of: Callable[[Any], Any]
    chooses: str
    otherwise: str = ""
    title: str = ""
    unit: str = ""
    kept: Literal["samples", "mean"] = "samples"
    infinite: bool = False
    unasked: bool = False
    draw: Callable[[Measured, Plan], Drawing] | None = None
    show: Callable[[Measured], MeasureTable] | None = None
    walk: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        """Refuse axes that no profile can keep."""
        first, *rest = self.shape or ("",)
        if first not in ("layers", "gates", "prompt") or len(rest) > 1:
            raise ValueError(
                f"measure {self.name}: shape {self.shape}: one axis or two, and the first is layers, gates "
                "or prompt"
            )

    def drawing(self, measured: Measured, plan: Plan) -> Drawing:
        """Return the chart of what was found beside the plan that was made of it."""
        if self.draw is not None:
            return self.draw(measured, plan)
        return Drawing("decoder layer", self.words, (Series("", tuple(enumerate(measured.mean))),))

    def table(self, measured: Measured) -> MeasureTable:
        """Return what was found, for the console."""
        if self.show is not None:
            return self.show(measured)
        columns = ("layer", self.unit or self.name)
        return table_of(self.title or self.name, columns, enumerate(measured.mean))

    @property
    def words(self) -> str:
        """Title and unit."""
        title = self.title or self.name
        return f"{title} ({self.unit})" if self.unit else title

    def finite(self, values: Any) -> bool:
        """Whether values are numbers, so that something can be ranked by them."""
        if isinstance(values, tuple | list):
            return all(map(self.finite, values))
        return not math.isnan(values) if self.infinite else math.isfinite(values)


def table_of(
    title: str, columns: tuple[str, ...], rows: Iterable[Iterable[object]]
) -> MeasureTable:
    """Return a table of values; those that are no whole numbers have four digits that count."""
    cells = ((f"{v:.3e}" if isinstance(v, float) else str(v) for v in row) for row in rows)
    return MeasureTable(title, columns, tuple(map(tuple, cells)))


def marked(
    values: Sequence[float], chosen: Sequence[int], labels: tuple[str, str]
) -> tuple[Series, ...]:
    """Return one value a layer as two series: layers that are not chosen, and those that are.

    Args:
        values: [L].
        chosen: layers.
        labels: of layers that are not chosen, and of those that are.
    """
    return marked_points(((point, point[0] in chosen) for point in enumerate(values)), labels)


def marked_points(
    points: Iterable[tuple[tuple[int | str, float], bool]], labels: tuple[str, str]
) -> tuple[Series, ...]:
    """Return points as two series: those that are not chosen, and those that are.

    Args:
        points: each with whether it is chosen.
        labels: of those that are not, and of those that are.
    """
    found = list(points)
    return tuple(
        Series(label, tuple(point for point, chosen in found if chosen is mark), mark)
        for mark, label in zip((False, True), labels, strict=True)
    )
