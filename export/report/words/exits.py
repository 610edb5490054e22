"""Where visual tokens leave the decoder: how often, in words, and what it leaves of the KV cache.

A fixed exit is a state of layers in the plan. Gates decide for each prompt, so what is said of them is
counted: over the calibration prompts, over the validation questions, and for the prompt that was timed.
"""

from collections import Counter
from collections.abc import Iterable

from compressor.methods import label_of_gates
from compressor.plan.cost import predict
from compressor.plan.plan import Gates, Plan, Workload
from export.report.document import Table
from export.report.words.front import grown_words, kept_words
from export.results.bench import BenchReport
from export.results.loss_report import LossReport
from export.results.sweep import Leaves


def may_exit(plan: Plan) -> bool:
    """Return whether visual tokens leave the decoder before its end, always or where a gate fires."""
    return plan.exit_layer is not None or plan.gates is not None


def counted(gates: Gates) -> int:
    """Return over how many calibration prompts exits were counted."""
    return sum(gates.fired) + gates.unfired if gates.fired else 0


def staying(plan: Plan) -> tuple[float, ...]:
    """Return the share of prompts (0..1) that still have their visual tokens, for each layer.

    Where gates decide but exits were not counted, no gate fires, as predicted figures assume too.
    """
    gates = plan.gates
    if gates is None or not (prompts := counted(gates)):
        return tuple(0.0 if layer.exited else 1.0 for layer in plan.layers)
    fired = list(zip(gates.candidates, gates.fired, strict=True))
    gone = (sum(n for gate, n in fired if gate < layer.index) for layer in plan.layers)
    return tuple((prompts - left) / prompts for left in gone)


def leaves_of(plan: Plan) -> Leaves:
    """Return what becomes of visual tokens: whether they leave, all of them."""
    if plan.gates is not None:
        return "may leave"
    return "stay" if plan.exit_layer is None else "leave"


def exits_words(plan: Plan) -> str:
    """Return where visual tokens leave, in a few words for a table cell."""
    if plan.gates is not None:
        number = len(plan.gates.candidates)
        return f"by {number} gate{'s' if number > 1 else ''}, {plan.gates.mode}"
    if plan.exit_layer is None:
        return "none"
    count, first = sum(layer.exited for layer in plan.layers), plan.exit_layer
    return f"{count} of {len(plan.layers)}, from layer {first} on"


def runs(indices: Iterable[int]) -> str:
    """Return layers with runs drawn together: `layer 2`, `layers 2, 5 to 8`."""
    numbers = tuple(indices)
    return f"layer{'s' if len(numbers) > 1 else ''} {drawn_together(numbers)}"


def drawn_together(indices: Iterable[int]) -> str:
    """Return ascending numbers with runs drawn together: `2, 5 to 8`."""
    found: list[list[int]] = []
    for index in indices:
        if found and index == found[-1][-1] + 1:
            found[-1].append(index)
        else:
            found.append([index])
    return ", ".join(f"{r[0]} to {r[-1]}" if len(r) > 2 else ", ".join(map(str, r)) for r in found)


def gates_words(gates: Gates) -> tuple[str, ...]:
    """Return in three parts where gates sit and what they do, how they are deployed, how often they fired."""
    number, prompts, fired = len(gates.candidates), counted(gates), sum(gates.fired)
    deployed = "The exit is decided inside the one decoder graph."
    if gates.mode == "staged":
        deployed = (
            f"The decoder is cut into {number + 1} graphs at the gates, and the runtime reads their decision "
            "between two of them."
        )
    if not prompts:
        seen = "How often they fire was not counted in calibration."
    elif not fired:
        seen = f"In none of the {prompts} calibration prompts did a gate fire."
    else:
        most = max(gates.fired)
        seen = (
            f"In {fired} of {prompts} calibration prompts a gate fired, most often behind layer "
            f"{gates.candidates[gates.fired.index(most)]} ({most})."
        )
    return (
        f"{'A gate' if number == 1 else 'Gates'} behind {runs(gates.candidates)} (method "
        f"{label_of_gates()}, hidden width {gates.width}): a small network that looks at the text tokens "
        "there while the prompt is read. Behind the first one that fires there are no visual tokens: no "
        "rows, and no keys and values.",
        deployed,
        seen,
    )


def mean_words(plan: Plan) -> str:
    """Return what predicted figures stand for where gates decide; empty where every prompt does the same."""
    if plan.gates is None:
        return ""
    if prompts := counted(plan.gates):
        return f"Predicted figures are the mean over the exits of {prompts} calibration prompts."
    return (
        "Exits were not counted in calibration: predicted figures are those of a prompt in which no gate "
        "fires, the dearest one."
    )


def exits_table(plan: Plan, loss: LossReport | None) -> Table | None:
    """Return behind which gates visual tokens left: place, calibration prompts, validation questions.

    Gates behind which nothing left have no row; counts that were not taken are a dash. None without gates,
    or if nothing was counted at all.
    """
    gates = plan.gates
    if gates is None or not (counted(gates) or loss):
        return None
    calibration = dict(zip(gates.candidates, gates.fired, strict=False))
    validation: Counter[int] = Counter()
    for layer, count in loss.exits if loss else ():
        validation[gate_before(gates, layer)] += count
    rows = [
        (f"behind layer {layer}", calibration.get(layer, 0), validation[layer])
        for layer in gates.candidates
        if calibration.get(layer) or validation[layer]
    ]
    stayed = loss.overall.samples - validation.total() if loss else 0
    rows.append(("nowhere: no gate fires, or no picture", gates.unfired, stayed))
    columns = {
        "visual tokens leave": [name for name, _, _ in rows],
        "calibration prompts": [str(a) if counted(gates) else "-" for _, a, _ in rows],
        "validation questions": [str(b) if loss else "-" for _, _, b in rows],
    }
    return Table.of_columns("Exits", columns)


def gate_before(gates: Gates, exit_layer: int) -> int:
    """Return the last gate before the first layer that was found without visual rows.

    Layers whose heads are all pruned for visual tokens may lie between them: their caches tell nothing.
    """
    return max(c for c in gates.candidates if c < exit_layer)


def timed_plan(plan: Plan, report: BenchReport) -> Plan:
    """Return what was done with the timed prompt: that workload, and its own exit where gates decided."""
    workload = Workload(images=report.images, text=report.text)
    plan = plan.model_copy(update={"workload": workload})
    if plan.gates is None:
        return plan
    exit_layer = report.exit_layer
    return plan.fired_after(None if exit_layer is None else gate_before(plan.gates, exit_layer))


def cache_table(plan: Plan, report: BenchReport, dtype: str) -> Table:
    """Return KV bytes of the timed prompt: predicted for it, and measured; original, compressed, ratio."""
    pairs = [
        ("predicted for this prompt", *_predicted(plan, report, dtype)),
        ("measured", report.kv_bytes_original, report.kv_bytes),
    ]
    if report.kv_buffer_bytes is not None and report.kv_buffer_bytes_original is not None:
        buffers = (report.kv_buffer_bytes_original, report.kv_buffer_bytes)
        pairs.append(("buffers of fixed size, occupied", *buffers))
    rows = [(name, f"{a:,}", f"{b:,}", f"{a / b:.2f} x") for name, a, b in pairs]
    columns = ("KV cache after the prefill, bytes", "original", "compressed", "ratio")
    return Table("KV cache of the timed prompt", columns, rows)


def _predicted(plan: Plan, report: BenchReport, dtype: str) -> tuple[int, int]:
    """Return the predicted KV bytes of the timed prompt: original, compressed."""
    timed = timed_plan(plan, report)
    return predict(timed.naive()).kv_bytes(dtype), predict(timed).kv_bytes(dtype)


def cache_figures(plan: Plan, report: BenchReport, dtype: str) -> dict[str, int | None]:
    """Return the KV cache of the timed prompt for dashboards: its exit, and bytes by both ways."""
    original, compressed = _predicted(plan, report, dtype)
    return {
        "exit_layer": report.exit_layer,
        "bytes_original": report.kv_bytes_original,
        "bytes": report.kv_bytes,
        "bytes_original_predicted": original,
        "bytes_predicted": compressed,
    }


def timed_words(plan: Plan, report: BenchReport) -> str:
    """Return which layers had visual tokens of the timed prompt, read off its caches."""
    first = report.exit_layer
    split = [layer.index for layer in plan.layers if layer.split]
    heads = f" In {runs(split)} pruned heads hold text tokens only." if split else ""
    if plan.gates is None:
        held = [
            f"From layer {i} on, caches hold {kept_words(kept)} visual tokens."
            for i, kept in plan.keeps().items()
        ]
        held += [
            f"From layer {i} on, caches hold more visual tokens: {grown_words(grown)}."
            for i, grown in plan.grows().items()
        ]
        held += [
            f"In layer {i} the cache holds {kept_words(run)} visual tokens."
            for i, run in plan.runs().items()
        ]
        if first is not None:
            held.append(f"From layer {first} on, caches hold text tokens only.")
        if held:
            return " ".join(held) + heads
        some = "the visual tokens" if plan.front is None else "the visual tokens that enter"
        return heads[1:] or f"Every layer's cache holds {some}."
    prompt = "In the timed prompt, which is made of random pixels and tokens,"
    if first is None:
        return f"{prompt} no gate fired.{heads}"
    return f"{prompt} a gate fired behind layer {gate_before(plan.gates, first)}.{heads}"


def cache_words(plan: Plan, report: BenchReport, dtype: str) -> str:
    """Return where visual tokens left, and whether measured and predicted KV bytes agree."""
    where = timed_words(plan, report)
    exits = "" if plan.gates is None else " for this exit"
    if (report.kv_bytes_original, report.kv_bytes) == _predicted(plan, report, dtype):
        return f"{where} Measured and predicted KV bytes{exits} are equal."
    return (
        f"{where} Measured and predicted KV bytes{exits} DIFFER: the artifact does not do what its plan "
        "says."
    )
