"""What was done, gained and lost, in sentences for people who never heard of the methods."""

from compressor.methods.entries import ShortV
from compressor.plan.plan import LayerPlan, Plan, Reason
from export.report.data import ReportData
from export.report.words.checks import share
from export.report.words.cuts import cut_sentences, read_by_no_head, semantics_words, splits
from export.report.words.exits import counted, gates_words, may_exit, runs, timed_words
from export.results.bench import BenchReport, bench_rows, speed_words, work_words
from export.results.loss_report import LossReport
from export.results.verdict import Verdict, verdict_words

# What leaving out the work rests on, for every reason of a plan. Sources: VTW, "Boosting Multimodal Large
# Language Models with Visual Tokens Withdrawal for Rapid Inference" (arXiv 2405.05803); DyVTE, "Accelerating
# Multimodal Large Language Models via Dynamic Visual-Token Exit and the Empirical Findings" (2411.19628);
# YOPO, "Treat Visual Tokens as Text? But Your MLLM Only Needs Fewer Efforts to See" (2410.06169).
WHY: dict[Reason, str] = {
    "shortv": (
        "{layers}: {chosen} (method ShortV). There visual tokens pass through unchanged. Text tokens still "
        "read them."
    ),
    "dead": (
        "{layers}: nobody reads what visual tokens become there, so leaving it out changes nothing but "
        "rounding (dead rows)."
    ),
    "vtw": (
        "{layers}: visual tokens have left the decoder by then (method VTW). There are no rows of them, and "
        "no keys and values that text tokens could read."
    ),
    "dyvte": (
        "{layers}: visual tokens have left the decoder by then, at an exit that gates chose on calibration "
        "prompts and that is now the same for all (method DyVTE). There are no rows of them, and no keys "
        "and values that text tokens could read."
    ),
    "yopo": (
        "{layers}: visual tokens have left the decoder by then (method YOPO, off_from). There are no rows of "
        "them, and no keys and values that text tokens could read."
    ),
}

# The same where visual tokens take part in no head of a frozen layer: there is nothing to read.
WHY_IN_NO_HEAD: dict[Reason, str] = {
    "shortv": (
        "{layers}: {chosen} (method ShortV). There visual tokens pass through unchanged. They take part in "
        "no head there (method YOPO, heads), so that no keys and values of them are computed, kept or read."
    ),
    "dead": (
        "{layers}: nobody reads what visual tokens become there, so leaving it out changes nothing but "
        "rounding (dead rows). They take part in no head there (method YOPO, heads), so that no keys and "
        "values of them are computed, kept or read."
    ),
}

# And where no head reads them, but the masked semantics keeps their keys.
FROZEN_AND_MASKED = (
    "{layers}: {chosen} (method ShortV). There visual tokens pass through unchanged. No head reads them "
    "(method YOPO), but their keys stay in the softmax's denominator."
)


def done(data: ReportData) -> tuple[str, ...]:
    """Return what was changed."""
    plan = data.plan
    layers = len(plan.layers)
    out = sum(layer.frozen or layer.exited for layer in plan.layers)
    cut = sum(layer.cuts and not layer.frozen for layer in plan.layers)
    first = (
        f"The model turns a picture into {plan.model.image_rows:,} visual tokens, and works on each of "
        f"them in all {layers} layers of its decoder. That work is now left out in {out} of the {layers} "
        f"layers{_for_all(plan)}{f', and cut down in {cut}' if cut else ''}."
    )
    reasons: dict[str, list[int]] = {}
    for reason in WHY:
        for layer in plan.layers:
            if layer.reason == reason:
                reasons.setdefault(_why(layer), []).append(layer.index)
    chosen = _chosen(data)
    whys = (
        words.format(layers=runs(i).capitalize(), chosen=chosen) for words, i in reasons.items()
    )
    gates = gates_words(plan.gates)[:1] if plan.gates else ()
    text = "Text tokens do in every layer what they did before."
    if may_exit(plan) or any(layer.cuts for layer in plan.layers):
        text = "Text tokens go through every layer and use every weight, as before."
    cuts = (*cut_sentences(plan), *semantics_words(plan, data.methods))
    return (first, *whys, *gates, *cuts, text)


def _why(layer: LayerPlan) -> str:
    """Return what leaving out the work in a layer rests on, to be filled in with its `layers`."""
    if layer.frozen and layer.in_no_head:
        return WHY_IN_NO_HEAD[layer.reason]
    if layer.reason == "shortv" and read_by_no_head(layer):
        return FROZEN_AND_MASKED
    return WHY[layer.reason]


def _chosen(data: ReportData) -> str:
    """Return what speaks for the layers that ShortV froze: a measurement, or the recipe alone."""
    method = next((method for method in data.methods if isinstance(method, ShortV)), None)
    if method is None:  # a plan whose recipe is not at hand
        return "chosen by the recipe"
    if method.layers is not None:
        return "named in the recipe, and not measured"
    if all(layer.visual != "update" for layer in data.plan.layers):
        return "all layers that can be frozen, as the recipe asks for so many"
    prompts = f"{len(data.profile.samples)} " if data.profile else ""
    return (
        "of the layers that can be frozen those where leaving out the update of visual tokens, in one layer "
        f"alone, changed the prediction of the next token least on {prompts}calibration questions"
    )


def _for_all(plan: Plan) -> str:
    """Return what gates add to a number of layers: they decide on the others for each prompt."""
    return " for every prompt, and behind a gate that fires" if plan.gates else ""


def unsteady(report: BenchReport) -> tuple[str, ...]:
    """Return the timings whose rounds differ so much that their ratios say little."""
    return tuple(name for name, timing in bench_rows(report) if not timing.steady)


def gained(data: ReportData) -> tuple[str, ...]:
    """Return what is faster, and what is not."""
    p, m = data.manifest.predicted, data.manifest.measured
    prompt = f"{p.images} picture{'s' if p.images > 1 else ''} and {p.text} text tokens"
    prompt += data.plan.workload.assumed_words
    lines = [
        f"Reading a prompt of {prompt} (the prefill) takes {p.flops / p.flops_original:.0%} of the "
        f"decoder's work: {work_words(p.speedup)}, predicted{_on_which(data.plan)}."
    ]
    if m is None:
        lines.append("No time was measured.")
    else:
        lines.append(
            f"Measured: {speed_words(m.prefill.ratio)}. The first token, with the vision part, which is "
            f"unchanged: {speed_words(m.first_token.ratio)}."
        )
        if data.plan.gates is not None:
            lines.append(timed_words(data.plan, m))
        if names := unsteady(m):
            lines.append(
                f"These times are not steady ({', '.join(names)}): the machine was busy. Measure again on a "
                "quiet one (command: vtcompress bench)."
            )
    if p.kv_bytes == p.kv_bytes_original:
        kept = " where no gate fires" if data.plan.gates else ""
        lines.append(f"The memory for keys and values (KV cache) keeps its size{kept}.")
    else:
        lines.append(
            f"The memory for keys and values (KV cache) shrinks to {p.kv_bytes / p.kv_bytes_original:.0%}"
            f"{_on_which(data.plan)}."
        )
    return (*lines, *_further_tokens(data.plan, m))


def _on_which(plan: Plan) -> str:
    """Return what a predicted figure is taken over where gates decide."""
    if plan.gates is None:
        return ""
    if prompts := counted(plan.gates):
        return f" on the mean of {prompts} calibration prompts"
    return " for a prompt in which no gate fires"


def _further_tokens(plan: Plan, measured: BenchReport | None) -> tuple[str, ...]:
    """Return what is saved on the tokens of the answer, and that the weights do not shrink."""
    weights = "the weight file does not shrink: text tokens still use every weight."
    if not (may_exit(plan) or splits(plan)):
        return (f"Nothing is saved on further tokens of the answer, and {weights}",)
    less = "very further token of the answer has less to read too:"
    heads = "text tokens only in the pruned heads"
    if plan.exit_layer is not None:
        more = f", {heads} before" if splits(plan) else ""
        further = f"E{less} from layer {plan.exit_layer} on text tokens only{more}."
    elif plan.gates is None:
        further = f"E{less} {heads}."
    else:
        further = f"Where a gate fired, e{less} in the layers behind that gate text tokens only."
        if splits(plan):
            further = (
                f"E{less} {heads}, and where a gate fired, in all heads of the layers behind it."
            )
    if measured is not None and (measured.exit_layer is not None or splits(plan)):
        step = measured.decode_step
        # Stages cost a call each: on a small model that can be more than the exit saves.
        further += f" Measured per token: {speed_words(step.ratio)}."
    return further, f"{weights[0].upper()}{weights[1:]}"


def _limits(loss: LossReport) -> str:
    if loss.verdict is Verdict.FAILED:
        return "A limit of the recipe was missed: see check 2."
    if loss.verdict is Verdict.PASSED:
        return "Every limit of the recipe was kept."
    return f"Whether that is good enough was {verdict_words(loss)}."


def _changed(data: ReportData, loss: LossReport) -> tuple[str, ...]:
    """Return how many answers became other ones, and which way."""
    found = loss.overall
    same, total = found.equal_answers, found.samples
    if same is None:  # not counted by older versions
        same, total = sum(question.equal for question in data.questions), len(data.questions)
    if not total:
        return ()
    if same == total:
        return (f"All {total} answers are the same, word for word.",)
    lines = [f"{total - same} of {total} answers are not the original's."]
    if found.right_to_wrong is not None and found.wrong_to_right is not None:
        lines.append(
            f"Of those with a right answer {found.right_to_wrong} went from right to wrong and "
            f"{found.wrong_to_right} from wrong to right."
        )
    return tuple(lines)


def lost(data: ReportData) -> tuple[str, ...]:
    """Return what the answers lost, and whether the export is sound."""
    loss, fidelity = data.manifest.loss, data.manifest.fidelity
    if loss is None:
        lines = ["What the answers lost is not known: there was no validation data."]
    else:
        overall = loss.overall
        some = overall.pictured not in (None, overall.samples)
        pictured = f" ({overall.pictured} with a picture)" if some else ""
        lines = [
            f"On {overall.samples} held-out questions{pictured} the most likely first token stayed the same "
            f"in {share(overall.agreement, overall.agreement_interval)}."
        ]
        if overall.exact_match is not None and overall.exact_match_original is not None:
            lines.append(
                f"Right answers: {overall.exact_match_original:.1%} before, {overall.exact_match:.1%} now."
            )
        lines += _changed(data, loss)
        lines.append(_limits(loss))
    if fidelity is not None:
        lines.append(
            "The exported files compute what the compressed model computes."
            if fidelity.passed
            else "The exported files do NOT compute what the compressed model computes: see check 1."
        )
    return tuple(lines)
