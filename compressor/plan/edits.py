"""Plans made of plans: nothing cut, layers frozen, visual tokens leaving."""

from collections.abc import Callable, Sequence
from typing import Literal

from compressor.facts import ModelFacts
from compressor.plan.dead_rows import freeze_dead_rows
from compressor.plan.plan import LayerPlan, Plan, Reason, Workload


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
    """
    return _changed(
        plan,
        lambda layer: layer.index in layers and layer.visual == "update",
        "frozen",
        reason,
    )


def leave(plan: Plan, layer: int, reason: Reason) -> Plan:
    """Return the plan with visual rows gone from the input of a layer on, dead rows marked."""
    return _changed(plan, lambda entry: entry.index >= layer, "exited", reason)


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
