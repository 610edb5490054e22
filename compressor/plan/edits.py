"""Plans made of plans: nothing cut, layers frozen, visual tokens leaving."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from compressor.errors import PlanError
from compressor.facts import ModelFacts
from compressor.plan.dead_rows import freeze_dead_rows
from compressor.plan.growth import Growth
from compressor.plan.kept import Kept, Running
from compressor.plan.layer import LayerPlan, Operator, Reason
from compressor.plan.plan import Plan, Workload


def identity_plan(facts: ModelFacts, model_digest: str, workload: Workload | None = None) -> Plan:
    """Return the plan without any method: every row is updated, but for the dead visual rows."""
    layers = tuple(LayerPlan(index=i) for i in range(facts.decoder.layers))
    return Plan(
        model=facts,
        model_digest=model_digest,
        layers=freeze_dead_rows(layers),
        workload=workload or Workload(),
    )


def freeze(plan: Plan, layers: Sequence[int], reason: Reason) -> Plan:
    """Return the plan with visual rows frozen in those of the layers that update them, dead rows marked.

    Rows that are dead stay so: freezing them is exact, whoever asks for it. Heads stay cut: frozen rows still
    have keys and values.

    Raises:
        PlanError: layers that the model does not have.
    """
    _check_layers("freeze", layers, range(len(plan.layers)))
    return _changed(
        plan,
        lambda layer: layer.index in layers and layer.visual == "update",
        "frozen",
        reason,
    )


def leave(plan: Plan, layer: int, reason: Reason) -> Plan:
    """Return the plan with visual rows gone from the input of a layer on, dead rows marked.

    Of L layers, they stay to the end where it is layer L.

    Raises:
        PlanError: the model has no such layer, or it is the first, which visual rows enter.
    """
    _check_layers("leave", (layer,), range(1, len(plan.layers) + 1))
    return _changed(plan, lambda entry: entry.index >= layer, "exited", reason)


def leave_out(plan: Plan, operators: Mapping[int, Sequence[Operator]], reason: Reason) -> Plan:
    """Return the plan with visual rows going without operators of layers that update them, dead rows marked.

    Args:
        plan: to change.
        operators: `attention`, `mlp` or both, by layer; both are a frozen layer.
        reason: of layers that are frozen so.

    Raises:
        PlanError: layers that the model does not have.
    """
    _check_layers("leave_out", [*operators], range(len(plan.layers)))
    layers = list(plan.layers)
    for index, gone in operators.items():
        for operator in gone if layers[index].visual == "update" else ():
            layers[index] = layers[index].leaving_out(operator, reason)
    return plan.model_copy(update={"layers": freeze_dead_rows(tuple(layers))})


def keep_at(plan: Plan, layer: int, kept: Kept) -> Plan:
    """Return the plan with some visual rows going on at the input of a layer, the others gone from there.

    Raises:
        PlanError: the model has no such layer, or it is the first: in front of it is `Plan.front`.
    """
    return _at_input("keep_at", plan, layer, keep=kept)


def grow_at(plan: Plan, layer: int, grown: Growth) -> Plan:
    """Return the plan with the visual rows of every tile becoming more at the input of a layer.

    Raises:
        PlanError: the model has no such layer, or it is the first.
    """
    return _at_input("grow_at", plan, layer, grow=grown)


def run_some(plan: Plan, runs: Mapping[int, Running]) -> Plan:
    """Return the plan with some visual rows running layers alone, where they have not left by then.

    Raises:
        PlanError: layers that the model does not have.
    """
    _check_layers("run_some", [*runs], range(len(plan.layers)))
    layers = tuple(
        entry.model_copy(update={"run": runs[entry.index]})
        if entry.index in runs and not entry.exited
        else entry
        for entry in plan.layers
    )
    return plan.model_copy(update={"layers": layers})


def keep_in_front(
    plan: Plan, count: int, by: str, asked: Mapping[str, Any], weights: str = ""
) -> Plan:
    """Return the plan in which the decoder gets so many visual rows of each tile.

    Args:
        plan: that has no such choice.
        count: of the rows.
        by: name of the method whose rule says which.
        asked: its keys.
        weights: digest of the file of weights that the rule reads; empty: none.
    """
    front = Kept(count=count, of=plan.model.tile_rows, by=by, asked=asked, weights=weights)
    return plan.model_copy(update={"front": front})


def _at_input(what: str, plan: Plan, layer: int, **change: Any) -> Plan:
    _check_layers(what, (layer,), range(1, len(plan.layers)))
    layers = list(plan.layers)
    layers[layer] = layers[layer].model_copy(update=change)
    return plan.model_copy(update={"layers": tuple(layers)})


def numbered_anew(plan: Plan) -> Plan:
    """Return a plan that keeps rows in front with as many places in the prompt as rows are kept.

    Text behind a picture moves up: its places and positions are those of a prompt of so many image tokens.
    """
    model = plan.model.model_copy(update={"tile_places": plan.rows_kept})
    return plan.model_copy(update={"model": model})


def _check_layers(what: str, layers: Sequence[int], there: range) -> None:
    if wrong := [i for i in layers if i not in there]:
        raise PlanError(
            [
                f"{what}: there is no layer {', '.join(map(str, wrong))}; give {there[0]} to {there[-1]}"
            ]
        )


def _changed(
    plan: Plan,
    chosen: Callable[[LayerPlan], bool],
    visual: Literal["frozen", "exited"],
    reason: Reason,
) -> Plan:
    layers = tuple(
        layer.turned(visual, reason) if chosen(layer) else layer for layer in plan.layers
    )
    return plan.model_copy(update={"layers": freeze_dead_rows(layers)})
