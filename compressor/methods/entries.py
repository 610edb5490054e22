"""The methods a recipe may list under `compress`, one class each, and the values that they are made of.

A new method is one class, one field of `CompressEntry` and one member of `Method`.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import (
    model_validator,
)

from compressor.plan.plan import Window
from compressor.schema.problems import allowed, apply_rule, key_names
from compressor.schema.values import (
    AboveOne,
    Candidates,
    Count,
    ExactlyOne,
    Flag,
    Frozen,
    GatesPath,
    KeptLayers,
    LayerOrDepth,
    Layers,
    MaskPath,
    NotNegative,
    Quantile,
    Rate,
    Ratio,
    Section,
    Seed,
    Share,
)

WindowOrAuto = Annotated[
    Window | Literal["auto"], allowed("an odd whole number, 3 or more, or auto")
]


class ShortV(ExactlyOne):
    """ShortV: visual rows pass unchanged through the layers that contribute least.

    Exactly one of the keys is given.

    Attributes:
        frozen: share to freeze of the layers that can be frozen, 0 to 1: those in front of an exit whose
            visual rows somebody reads. Rounded to the nearest number of layers, a half up.
        layers: the layers to freeze, distinct, counted from 0; needs no calibration.
        speedup: predicted speed-up of the prefill to reach by the whole recipe, above 1, against the naive
            original.
    """

    name: ClassVar[Literal["shortv"]] = "shortv"
    other_names: ClassVar[Mapping[str, str]] = {
        "share": "frozen",
        "ratio": "frozen",
        "keep": "frozen",
    }

    frozen: Frozen | None = None
    layers: Layers | None = None
    speedup: AboveOne | None = None


class VisualExit(ExactlyOne):
    """Visual tokens leave the decoder at the input of one layer, the same for every prompt (VTW).

    Exactly one of `layer`, `max_kl` and `speedup` is given.

    Attributes:
        layer: first layer without visual rows, 1 or more, or as a share of the depth, above 0 and below 1
            (0.5: layer 16 of 32); needs no calibration.
        max_kl: the smallest such layer whose mean KL at the last prompt token is within this, in nats.
        first_layer: smallest layer that the search by `max_kl` may find; None: 5, as published.
        speedup: the largest such layer with which the predicted prefill speed-up of the whole recipe
            reaches this, above 1.
    """

    name: ClassVar[Literal["visual_exit"]] = "visual_exit"
    other_names: ClassVar[Mapping[str, str]] = {
        "k": "layer",
        "exit_layer": "layer",
        "off_from": "layer",
        "kl": "max_kl",
    }
    beside: ClassVar[Mapping[str, str]] = {"first_layer": "max_kl"}

    layer: LayerOrDepth | None = None
    max_kl: NotNegative | None = None
    first_layer: Count | None = None
    speedup: AboveOne | None = None


class GateTraining(Section):
    """How `train-gates` trains gates.

    Attributes:
        steps: updates of one gate each, 1 or more.
        batch: prompts a step, 1 or more.
        learning_rate: of AdamW, above 0.
        seed: of initial weights and of the order of prompts and layers, 0 to 2**32 - 1.
    """

    steps: Count = 4000
    batch: Count = 4
    learning_rate: Rate = 1e-3
    seed: Seed = 0


class DyVTE(Section):
    """DyVTE: a gate behind a layer looks at the prompt's text states and lets visual tokens leave.

    Attributes:
        gates: safetensors file of the gates' weights; None: given later, by flag.
        exit: `dynamic`: one graph that decides for each prompt; `staged`: the decoder cut at the gates, for
            backends that take no size from a computed value; `baked`: a fixed exit where most gates fire.
        candidates: layers with a gate, ascending, counted from 0; None: all but the last.
        quantile: share of calibration prompts that have exited by the baked exit, above 0, up to 1; None:
            0.9.
        gate_width: hidden width of a gate to train, 1 or more; 2048 is the paper's.
        train: settings of `train-gates`.
    """

    name: ClassVar[Literal["dyvte"]] = "dyvte"

    gates: GatesPath | None = None
    exit: Literal["dynamic", "staged", "baked"] = "dynamic"
    candidates: Candidates | None = None
    quantile: Quantile | None = None
    gate_width: Count = 2048
    train: GateTraining = GateTraining()

    @model_validator(mode="wrap")
    @classmethod
    def _quantile_is_used(cls, value: Any, handler: Callable[[Any], Self]) -> Self:
        idle = isinstance(value, dict) and value.get("quantile") is not None
        idle = idle and value.get("exit", "dynamic") != "baked"
        problem = "quantile goes with exit: baked; leave it out" if idle else None
        result: Self = apply_rule(value, handler, problem)
        return result


class Heads(ExactlyOne):
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


class Yopo(Section):
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

    name: ClassVar[Literal["yopo"]] = "yopo"
    cuts: ClassVar[tuple[str, ...]] = ("heads", "window", "mlp_ratio", "off_from")

    heads: Heads | None = None
    keep_layers: KeptLayers | None = None
    window: WindowOrAuto | None = None
    causal: Flag = False
    mlp_ratio: Ratio | None = None
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
    if not given & set(Yopo.cuts):
        return f"nothing is cut; give at least one of: {', '.join(Yopo.cuts)}"
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


Method = ShortV | VisualExit | DyVTE | Yopo
"""Any compression method."""


class CompressEntry(ExactlyOne):
    """One entry of `compress`: a method under its name. The fields are the registry of methods."""

    key_word: ClassVar[str] = "method"
    other_names: ClassVar[Mapping[str, str]] = {
        "vtw": "visual_exit",
        "exit": "visual_exit",
        "withdrawal": "visual_exit",
        "gates": "dyvte",
        "heads": "yopo",
    }

    shortv: ShortV | None = None
    visual_exit: VisualExit | None = None
    dyvte: DyVTE | None = None
    yopo: Yopo | None = None

    @property
    def method(self) -> Method:
        """The one method of this entry."""
        method: Method = next(m for name in METHOD_NAMES if (m := getattr(self, name)) is not None)
        return method


METHOD_NAMES: Final = key_names(CompressEntry)
"""Names of the methods a recipe may list under `compress`."""


def methods_clash(entries: object) -> str | None:
    """Return what is wrong with a list of entries as a whole, None if nothing is."""
    if not isinstance(entries, tuple):
        return None
    counts = Counter(name for entry in entries if isinstance(entry, dict) for name in entry)
    dyvte, yopo = _keys_of(entries, "dyvte"), _keys_of(entries, "yopo")
    exits = [name for name in ("visual_exit", "dyvte") if counts[name]]
    exits += ["yopo.off_from"] if yopo.get("off_from") is not None else []
    if len(exits) > 1:
        return f"{_both(exits)} choose where visual tokens leave; give one of them"
    told = ["yopo.window"] if yopo.get("window") is not None else []
    told += ["yopo.semantics: masked"] if yopo.get("semantics") == "masked" else []
    if told and counts["dyvte"] and dyvte.get("exit") != "baked":
        rest = "gates that decide for each prompt; take dyvte.exit: baked, or leave one of them out"
        return f"{' and '.join(told)} cannot go with {rest}"
    twice = ", ".join(name for name in METHOD_NAMES if counts[name] > 1)
    return f"more than one entry for: {twice}; a method may appear once" if twice else None


def _keys_of(entries: tuple[Any, ...], name: str) -> Mapping[str, Any]:
    """Return what an entry of a method says, as it was written."""
    found = [entry.get(name) for entry in entries if isinstance(entry, dict)]
    return next((keys for keys in found if isinstance(keys, dict)), {})


def _both(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]} {'both' if len(names) == 2 else 'all'}"
