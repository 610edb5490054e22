"""Turns a recipe's `yopo` entry into cuts of a plan's layers.

The rules are in `rule` of this folder; `notes` says what had nothing to cut. What is asked
of all layers is done in those that have something to cut: a window and fewer neurons where visual rows are
updated, fewer heads where there are any visual rows.
"""

from compressor.contract.method import Evidence
from compressor.errors import PlanError
from compressor.facts import ModelFacts
from compressor.methods.yopo.head_mask import read_head_mask
from compressor.methods.yopo.keys import YopoKeys
from compressor.methods.yopo.measures import HEAD_SCORE, NEURON_ACTIVITY
from compressor.methods.yopo.rule import (
    AUTO_WINDOW,
    KEEP_LAYERS,
    VOTES,
    Groups,
    group_means,
    groups_of_mask,
    most_active,
    top_share,
    voted,
)
from compressor.plan.cost import PAYS_BELOW, band_ratio
from compressor.plan.dead_rows import freeze_dead_rows
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan
from compressor.schema.values import layer_at


def unfit(method: YopoKeys, facts: ModelFacts, evidence: Evidence) -> list[str]:
    """Return what of a method does not fit a model: mask, window and ratio.

    Args:
        method: the recipe's entry.
        facts: of the model.
        evidence: begins every problem, and reads the mask.
    """
    problems, where = [], evidence.where
    if method.heads is not None and method.heads.mask is not None:
        try:
            evidence.files.read(read_head_mask, method.heads.mask, facts.decoder)
        except PlanError as error:
            problems += [f"{where}.heads.mask: {problem}" for problem in error.problems]
    if method.window is not None:
        problems += unfit_window(method.window, facts, where)
    width, ratio = facts.decoder.intermediate, method.mlp_ratio
    if ratio is not None and width % ratio:
        problems.append(
            f"{where}.mlp_ratio: {ratio} does not divide the MLP's {width} neurons; take one that does"
        )
    return problems


def unfit_window(window: int | str, facts: ModelFacts, where: str) -> list[str]:
    """Return why a window does not fit a model's token grid."""
    if facts.sizes_differ:
        return [
            f"{where}.window: {window} needs one token grid, and each picture of {facts.name} has its own; "
            "give all one size (image.height and image.width, if the model takes them), or leave it out"
        ]
    if facts.token_grid is None:
        own = facts.sizes_differ or facts.arrangement is not None
        why = "is another for each picture" if own else "is not known"
        return [
            f"{where}.window: {window} needs a token grid, and that of {facts.name} {why}; leave the "
            "window out"
        ]
    rows, columns = facts.token_grid
    if isinstance(window, int) and window > min(rows, columns):
        return [
            f"{where}.window: {window} is larger than the token grid of {rows} x {columns}; take an odd "
            f"number up to {min(rows, columns)}"
        ]
    return []


def cut(plan: Plan, method: YopoKeys, evidence: Evidence) -> Plan:
    """Return the plan with heads, window and neurons cut, and what masked semantics switches off.

    Rows that are dead without the pruned heads are marked.

    Args:
        plan: what the methods before made; an exit of this method is in it already.
        method: that fits the model.
        evidence: holds what the method needs.
    """
    groups, window = _groups(plan, method, evidence), window_side(plan, method)
    neurons = _neurons(plan, method, evidence)
    off_from = layer_at(method.off_from, len(plan.layers)) if method.off_from else None
    layers = tuple(
        layer
        if layer.exited
        else _cut(layer, method, groups[layer.index], window, neurons[layer.index], off_from)
        for layer in plan.layers
    )
    return plan.model_copy(update={"layers": freeze_dead_rows(layers)})


def _cut(
    layer: LayerPlan,
    method: YopoKeys,
    groups: tuple[int, ...] | None,
    window: int | None,
    neurons: tuple[int, ...] | None,
    off_from: int | None,
) -> LayerPlan:
    """Return a layer with the cuts that have something to cut in it."""
    updated = layer.visual == "update"
    # Without visual heads no visual row reads anything.
    window = window if updated and groups != () else None
    masked = method.semantics == "masked"
    off = masked and off_from is not None and layer.index >= off_from
    changes = {
        "groups": groups,
        "window": window,
        "window_causal": method.causal and window is not None,
        "neurons": neurons if updated else None,
        "masked": masked and (off or groups is not None),
        "off": off,
    }
    return LayerPlan.model_validate({**dict(layer), **changes})


def kept_whole(method: YopoKeys) -> tuple[int, ...]:
    """Return the layers whose heads all stay: those asked for, or the method's own."""
    if method.keep_layers is not None:
        return method.keep_layers
    by_mask = method.heads is not None and method.heads.mask is not None
    return () if by_mask else KEEP_LAYERS


def prunable(plan: Plan, method: YopoKeys) -> tuple[int, ...]:
    """Return the layers whose heads may be pruned: with visual rows, and not asked to keep all."""
    kept = kept_whole(method)
    return tuple(x.index for x in plan.layers if not x.exited and x.index not in kept)


def _groups(plan: Plan, method: YopoKeys, evidence: Evidence) -> tuple[tuple[int, ...] | None, ...]:
    """Return the key/value heads that stay in each layer; None: all."""
    dims, heads = plan.model.decoder, method.heads
    if heads is None:
        return (None,) * dims.layers
    layers, everything = prunable(plan, method), tuple(range(dims.kv_heads))
    chosen: Groups
    if heads.mask is not None:
        chosen = groups_of_mask(
            evidence.files.read(read_head_mask, heads.mask, dims), dims.kv_heads
        )
    elif heads.keep is not None:
        scores = group_means(evidence.of(HEAD_SCORE).mean, dims.kv_heads)
        chosen = top_share(scores, heads.keep, layers)
    else:
        samples = [group_means(s, dims.kv_heads) for s in evidence.of(HEAD_SCORE).samples]
        votes = VOTES if heads.votes is None else heads.votes
        chosen = voted(samples, heads.threshold or 0.0, votes, layers)
    return tuple(
        None if i not in layers or stay == everything else stay for i, stay in enumerate(chosen)
    )


def window_side(plan: Plan, method: YopoKeys) -> int | None:
    """Return the window's side; `auto`: only where it is predicted to pay."""
    return automatic_window(plan) if method.window == "auto" else method.window


def automatic_window(plan: Plan) -> int | None:
    """Return the side that `auto` takes, None where that window does not fit or is not predicted to pay."""
    grid = plan.model.token_grid
    if grid is None or min(grid) < AUTO_WINDOW:
        return None
    pays = band_ratio(AUTO_WINDOW, grid, plan.visual, plan.workload.text) < PAYS_BELOW
    return AUTO_WINDOW if pays else None


def _neurons(
    plan: Plan, method: YopoKeys, evidence: Evidence
) -> tuple[tuple[int, ...] | None, ...]:
    """Return the MLP neurons that visual rows use in each layer; None: all."""
    dims = plan.model.decoder
    if method.mlp_ratio is None:
        return (None,) * dims.layers
    count = dims.intermediate // method.mlp_ratio
    if method.select == "first":
        return (tuple(range(count)),) * dims.layers
    return tuple(most_active(row, count) for row in evidence.of(NEURON_ACTIVITY).mean)
