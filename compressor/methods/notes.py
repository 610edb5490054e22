"""Says what of a recipe a plan does not do as asked, rounds, or does in a way that nobody would guess."""

from collections.abc import Sequence

from compressor.methods.entries import DyVTE, Method, ShortV
from compressor.methods.yopo.head_mask import MaskReader
from compressor.methods.yopo.notes import gone_words, layers_words, yopo_notes
from compressor.plan.plan import Plan
from compressor.profile import Profile


def notes(
    plan: Plan,
    methods: Sequence[Method],
    masks: MaskReader,
    profile: Profile | None,
    recipe_format: int,
) -> tuple[str, ...]:
    """Return what people should know of a plan, one sentence each.

    Args:
        plan: with all methods applied.
        methods: the recipe's, in the order of its list.
        masks: reads a mask for the plan's decoder.
        profile: of the calibration.
        recipe_format: of the recipe; in format 1 shares are counted otherwise.
    """
    found: list[str] = []
    for number, method in enumerate(methods):
        where = f"compress[{number}].{method.name}"
        if isinstance(method, ShortV):
            found += _behind_exit_note(plan, method, where)
            rounds = _rounding_note(plan, method, where) if recipe_format > 1 else []
            found += rounds or _idle_note(plan, method, where)
        elif isinstance(method, DyVTE):
            found += _gates_note(plan, method, where, profile)
    found += yopo_notes(plan, methods, masks)
    if methods and all(layer.visual != "update" for layer in plan.layers):
        found.append(
            "compress: no layer updates visual rows: whatever the picture is, text tokens read it as the "
            "projector gave it, in front of the first layer"
        )
    return tuple(found)


def _behind_exit_note(plan: Plan, method: ShortV, where: str) -> list[str]:
    gone = sorted(i for i in method.layers or () if plan.layers[i].exited)
    if not gone:
        return []
    return [
        f"{where}.layers: visual tokens have left by {layers_words(gone)}: there is nothing to freeze"
    ]


def _rounding_note(plan: Plan, method: ShortV, where: str) -> list[str]:
    """Return what number of layers a share came to, where it is not a whole one."""
    frozen = [layer.index for layer in plan.layers if layer.reason == "shortv"]
    able = len(frozen) + sum(layer.visual == "update" for layer in plan.layers)
    share = (method.frozen or 0.0) * able
    if method.frozen is None or abs(share - len(frozen)) < 1e-6:
        return []
    parts = [] if plan.exit_layer is None else [f"in front of layer {plan.exit_layer}"]
    if dead := [layer.index for layer in plan.layers if layer.reason == "dead"]:
        parts.append(f"without {layers_words(dead)}, whose rows are dead")
    return [
        f"{where}.frozen: {method.frozen:g} of the {able} layers that can be frozen ({', '.join(parts)}) is "
        f"{share:.4g}, rounded to {len(frozen)}"
    ]


def _idle_note(plan: Plan, method: ShortV, where: str) -> list[str]:
    """Return why the method freezes no layer, where it does not."""
    if any(layer.reason == "shortv" for layer in plan.layers):
        return []
    if method.speedup is not None:
        return [f"{where}.speedup: freezes no layer: {method.speedup:g} x is reached without"]
    reasons = []
    if dead := [layer.index for layer in plan.layers if layer.reason == "dead"]:
        if method.layers is not None:
            dead = sorted(set(dead) & set(method.layers))
        if dead:
            reasons.append(
                f"visual rows of {layers_words(dead)} are frozen in every plan, as nobody reads what "
                "comes out"
            )
    if method.frozen == 0:
        reasons.insert(0, "the share is 0")
    return [f"{where}: freezes no layer: {'; '.join([*reasons, *gone_words(plan)])}"]


def _gates_note(plan: Plan, method: DyVTE, where: str, profile: Profile | None) -> list[str]:
    """Return that gates were asked on other states than those that the compressed decoder gives them."""
    counted = method.exit == "baked" or (plan.gates is not None and bool(plan.gates.fired))
    if not counted or profile is None or profile.gates_under == plan.gates_see():
        return []
    seen = "states behind other cuts" if profile.gates_under else "the original's states"
    what, remedy = "the exit rests", ""
    if method.exit != "baked":
        what = "predicted exits and costs rest"
        remedy = "; calibrate or export with this recipe to count them anew"
    return [
        f"{where}: {what} on gates that were asked on {seen}, not on those that the other methods of this "
        f"recipe leave, on which they may fire elsewhere{remedy}"
    ]
