"""The keys of a recipe's `yopo` entry."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import model_validator

from compressor.plan.layer import WindowSide
from compressor.schema.problems import allowed, apply_rule
from compressor.schema.values import (
    Divisor,
    ExactlyOne,
    Flag,
    KeptLayers,
    LayerOrDepth,
    MaskPath,
    NotNegative,
    Quantile,
    RecipeSection,
    Share,
)

WindowOrAuto = Annotated[
    WindowSide | Literal["auto"], allowed("an odd whole number, 3 or more, or auto")
]


class HeadKeys(ExactlyOne):
    """Which visual heads stay: those in which visual tokens take part.

    Exactly one of `keep`, `threshold` and `mask` is given.

    Attributes:
        keep: share that stays of the heads that may be pruned, over all layers, 0 to 1; the highest scores.
        threshold: a head stays if its score exceeds this in enough calibration samples, 0 or more.
        votes: what is enough, as a share of the samples, above 0, up to 1; None: 0.4, the authors'.
        mask: .npy or .safetensors file of one bool array [L, H], True: the head stays; needs no calibration.
    """

    beside: ClassVar[Mapping[str, str]] = {"votes": "threshold"}

    keep: Share | None = None
    threshold: NotNegative | None = None
    votes: Quantile | None = None
    mask: MaskPath | None = None


class YopoKeys(RecipeSection):
    """YOPO: four cuts of the work on visual tokens; at least one is given.

    Attributes:
        heads: which visual heads stay; None: all.
        keep_layers: layers whose heads all stay and do not count in a share, distinct, counted from 0;
            None: 0 and 1, as published, or none where a mask says it all.
        window: side of the square of grid neighbours that a visual row reads among visual rows, odd;
            `auto`: 5 where that is predicted to be faster; None: all of them.
        causal: neighbours before the row only; released: both sides.
        mlp_ratio: visual rows use one in so many MLP neurons; None: all.
        select: which ones: the `first`, as released, or those with the highest mean `activation`.
        off_from: first layer in which no row reads visual tokens, 1 or more, or as a share of the depth,
            above 0 and below 1 (0.5: layer 20 of 40); None: none.
        semantics: `removed`: what is cut is gone, which makes `off_from` an exit; `masked`: the released
            code's numbers, in which pruned keys stay in the softmax's denominator: saves little.
    """

    cuts: ClassVar[tuple[str, ...]] = ("heads", "window", "mlp_ratio", "off_from")

    heads: HeadKeys | None = None
    keep_layers: KeptLayers | None = None
    window: WindowOrAuto | None = None
    causal: Flag = False
    mlp_ratio: Divisor | None = None
    select: Literal["first", "activation"] = "first"
    off_from: LayerOrDepth | None = None
    semantics: Literal["removed", "masked"] = "removed"

    @model_validator(mode="wrap")
    @classmethod
    def _every_key_has_an_effect(cls, value: Any, handler: Callable[[Any], Self]) -> Self:
        result: Self = apply_rule(value, handler, _yopo_problem(value))
        return result


def _yopo_problem(value: object) -> str | None:
    """Return what is wrong with YOPO's keys as a whole, None if nothing is."""
    if not isinstance(value, dict):
        return None
    given = {key for key, item in value.items() if item is not None}
    if not given & set(YopoKeys.cuts):
        return f"nothing is cut; give at least one of: {', '.join(YopoKeys.cuts)}"
    idle = {
        "keep_layers": ("keep_layers" in given, "heads"),
        "causal": (value.get("causal") is True, "window"),
        "select": (value.get("select") == "activation", "mlp_ratio"),
    }
    for key, (asked, owner) in idle.items():
        if asked and owner not in given:
            return f"{key} goes with {owner}; give both or neither"
    if value.get("semantics") == "masked" and value.get("window") == "auto":
        return (
            "masked gives the released numbers, and a window is part of them; "
            "give window a number, or leave it out"
        )
    return None
