"""What was done, gained and lost, in sentences for people who never heard of the methods."""

from compressor.facts import ModelFacts
from compressor.plan.plan import Plan
from export.report.data import ReportData
from export.report.words.cuts import cut_sentences, semantics_words, splits
from export.report.words.exits import counted, gates_words, may_exit, runs, timed_words
from export.report.words.front import front_words, kept_words
from export.report.words.healing import before_and_after, healed_words
from export.report.words.methods import whys
from export.report.words.quantization import shrunk_words
from export.results.bench import BenchReport, speed_words, unsteady, work_words
from export.results.loss_report import LossFigures, changes_words, share
from export.results.verdict import Verdict, verdict_words


def done(data: ReportData) -> tuple[str, ...]:
    """Return what was changed."""
    plan, layers = data.plan, len(data.plan.layers)
    worked = [layer for layer in plan.layers if not (layer.frozen or layer.exited)]
    rows, out = plan.rows_of_layers(plan.visual), layers - len(worked)
    cut = sum(layer.cuts for layer in worked)
    fewer = sum(layer.running(rows[layer.index]) < plan.image_tokens for layer in worked)
    always = " for every prompt, and behind a gate that fires" if plan.gates else ""
    up_to = "up to " if _differ(plan.model) else ""
    first = (
        f"The model turns a picture into {up_to}{plan.model.picture_rows:,} visual tokens, and works on each "
        f"of them in all {layers} layers of its decoder. That work is now left out in {out} of the {layers} "
        f"layers{always}{f', and cut down in {cut}' if cut else ''}"
        f"{f', and done for fewer tokens in {fewer}' if fewer else ''}."
    )
    samples = len(data.profile.samples) if data.profile else None
    reasons = whys(plan, data.methods, samples, by_recipe=bool(data.by_recipe))
    found = (f"{runs(places).capitalize()}: {words}" for words, places in reasons.items())
    gates = gates_words(plan.gates)[:1] if plan.gates else ()
    text = "Text tokens do in every layer what they did before."
    if may_exit(plan) or any(layer.cuts for layer in plan.layers):
        text = "Text tokens go through every layer and use every weight, as before."
    if plan.runs():
        text = "Text tokens go through every layer and use every weight."
    cuts = (*cut_sentences(plan, data.methods), *semantics_words(plan, data.methods))
    healed = healed_words(data.manifest)
    if healed:
        text = "Text tokens go through every layer and use every weight, healed ones among them."
    return (first, *front_words(plan), *found, *gates, *cuts, *healed, text)


def _differ(model: ModelFacts) -> bool:
    """Whether pictures give different numbers of visual tokens."""
    return model.most_tiles > 1 or model.sizes_differ


def gained(data: ReportData) -> tuple[str, ...]:
    """Return what is faster, and what is not."""
    p, m, gates = data.manifest.predicted, data.manifest.measured, data.plan.gates
    where = ""
    if gates is not None:
        prompts = counted(gates)
        where = f" on the mean of {prompts} calibration prompts"
        where = where if prompts else " for a prompt in which no gate fires"
    largest = " of the most tiles" if data.plan.model.most_tiles > 1 else ""
    if data.plan.model.sizes_differ:
        largest = " of the largest size"
    pictures = f"{p.images} picture{'s' if p.images > 1 else ''}{largest}"
    lines = [
        f"Reading a prompt of {pictures} and {p.text} text tokens"
        f"{data.plan.workload.assumed_words} (the prefill) takes {p.flops / p.flops_original:.0%} of the "
        f"decoder's work: {work_words(p.speedup)}, predicted{where}."
    ]
    if m is None:
        lines.append("No time was measured.")
    else:
        lines.append(
            f"Measured: {speed_words(m.prefill.ratio)}. The first token, with the vision part, which "
            f"{'is unchanged' if data.plan.front is None else 'chooses as well'}: "
            f"{speed_words(m.first_token.ratio)}."
        )
        if gates is not None:
            lines.append(timed_words(data.plan, m))
        if names := unsteady(m):
            lines.append(
                f"These times are not steady ({', '.join(names)}): the machine was busy. Measure again on a "
                "quiet one (command: vtcompress bench)."
            )
    changes = "shrinks" if p.kv_bytes < p.kv_bytes_original else "grows"
    cache = f"{changes} to {p.kv_bytes / p.kv_bytes_original:.0%}{where}"
    if p.kv_bytes == p.kv_bytes_original:
        cache = f"keeps its size{' where no gate fires' if gates else ''}"
    lines.append(f"The memory for keys and values (KV cache) {cache}.")
    return (*lines, *_further_tokens(data.plan, m, shrunk_words(data.manifest)))


def _further_tokens(plan: Plan, measured: BenchReport | None, shrunk: str) -> tuple[str, ...]:
    """Return what is saved on the tokens of the answer, and whether the weights shrink.

    Args:
        plan: of the decoder.
        measured: None: no time was.
        shrunk: to which share weights shrink, in words; empty: they do not.
    """
    weights, split = (
        f"{shrunk}."
        if shrunk
        else "the weight file does not shrink: text tokens still use every weight.",
        splits(plan),
    )
    fewer = [
        f"from layer {i} on {kept_words(kept)} visual tokens" for i, kept in plan.keeps().items()
    ]
    fewer += [f"in layer {i} {kept_words(run)} visual tokens" for i, run in plan.runs().items()]
    grown = [
        f"from layer {i} on {g.count:,} visual tokens of a tile, made of {g.of:,}"
        for i, g in plan.grows().items()
    ]
    if plan.front is not None:
        of = "grid" if plan.model.grids_differ else "tile"
        fewer.insert(0, f"{kept_words(plan.front)} visual tokens of a {of}")
    if fewer or grown:
        than = "less to read too" if fewer else "more to read"
        further = f"Every further token of the answer has {than}: {', '.join([*fewer, *grown])}"
        further += ", and none where they have left." if may_exit(plan) else "."
        if measured is not None:
            further += f" Measured per token: {speed_words(measured.decode_step.ratio)}."
        return further, _sentence(weights)
    if not (may_exit(plan) or split):
        return (_same_tokens(weights, measured, shrunk),)
    further = "Every further token of the answer has less to read too"
    heads = "text tokens only in the pruned heads"
    if plan.exit_layer is not None:
        more = f", {heads} before" if split else ""
        further += f": from layer {plan.exit_layer} on text tokens only{more}."
    elif plan.gates is None:
        further += f": {heads}."
    elif split:
        further += f": {heads}, and where a gate fired, in all heads of the layers behind it."
    else:
        further = (
            f"Where a gate fired, {further[0].lower()}{further[1:]}: in the layers behind that gate text "
            "tokens only."
        )
    if measured is not None and (measured.exit_layer is not None or split):
        # Stages cost a call each: on a small model that can be more than the exit saves.
        further += f" Measured per token: {speed_words(measured.decode_step.ratio)}."
    return further, _sentence(weights)


def _same_tokens(weights: str, measured: BenchReport | None, shrunk: str) -> str:
    """Return what is saved on further tokens where none of the past is gone; weights as in a sentence."""
    if not shrunk:
        return f"Nothing is saved on further tokens of the answer, and {weights}"
    further = f"Every further token of the answer has less to read: {weights}"
    if measured is not None:
        further += f" Measured per token: {speed_words(measured.decode_step.ratio)}."
    return further


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:]


def _changed(data: ReportData, found: LossFigures) -> list[str]:
    """Return how many answers became other ones, and which way."""
    same, total = found.equal_answers, found.samples
    if same is None:  # not counted by older versions, nor where answers were not generated
        same, total = sum(question.equal for question in data.questions), len(data.questions)
    if same == total and total:
        return [f"All {total} answers are the same, word for word."]
    lines = [f"{total - same} of {total} answers are not the original's."] if total else []
    if data.manifest.loss and (changed := changes_words(found, data.manifest.loss.score)):
        lines.append(changed)
    return lines


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
            right = f"{loss.words.right[0].upper()}{loss.words.right[1:]}"
            lines.append(
                f"{right}: {overall.exact_match_original:.1%} before, {overall.exact_match:.1%} now."
            )
        lines += [*_changed(data, overall), *before_and_after(data.manifest)]
        limits = f"Whether that is good enough was {verdict_words(loss)}."
        if loss.verdict is Verdict.FAILED:
            limits = "A limit of the recipe was missed: see check 2."
        elif loss.verdict is Verdict.PASSED:
            limits = "Every limit of the recipe was kept."
        lines.append(limits)
    if fidelity is not None:
        do, see = ("", "") if fidelity.passed else ("do NOT ", ": see check 1")
        lines.append(f"The exported files {do}compute what the compressed model computes{see}.")
    return tuple(lines)
