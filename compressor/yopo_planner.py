"""Turns a recipe's `yopo` entry into cuts of a plan's layers, and says which of them have nothing to cut.

The rules are in `compressor.passes.yopo`. What is asked of all layers is done in those that have something to
cut: a window and fewer neurons where visual rows are updated, fewer heads where there are any visual rows.
"""

from collections.abc import Callable, Iterable, Sequence

from compressor.calibration.profile import Measure, Profile
from compressor.cost import BAND_OVERHEAD, band_ratio
from compressor.dims import ModelFacts
from compressor.errors import PlanError
from compressor.head_mask import read_head_mask
from compressor.methods import DyVTE, Method, VisualExit, Yopo
from compressor.passes.yopo import (
    KEEP_LAYERS,
    VOTES,
    WINDOW,
    Groups,
    group_means,
    groups_of_mask,
    most_active,
    top_share,
    voted,
)
from compressor.plan import LayerPlan, Plan


def measures_for(method: Yopo) -> tuple[Measure, ...]:
    """Return what calibration must measure for the method to choose by."""
    measures: list[Measure] = []
    if method.heads is not None and method.heads.mask is None:
        measures.append("head_score")
    if method.select == "activation":
        measures.append("neuron_activity")
    return tuple(measures)


def unfit(method: Yopo, facts: ModelFacts, where: str) -> list[str]:
    """Return what of a method does not fit a model: mask, window and ratio.

    Args:
        method: the recipe's entry.
        facts: of the model.
        where: the method's place in the recipe; starts every problem.
    """
    problems = []
    if method.heads is not None and method.heads.mask is not None:
        try:
            read_head_mask(method.heads.mask, facts.decoder)
        except PlanError as error:
            problems += [f"{where}.heads.mask: {problem}" for problem in error.problems]
    if method.window is not None:
        problems += _unfit_window(method.window, facts, where)
    width, ratio = facts.decoder.intermediate, method.mlp_ratio
    if ratio is not None and width % ratio:
        problems.append(
            f"{where}.mlp_ratio: {ratio} does not divide the MLP's {width} neurons; take one that does"
        )
    return problems


def _unfit_window(window: int | str, facts: ModelFacts, where: str) -> list[str]:
    if facts.token_grid is None:
        return [
            f"{where}.window: {window} needs a token grid, and that of {facts.name} is not known; leave the "
            "window out"
        ]
    rows, columns = facts.token_grid
    if isinstance(window, int) and window > min(rows, columns):
        return [
            f"{where}.window: {window} is larger than the token grid of {rows} x {columns}; take an odd "
            f"number up to {min(rows, columns)}"
        ]
    return []


def cut(plan: Plan, method: Yopo, measured: Callable[[Measure], Profile]) -> Plan:
    """Return the plan with heads, window and neurons cut, and what masked semantics switches off.

    Args:
        plan: what the methods before made; an exit of this method is in it already.
        method: that fits the model.
        measured: returns a whole profile with a measure, or raises.
    """
    groups, window = _groups(plan, method, measured), _window(plan, method)
    neurons = _neurons(plan, method, measured)
    layers = tuple(
        layer
        if layer.exited
        else _cut(layer, method, groups[layer.index], window, neurons[layer.index])
        for layer in plan.layers
    )
    return plan.model_copy(update={"layers": layers})


def _cut(
    layer: LayerPlan,
    method: Yopo,
    groups: tuple[int, ...] | None,
    window: int | None,
    neurons: tuple[int, ...] | None,
) -> LayerPlan:
    """Return a layer with the cuts that have something to cut in it."""
    updated = layer.visual == "update"
    # Without visual heads no visual row reads anything.
    window = window if updated and groups != () else None
    masked = method.semantics == "masked"
    off = masked and method.off_from is not None and layer.index >= method.off_from
    changes = {
        "groups": groups,
        "window": window,
        "window_causal": method.causal and window is not None,
        "neurons": neurons if updated else None,
        "masked": masked and (off or groups is not None),
        "off": off,
    }
    return LayerPlan.model_validate({**dict(layer), **changes})


def _prunable(plan: Plan, method: Yopo) -> tuple[int, ...]:
    """Return the layers whose heads may be pruned: with visual rows, and not asked to keep all."""
    kept = method.keep_layers
    if kept is None:
        masked = method.heads is not None and method.heads.mask is not None
        kept = () if masked else KEEP_LAYERS
    return tuple(x.index for x in plan.layers if not x.exited and x.index not in kept)


def _groups(
    plan: Plan, method: Yopo, measured: Callable[[Measure], Profile]
) -> tuple[tuple[int, ...] | None, ...]:
    """Return the key/value heads that stay in each layer; None: all."""
    dims, heads = plan.model.decoder, method.heads
    if heads is None:
        return (None,) * dims.layers
    layers, everything = _prunable(plan, method), tuple(range(dims.kv_heads))
    chosen: Groups
    if heads.mask is not None:
        chosen = groups_of_mask(read_head_mask(heads.mask, dims), dims.kv_heads)
    elif heads.keep is not None:
        scores = group_means(measured("head_score").head_score(), dims.kv_heads)
        chosen = top_share(scores, heads.keep, layers)
    else:
        samples = [group_means(s.head_score, dims.kv_heads) for s in measured("head_score").samples]
        votes = VOTES if heads.votes is None else heads.votes
        chosen = voted(samples, heads.threshold or 0.0, votes, layers)
    return tuple(
        None if i not in layers or stay == everything else stay for i, stay in enumerate(chosen)
    )


def _window(plan: Plan, method: Yopo) -> int | None:
    """Return the window's side; `auto`: only where it is predicted to pay."""
    if method.window != "auto":
        return method.window
    grid = plan.model.token_grid
    if grid is None or min(grid) < WINDOW:
        return None
    pays = band_ratio(WINDOW, grid, plan.visual, plan.workload.text) < 1
    return WINDOW if pays else None


def _neurons(
    plan: Plan, method: Yopo, measured: Callable[[Measure], Profile]
) -> tuple[tuple[int, ...] | None, ...]:
    """Return the MLP neurons that visual rows use in each layer; None: all."""
    dims = plan.model.decoder
    if method.mlp_ratio is None:
        return (None,) * dims.layers
    count = dims.intermediate // method.mlp_ratio
    if method.select == "first":
        return (tuple(range(count)),) * dims.layers
    return tuple(most_active(row, count) for row in measured("neuron_activity").neuron_activity)


def notes(plan: Plan, methods: Sequence[Method]) -> tuple[str, ...]:
    """Return what of the `yopo` entries is not done as asked, or has nothing to cut, one sentence each.

    Args:
        plan: with all methods applied.
        methods: the recipe's.
    """
    found: list[str] = []
    for number, method in enumerate(methods):
        if isinstance(method, Yopo):
            where = f"compress[{number}].yopo"
            found += _auto_note(plan, method, where)
            found += _mask_notes(plan, method, where)
            found += _frozen_notes(plan, method, where)
            found += _order_notes(plan, method, methods[number + 1 :], where)
    return tuple(found)


def _auto_note(plan: Plan, method: Yopo, where: str) -> list[str]:
    grid = plan.model.token_grid
    if method.window != "auto" or grid is None:
        return []
    rows, columns = grid
    if min(grid) < WINDOW:
        return [
            f"{where}.window: auto: none, as {WINDOW} is larger than the grid of {rows} x {columns}"
        ]
    ratio = band_ratio(WINDOW, grid, plan.visual, plan.workload.text)
    return [
        f"{where}.window: auto: {WINDOW if ratio < 1 else 'none'}; on {plan.visual} visual and "
        f"{plan.workload.text} text rows attention in bands of a {WINDOW} x {WINDOW} window is predicted to "
        f"take {ratio:.2f} times as long as full attention (a FLOP in bands {BAND_OVERHEAD:g} times; "
        "measured on ONNX Runtime's CPU)"
    ]


def _mask_notes(plan: Plan, method: Yopo, where: str) -> list[str]:
    if method.heads is None or method.heads.mask is None:
        return []
    dims = plan.model.decoder
    mask = read_head_mask(method.heads.mask, dims)
    size = dims.heads // dims.kv_heads
    kept = method.keep_layers or ()
    whole, asked, gone = [], [], []
    for layer, row in zip(plan.layers, mask, strict=True):
        pruned = [h for h, stays in enumerate(row) if not stays]
        stay = [h for h in pruned if layer.groups is None or h // size in layer.groups]
        if layer.exited:
            gone += [layer.index] if pruned else []
        elif layer.index in kept:
            asked += [layer.index] if pruned else []
        elif stay:
            whole.append(f"layer {layer.index}: {_listed(stay)}")
    found = []
    if whole:
        found.append(
            f"{where}.heads.mask: a key/value head goes only with all its query heads, so these heads stay "
            f"though the mask prunes them: {'; '.join(whole)}"
        )
    if asked:
        found.append(
            f"{where}.keep_layers: all heads stay in {_layers(asked)}, though the mask prunes some"
        )
    if gone:
        found.append(
            f"{where}.heads.mask: prunes heads in {_layers(gone)}, where visual tokens have left by then: "
            "there is nothing to prune"
        )
    return found


def _frozen_notes(plan: Plan, method: Yopo, where: str) -> list[str]:
    frozen = [layer.index for layer in plan.layers if layer.reason == "shortv"]
    if not frozen:
        return []
    frozen_words = f"visual rows of {_layers(frozen)} are frozen by shortv"
    found = []
    if _window(plan, method) is not None:
        found.append(f"{where}.window: {frozen_words}: they read nothing, so there is no window")
    if method.mlp_ratio is not None:
        found.append(f"{where}.mlp_ratio: {frozen_words}: they have no MLP that could be narrower")
    return found


def _order_notes(plan: Plan, method: Yopo, later: Sequence[Method], where: str) -> list[str]:
    exits = [m.name for m in later if isinstance(m, VisualExit | DyVTE)]
    if plan.exit_layer is None or not exits or method.heads is None or method.heads.keep is None:
        return []
    return [
        f"{where}.heads.keep: the share counts heads of {_layers(range(plan.exit_layer, len(plan.layers)))} "
        f"too, where visual tokens have left by then; list yopo behind {exits[0]} to count the others alone"
    ]


def _layers(indices: Iterable[int]) -> str:
    numbers = list(indices)
    return f"layer{'s' if len(numbers) > 1 else ''} {_listed(numbers)}"


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
