"""What visual tokens do in every layer: drawn, listed, and why these layers."""

from collections.abc import Sequence

from compressor.contract.measure import Measure
from compressor.contract.method import Method
from compressor.methods import MEASURES
from compressor.plan.cost import BYTES, predict
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan
from compressor.profile import Profile
from export.report.charts.bars import contribution_chart, exit_chart
from export.report.charts.decoder import decoder_picture
from export.report.charts.heads import head_chart, head_table
from export.report.data import ReportData, measured
from export.report.document import Beside, Block, Bullets, Chart, Group, Section, Table, Words
from export.report.words.cuts import cut_columns, semantics_words, text_alone_columns
from export.report.words.exits import exits_table, gates_words, mean_words, staying
from export.report.words.front import front_words, kept_words
from export.report.words.methods import added_words
from export.report.words.states import states
from export.results.loss_report import LossReport


def layers_section(data: ReportData) -> Section:
    """Return the section of a report."""
    plan, dtype, scores = data.plan, data.manifest.dtype, measured(data.profile, "head_score")
    left = ""
    if any(layer.exited for layer in plan.layers):
        left = "; a dotted line under the thick bar is where there are no visual tokens any more"
    if plan.changed_by_length():
        left += "; behind a thick bar there are fewer visual tokens, or more"
    caption = (
        "The decoder. Picture and question enter layer 0 at the top; the answer leaves the last layer. What "
        "is filled of a box is work that is done; a dashed line is a visual token that passes by"
        f"{left}. Bars at the right: work and KV cache of each layer, filled: now, outline: before."
    )
    drawn: list[Block] = [Chart(decoder_picture(plan, dtype), caption, tuple(states(plan)))]
    if data.profile is None:
        why = "The layers were not chosen by calibration"
        if not data.by_recipe or (plan.makers and plan.makers.profile):
            why = "No calibration is stored here"
        drawn.append(Words(f"{why}, so there is no contribution to show."))
    else:
        drawn += _measures(data, data.profile)
    blocks: list[Block] = [Beside([[block] for block in drawn])]
    tables = [layer_table(plan, dtype, data.profile)]
    if scores is not None:
        tables.append(head_table(scores, plan))
        words = (
            "Head scores: the attention that text tokens pay to visual tokens, divided by what they pay to "
            "text tokens."
        )
        blocks.append(Words(words))
    blocks += plan_blocks(plan, data.methods, data.manifest.loss)
    blocks.append(Group("All figures of every layer", tables, folded=True))
    return Section("layers", "Layers", "Layers: what visual and text tokens do", blocks)


def plan_blocks(
    plan: Plan, methods: Sequence[Method] = (), loss: LossReport | None = None
) -> list[Block]:
    """Return what a table of layers does not tell: gates, what enters, semantics, the planner's notes."""
    blocks: list[Block] = []
    if plan.gates is not None:
        words = (*gates_words(plan.gates)[1:], mean_words(plan))
        exits = [table] if (table := exits_table(plan, loss)) else []
        blocks.append(Group("Where visual tokens leave", [*map(Words, words), *exits]))
    said = (*front_words(plan), *semantics_words(plan, methods), *added_words(plan))
    blocks += map(Words, said)
    if plan.notes:
        blocks.append(Group("Notes of the planner", [Bullets(plan.notes)]))
    return blocks


def _measures(data: ReportData, profile: Profile) -> list[Block]:
    """Return a chart for everything that calibration measured of a layer."""
    plan, samples = data.plan, len(profile.samples)
    mean = f"mean over {samples} questions of {profile.data}"
    found: list[Block] = []
    if (values := measured(profile, "layer_contribution")) is not None:
        exited = "; hollow: exited" if any(layer.exited for layer in plan.layers) else ""
        why = "Why these layers" if data.by_recipe else "What calibration measured"
        caption = (
            f"{why}: how much the next token's distribution changes if a layer leaves visual "
            f"tokens as they are, {mean}. Striped: not updated any more{exited}."
        )
        found.append(Chart(contribution_chart(values, samples, plan), caption))
    if (values := measured(profile, "exit_kl")) is not None:
        asked = data.methods if data.by_recipe else ()
        bounds = (method.bounds().get("exit_kl") for method in asked)
        allowed = next((bound for bound in bounds if bound is not None), None)
        caption = (
            "Where visual tokens may leave: how much the next token's distribution changes if they are gone "
            f"from a layer on, {mean}. Striped: the exit of this artifact."
        )
        found.append(Chart(exit_chart(values, samples, plan.exit_layer, allowed), caption))
    if (values := measured(profile, "head_score")) is not None:
        caption = f"Head scores, {mean}. Filled: visual tokens take part in the head; hollow: they do not."
        found.append(Chart(head_chart(values, samples, plan), caption))
    for measure in _of_layers():
        values = measured(profile, measure.name)
        if values is not None and measure.name not in ("layer_contribution", "exit_kl"):
            caption = f"{measure.words.capitalize()}, {mean}."
            found.append(Chart(contribution_chart(values, samples, plan, measure), caption))
    return found


def _of_layers() -> list[Measure]:
    """Return the measures with one value a layer."""
    return [measure for measure in MEASURES.values() if measure.shape == ("layers",)]


def layer_table(plan: Plan, dtype: str, profile: Profile | None = None) -> Table:
    """Return one row a layer: what visual rows do, what is cut, work, what was measured, and the KV cache."""
    before, after, size = predict(plan.naive()), predict(plan), BYTES[dtype]
    values = {m.words: measured(profile, m.name) for m in _of_layers()}
    columns = {
        "layer": [str(layer.index) for layer in plan.layers],
        "visual rows": _what_visual_rows_do(plan),
        **cut_columns(plan),
        "MFLOPs original": map(mflops, before.layer_flops),
        "MFLOPs now": map(mflops, after.layer_flops),
        **{title: [f"{v:.3g}" for v in found] for title, found in values.items() if found},
        "KV bytes original": [f"{count * size:,}" for count in before.layer_kv_values],
        "KV bytes now": [f"{count * size:,}" for count in after.layer_kv_values],
        **text_alone_columns(plan, dtype),
    }
    return Table.of_columns(f"Work and KV cache ({dtype}) of every layer", columns)


def _what_visual_rows_do(plan: Plan) -> list[str]:
    """Return what visual rows do in each layer, in which share of prompts, and whether a gate follows."""
    gates = plan.gates.candidates if plan.gates else ()
    found = []
    for layer, share in zip(plan.layers, staying(plan), strict=True):
        words = what_visual_rows_do(layer)
        if share < 1 and not layer.exited:
            words = f"{words} in {share:.0%} of prompts"
        found.append(f"{words}; gate behind it" if layer.index in gates else words)
    return found


def what_visual_rows_do(layer: LayerPlan) -> str:
    """Return in words what visual rows do in a layer; where gates decide, what they do if they are there."""
    if layer.exited:
        return f"exited ({layer.reason})"
    if not layer.frozen and layer.run is not None:
        return f"{kept_words(layer.run)} updated"
    if not layer.frozen:
        return "updated, read by no head (off)" if layer.off else "updated"
    dead = layer.reason == "dead"
    return f"frozen ({'dead rows: nobody reads them' if dead else layer.reason})"


def mflops(flops: int) -> str:
    """Return a count of operations in millions."""
    return f"{flops / 1e6:,.1f}"
