"""Says what of a recipe's `yopo` entry a plan does not do as asked, or where there is nothing to cut."""

from collections.abc import Iterable

from compressor.contract.method import Evidence, gone_words, layers_words
from compressor.methods.yopo.cut import automatic_window, kept_whole, prunable, window_side
from compressor.methods.yopo.head_mask import read_head_mask
from compressor.methods.yopo.keys import YopoKeys
from compressor.methods.yopo.rule import AUTO_WINDOW
from compressor.plan.cost import BAND_OVERHEAD, PAYS_BELOW, band_ratio
from compressor.plan.plan import Plan

MEASURED_ON = "measured with ONNX Runtime on a CPU, other targets may differ"
"""What `BAND_OVERHEAD` stands for; a recipe's `export.targets` may name others."""


def yopo_notes(plan: Plan, method: YopoKeys, evidence: Evidence) -> list[str]:
    """Return what of an entry is not done as asked, or has nothing to cut, one sentence each.

    Args:
        plan: with all methods applied.
        method: the entry.
        evidence: begins every note, and reads the mask.
    """
    where = evidence.where
    return [
        *_window_note(plan, method, where),
        *_mask_notes(plan, method, evidence),
        *_vote_note(plan, method, where),
        *_frozen_notes(plan, where),
        *_idle_notes(plan, method, where),
    ]


def _window_note(plan: Plan, method: YopoKeys, where: str) -> list[str]:
    """Return what `auto` decided, or that a window which was given is predicted not to pay."""
    grid = plan.model.token_grid
    if grid is None or method.window is None:
        return []
    rows = f"on {plan.visual} visual and {plan.workload.text} text rows"
    factor = f"a FLOP in bands {BAND_OVERHEAD:g} times; {MEASURED_ON}"
    auto = automatic_window(plan) or "none"
    if method.window == "auto":
        if min(grid) < AUTO_WINDOW:
            too_small = f"as {AUTO_WINDOW} is larger than the grid of {grid[0]} x {grid[1]}"
            return [f"{where}.window: auto: none, {too_small}"]
        ratio = band_ratio(AUTO_WINDOW, grid, plan.visual, plan.workload.text)
        return [
            f"{where}.window: auto: {auto}; {rows} attention in bands of a {AUTO_WINDOW} x {AUTO_WINDOW} "
            f"window is predicted to take {ratio:.2f} times as long as full attention ({factor}); below "
            f"{PAYS_BELOW:g} it is used"
        ]
    side = method.window
    ratio = band_ratio(side, grid, plan.visual, plan.workload.text)
    # Masked layers run attention in full, whatever window they have.
    in_bands = any(layer.window and not layer.masked for layer in plan.layers)
    if ratio < PAYS_BELOW or not in_bands:
        return []
    remedy = f"take window: auto, which uses {auto} here, or leave the window out"
    if method.semantics == "masked":
        remedy = "leave the window out if you do not need the released numbers"
    return [
        f"{where}.window: {side} is predicted not to pay: {rows} attention in bands of a {side} x {side} "
        f"window takes {ratio:.2f} times as long as full attention ({factor}), and pays below "
        f"{PAYS_BELOW:g}; the plan counts FLOPs all the same, {ratio / BAND_OVERHEAD:.0%} of full "
        f"attention's; {remedy}"
    ]


def _mask_notes(plan: Plan, method: YopoKeys, evidence: Evidence) -> list[str]:
    if method.heads is None or method.heads.mask is None:
        return []
    dims, where = plan.model.decoder, evidence.where
    mask = evidence.files.read(read_head_mask, method.heads.mask, dims)
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
            f"{where}.keep_layers: all heads stay in {layers_words(asked)}, though the mask prunes some"
        )
    if gone:
        found.append(
            f"{where}.heads.mask: prunes heads in {layers_words(gone)}, where visual tokens have left by "
            "then: there is nothing to prune"
        )
    return found


def _vote_note(plan: Plan, method: YopoKeys, where: str) -> list[str]:
    """Return where a threshold, which holds for every layer, has no visual heads to choose from."""
    if method.heads is None or method.heads.threshold is None:
        return []
    gone = _losable_behind_exit(plan, method)
    # Where no head is pruned at all, `_idle_notes` says so, the exit included.
    if not gone or all(layer.groups is None for layer in plan.layers):
        return []
    return [
        f"{where}.heads.threshold: prunes no heads in {layers_words(gone)}, where visual tokens have left by "
        "then: there is nothing to prune"
    ]


def _losable_behind_exit(plan: Plan, method: YopoKeys) -> list[int]:
    """Return the layers behind an exit whose heads could have been pruned before there was one."""
    kept = kept_whole(method)
    return [layer.index for layer in plan.layers if layer.exited and layer.index not in kept]


def _frozen_notes(plan: Plan, where: str) -> list[str]:
    words = _frozen_words(plan)
    found = []
    if words and any(layer.window for layer in plan.layers):
        found.append(
            f"{where}.window: {'; '.join(words)}: they read nothing, so there is no window"
        )
    if words and any(layer.neurons for layer in plan.layers):
        found.append(
            f"{where}.mlp_ratio: {'; '.join(words)}: they have no MLP that could be narrower"
        )
    return found


def _frozen_words(plan: Plan) -> list[str]:
    """Return which layers other methods froze, one sentence part a method."""
    frozen: dict[str, list[int]] = {}
    for layer in plan.layers:
        if layer.frozen_by_method:
            frozen.setdefault(layer.reason, []).append(layer.index)
    return [f"visual rows of {layers_words(i)} are frozen by {name}" for name, i in frozen.items()]


def _idle_notes(plan: Plan, method: YopoKeys, where: str) -> list[str]:
    """Return which of the cuts asked for no layer has in the end, and why."""
    found = []
    if method.heads is not None and all(layer.groups is None for layer in plan.layers):
        found.append(f"{where}.heads: no head is pruned: {_why_no_heads(plan, method)}")
    if window_side(plan, method) is not None and all(x.window is None for x in plan.layers):
        found.append(f"{where}.window: no layer has one: {_why_no_rows(plan)}")
    if method.mlp_ratio is not None and all(layer.neurons is None for layer in plan.layers):
        found.append(f"{where}.mlp_ratio: no MLP is narrower: {_why_no_rows(plan)}")
    if method.semantics == "masked" and not any(layer.masked for layer in plan.layers):
        found.append(
            f"{where}.semantics: masked changes nothing: no heads are cut and no layer is switched off"
        )
    if gone := [i for i in method.keep_layers or () if plan.layers[i].exited]:
        found.append(
            f"{where}.keep_layers: visual tokens have left by {layers_words(gone)}: there is nothing to keep"
        )
    return found


def _why_no_heads(plan: Plan, method: YopoKeys) -> str:
    there = [layer.index for layer in plan.layers if not layer.exited]
    kept = [i for i in kept_whole(method) if i in there]
    reasons = [f"those of {layers_words(kept)} stay by keep_layers"] if kept else []
    if chosen := prunable(plan, method):
        reasons.append(f"those of {layers_words(chosen)} were all chosen to stay")
    return "; ".join([*reasons, *gone_words(plan)])


def _why_no_rows(plan: Plan) -> str:
    """Return why visual rows of no layer can have a window or fewer neurons."""
    words = {"": "are in no head", "dead": "are not updated, as nobody reads what comes out"}
    reasons = []
    for reason, state in words.items():
        if layers := [layer.index for layer in plan.layers if layer.reason == reason]:
            reasons.append(f"visual rows of {layers_words(layers)} {state}")
    return "; ".join([*reasons, *_frozen_words(plan), *gone_words(plan)])


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
