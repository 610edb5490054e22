"""What methods say of themselves, put into the plan's vocabulary: states of layers, sentences.

No method is named here: a reason in a plan is looked up, and its `MethodWords` fill in the blanks.
"""

from collections.abc import Mapping, Sequence

from compressor.contract.asked import alike_words, method_words
from compressor.contract.gated import GatedMethod
from compressor.contract.method import Method, MethodWords, layers_words
from compressor.contract.searched import SearchedMethod
from compressor.methods import METHODS, label_of_cuts, method_of
from compressor.plan.dead_rows import deepstack_layers
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan

NO_WORK = "no work, and no keys and values to read or to keep"
UNCHANGED = {
    "frozen": "visual tokens pass unchanged; text tokens still read their keys and values",
    "frozen, none": f"visual tokens pass unchanged and take part in no head: {NO_WORK}",
    "frozen, off": (
        "visual tokens pass unchanged, and no head reads their values; their keys stay in the softmax's "
        "denominator"
    ),
    "dead": "visual tokens pass unchanged, and nobody reads the result: this changes nothing but rounding",
    "dead, none": (
        f"visual tokens take part in no head and pass unchanged, and nobody reads the result: {NO_WORK}"
    ),
    "dead, off": (
        "visual tokens pass unchanged, and nobody reads the result, which changes nothing but rounding; no "
        "head reads their values, and their keys stay in the softmax's denominator"
    ),
}
"""What it means that visual tokens are not updated in a layer, by its word."""


OPERATORS: Mapping[str, str] = {"attention": "attention", "mlp": "MLP"}
"""Words for the operators that visual rows may go without."""


def words_of(reason: str) -> MethodWords:
    """Return what the method says that a reason names; its bare name where it is not installed."""
    method = method_of(reason)
    return MethodWords(label=reason) if method is None else method.words


def state(layer: LayerPlan) -> tuple[str, str]:
    """Return the word for what visual tokens do in a layer, and what it means."""
    if layer.exited:
        return "exited", f"visual tokens are gone{words_of(layer.reason).exit_meaning}: {NO_WORK}"
    if not layer.frozen:
        if layer.run is not None and layer.without is None:
            return "some run", "some visual tokens run the layer, and the others pass by unchanged"
        if layer.without is None:
            return "updated", "attention and MLP run on visual tokens, as in the original"
        name = OPERATORS[layer.without]
        return (
            f"no {name}",
            f"visual tokens go without the {name} of the layer; text tokens read them",
        )
    word = "dead" if layer.reason == "dead" else "frozen"
    word += ", none" if layer.in_no_head else ", off" if layer.read_by_no_head else ""
    return word, UNCHANGED[word]


def added_words(plan: Plan) -> tuple[str, ...]:
    """Return what the vision tower adds to visual tokens behind layers, as a sentence; none: nothing."""
    layers = deepstack_layers(plan)
    frozen = [index for index in layers if plan.layers[index].frozen]
    if not layers:
        return ()
    words = f"Behind {layers_words(layers)} rows of the vision tower are added to the visual tokens"
    return (f"{words}{', frozen or not' if frozen else ''} (deepstack).",)


def why(layer: LayerPlan, chosen: str, cutter: str, *, added: bool = False) -> str:
    """Return what leaving out the work in a layer rests on, as a sentence or two behind `{layers}: `.

    Args:
        layer: whose visual rows are not updated.
        chosen: what speaks for layers that its method froze, see `Method.why_frozen`.
        cutter: how the method is called that cut heads.
        added: whether the vision tower adds rows to the visual ones behind the layer.
    """
    words = words_of(layer.reason)
    if layer.exited:
        key = f", {words.exit_key}" if words.exit_key else ""
        return (
            f"visual tokens have left the decoder by then{words.exit_how} (method {words.label}{key}). There "
            "are no rows of them, and no keys and values that text tokens could read."
        )
    none = (
        f"They take part in no head there (method {cutter}, heads), so that no keys and values of them are "
        "computed, kept or read."
    )
    if layer.reason == "dead":
        first = (
            "nobody reads what visual tokens become there, so leaving it out changes nothing but rounding "
            "(dead rows)."
        )
        return f"{first} {none}" if layer.in_no_head else first
    read = "Text tokens still read them."
    if layer.in_no_head:
        read = none
    elif layer.read_by_no_head:
        denominator = "but their keys stay in the softmax's denominator"
        read = f"No head reads them (method {cutter}), {denominator}."
    more = ", and behind it rows of the vision tower are added to them" if added else ""
    return (
        f"{chosen} (method {words.label}). There visual tokens pass through unchanged{more}. {read}"
    )


def place_in_words(layer: LayerPlan) -> tuple[bool, bool, bool, int]:
    """Return the order in which layers are spoken of: updated, frozen by methods, dead, behind an exit."""
    names = [method.name for method in METHODS]
    number = names.index(layer.reason) if layer.reason in names else len(names)
    return layer.exited, layer.reason == "dead", layer.frozen, number


def whys(
    plan: Plan, methods: Sequence[Method], samples: int | None, *, by_recipe: bool = True
) -> dict[str, list[int]]:
    """Return why work is left out, with the layers: frozen by methods, dead, behind exits.

    Args:
        plan: what was done.
        methods: that did it.
        samples: of the calibration; None: there was none.
        by_recipe: the plan is known to be; else nobody knows what the methods chose by.
    """
    cutter = label_of_cuts(methods)
    found: dict[str, list[int]] = {}
    for layer in sorted((x for x in plan.layers if x.reason), key=place_in_words):
        by = next((method for method in methods if method.name == layer.reason), None)
        by = by or next((m for m in methods if isinstance(m, SearchedMethod)), None)
        chosen = "chosen by the recipe" if by is None else by.why_frozen(plan, samples)
        chosen = chosen if by_recipe else "as the plan has it"
        added = layer.index in deepstack_layers(plan)
        found.setdefault(why(layer, chosen, cutter, added=added), []).append(layer.index)
    return found


def methods_done(plan: Plan, methods: Sequence[Method]) -> tuple[tuple[Method, ...], bool | None]:
    """Return the methods that made a plan, and whether what the recipe asks of them made it.

    None where the plan does not say: it was made by hand, or by a version that did not note it.

    Args:
        plan: what was done.
        methods: of the recipe.
    """
    makers = plan.makers
    if makers is not None and alike_words(makers.methods, map(method_words, methods)):
        return tuple(methods), True
    known = None if plan.made_by is None else False
    return tuple(method for method in methods if _in_plan(method, plan)), known


def _in_plan(method: Method, plan: Plan) -> bool:
    gates = isinstance(method, GatedMethod) and plan.gates is not None
    return gates or method.in_plan(plan)


def methods_words(methods: Sequence[Method], *, by_recipe: bool = True) -> str:
    """Return all methods, with what was asked of them where that is known to have made the plan."""
    if by_recipe:
        return ", ".join(map(method_words, methods)) or "no compression method"
    names = ", ".join(method.name for method in methods)
    return f"{names or 'no compression method'}, as the plan has it"
