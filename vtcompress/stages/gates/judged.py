"""Judges trained gates: against the paper's label, and by the answers that the model gives with exits."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median_low
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from compressor.compressed import compress
from compressor.decoder.weights import LoadedGates
from compressor.families import LoadedModel
from compressor.families.registry import picture_form
from compressor.gate_training.examples import force_answer, gate_inputs, labels
from compressor.gate_training.training import TrainedGates, margins_of, original_decoder
from compressor.plan.cost import predicted_speedup
from compressor.plan.edits import identity_plan
from compressor.plan.gate_exits import first_to_fire, histogram
from compressor.plan.plan import Gates, Plan, Workload
from compressor.progress import Progress
from compressor.samples.questions import Sample
from compressor.samples.scores import Score
from compressor.schema.sections import ValidateSection
from export.backends.torch_model import TorchSession
from export.checks import loss
from export.results.answers import Answers
from export.results.loss_report import LossLimits
from export.runtime.runtime import Runtime
from vtcompress.stages.gates.report import GateAgreement, GateFigures, HeldOut


def judge_training(trained: TrainedGates) -> GateAgreement:
    """Return how trained gates do on the examples that they learned from."""
    fires, may_leave = [], []
    for layer, gate in trained.gates.items():
        rows = trained.layers == layer
        fires.append(margins_of(gate, trained.inputs[rows]) > 0)
        may_leave.append(trained.labels[rows] == 1)
    return _judged(fires, may_leave)


def judge_held_out(
    model: LoadedModel,
    trained: TrainedGates,
    gates: LoadedGates,
    samples: Sequence[Sample],
    section: ValidateSection,
    score: Score,
    progress: Progress,
) -> HeldOut:
    """Return how trained gates do on prompts that they were not trained on.

    Args:
        model: the original model.
        trained: the gates.
        gates: the same, as the decoder takes them.
        samples: with pictures and answers.
        section: names the data and the length of answers.
        score: scores answers.
        progress: shows prompts.

    Raises:
        DataError: a picture cannot be read, or a prompt does not fit the model.
    """
    decoder, candidates = original_decoder(model), trained.task.candidates
    margins, allowed, text_rows = [], [], []
    for sample in progress.track(samples, "looking at held-out prompts", len(samples)):
        forced = force_answer(model, decoder, sample)
        inputs = gate_inputs(forced, candidates).float().cpu().clone()
        margins.append(
            torch.cat(
                [
                    margins_of(g, x[None])
                    for g, x in zip(trained.gates.values(), inputs, strict=True)
                ]
            )
        )
        allowed.append((labels(forced, candidates) == 1).cpu())
        text_rows.append(forced.full.text_index.shape[1] - len(forced.answer) + 1)
    exits = [first_to_fire(row.tolist(), candidates) for row in margins]
    fired, unfired = histogram(exits, candidates)
    without = identity_plan(model.facts, model.digest, Workload(text=median_low(text_rows)))
    dynamic = Gates(
        candidates=candidates,
        mode="dynamic",
        width=gates.width,
        digest=gates.digest,
        fired=fired,
        unfired=unfired,
    )
    with_exit = without.model_copy(update={"gates": dynamic})
    tokens = section.max_new_tokens
    stay, leave = (
        _answers(model, plan, gates, samples, tokens, label, progress)
        for plan, label in ((without, "answers without exit"), (with_exit, "answers with exit"))
    )
    name = section.data.name if section.data else ""
    return HeldOut(
        fired=fired,
        unfired=unfired,
        speedup=predicted_speedup(with_exit),
        gates=_judged(list((torch.stack(margins) > 0).T), list(torch.stack(allowed).T)),
        answers=loss.compare(samples, stay, leave, LossLimits(), name, score),
    )


def _answers(
    model: LoadedModel,
    plan: Plan,
    gates: LoadedGates,
    samples: Sequence[Sample],
    max_new_tokens: int,
    label: str,
    progress: Progress,
) -> Answers:
    """Let a plan's torch model answer greedily, from image file to text."""
    session = TorchSession(compress(model, plan, gates=gates))
    with TemporaryDirectory() as folder:
        # As an artifact has them: of the image size that the recipe asks for.
        model.processor.save_pretrained(folder)
        form = picture_form(model.processor, model.facts)
        runtime = Runtime.on_session(session, Path(folder), model.facts, form)
    return loss.measure_answers(runtime, samples, max_new_tokens, progress, label)


def _judged(fires: Sequence[Tensor], may_leave: Sequence[Tensor]) -> GateAgreement:
    """Compare decisions with labels, both bool [examples] for each candidate."""
    return GateAgreement(
        overall=_figures(torch.cat(list(fires)), torch.cat(list(may_leave))),
        layers=tuple(
            _figures(a, b) if len(a) else None for a, b in zip(fires, may_leave, strict=True)
        ),
    )


def _figures(fires: Tensor, may_leave: Tensor) -> GateFigures:
    return GateFigures(
        examples=len(fires),
        may_leave=may_leave.double().mean().item(),
        fires=fires.double().mean().item(),
        accuracy=(fires == may_leave).double().mean().item(),
    )
