"""The stage that trains gates and reports on them."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.disk.gate_file import stable_header
from compressor.disk.weight_file import MODEL_DIGEST
from compressor.errors import RecipeError
from compressor.planner import check_layers
from compressor.progress import Progress
from compressor.recipe import Recipe, no_gates
from compressor.samples.questions import Sample, check_answered, read_samples
from export.backends.torch_device import ON_CPU, check_device
from vtcompress.console import shown
from vtcompress.stages.checks.prompts import Asked, check_recipe_prompts
from vtcompress.stages.checks.rewrite import check_rewrite
from vtcompress.stages.checks.score import checked_score
from vtcompress.stages.gates.report import GatesReport
from vtcompress.stages.inputs import (
    load_model,
    model_facts,
    note_no_validation,
    require_compress,
    require_recipe,
    source_paths,
    validation_samples,
)
from vtcompress.stages.training.place import TrainedFile
from vtcompress.stages.validate import validation_name

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.decoder.weights import LoadedGates
    from compressor.gate_training.training import TrainedGates


def train_gates(
    recipe: Recipe,
    data: str | Path,
    output: str | Path,
    *,
    held_out: str | Path | None = None,
    device: str = ON_CPU,
    overwrite: bool = False,
    progress: Progress | bool | None = None,
) -> GatesReport:
    """Train the gates of the recipe's gated entry; write them, and a report as JSON beside them.

    A run that was stopped goes on from its checkpoint, a hidden file beside `output`.

    Args:
        recipe: names the model, and in its gated entry candidates, width and settings.
        data: jsonl file of questions with pictures and answers; all are used.
        output: safetensors file of the gates.
        held_out: questions to report on; None: those of the recipe's `validate` section, if any.
        device: where the original runs: `cpu`, or a GPU as torch names it. It runs in the recipe's
            `model.dtype`; the gates learn on the CPU.
        overwrite: replace gates that this tool wrote at `output`.
        progress: shows prompts and steps; None: on a terminal alone.

    Raises:
        VtcompressError: model, data or recipe cannot be used, or `output` exists, is being written by
            another run, or holds the checkpoint of another training.
    """
    require_recipe(recipe)
    check_device(device)
    method = recipe.gated
    if method is None:
        raise RecipeError([f"compress: {no_gates()}, so there are no gates to train; add one"])
    if held_out is not None:
        recipe = recipe.override({"validate.data": Path(held_out)})
    data, progress = Path(data), shown(progress)
    note_no_validation(recipe, progress)
    file = TrainedFile(output, "gates", overwrite=overwrite, sources=source_paths(recipe))
    with file.held(device):
        samples, others = _questions(data), _held_out(recipe)
        require_compress("training gates")
        check_layers(model_facts(recipe).decoder.layers, recipe.methods)
        file.check_outside(recipe)
        score = checked_score(recipe, others)
        tokens = recipe.validation.max_new_tokens
        asked = [Asked(samples, forced=True), Asked(others, tokens, forced=True)]
        check_recipe_prompts(recipe, asked, progress)
        dtype = recipe.model.dtype
        model = load_model(recipe, progress, dtype=dtype, device=device)
        check_rewrite(model, others, progress=progress)
        from compressor.gate_training.training import train_gates as train
        from vtcompress.stages.gates.judged import judge_held_out, judge_training

        trained = train(model, samples, method, file.checkpoint, dtype=dtype, progress=progress)
        content = gate_bytes(trained)
        gates = loaded_gates(trained, content)
        held = None
        if others:
            held = judge_held_out(model, trained, gates, others, recipe.validation, score, progress)
        report = GatesReport(
            model=model.facts.name,
            model_digest=model.digest,
            gates_digest=gates.digest,
            candidates=gates.layers,
            gate_width=gates.width,
            train=method.train,
            data=data.name,
            data_digest=trained.task.data_digest,
            samples=len(samples),
            training=judge_training(trained),
            held_out=held,
        )
        file.write(report, content)
    return report


def _questions(path: Path) -> tuple[Sample, ...]:
    samples = read_samples(path)
    check_answered(samples, path.name)
    return samples


def _held_out(recipe: Recipe) -> tuple[Sample, ...]:
    samples = validation_samples(recipe)
    check_answered(samples, validation_name(recipe))
    return samples


def gate_bytes(trained: "TrainedGates") -> bytes:
    """Return the safetensors file of trained gates: float32, named as in the released code."""
    from safetensors.torch import save

    task = trained.task
    metadata = {
        MODEL_DIGEST: task.model_digest,
        "data_digest": task.data_digest,
        "steps": str(task.train.steps),
        "seed": str(task.train.seed),
    }
    return stable_header(
        save({f"model.{k}": v for k, v in gate_tensors(trained).items()}, metadata)
    )


def gate_tensors(trained: "TrainedGates") -> "dict[str, Tensor]":
    """Return the gates' weights [out, in] by their names below the language model."""
    from compressor.decoder.weights import GATES_SOURCE

    return {
        f"{GATES_SOURCE}.{layer}.{part}.weight": linear.weight.detach().T.contiguous()
        for layer, gate in trained.gates.items()
        for part, linear in (("w1", gate.w1), ("w2", gate.w2))
    }


def loaded_gates(trained: "TrainedGates", content: bytes) -> "LoadedGates":
    """Return trained gates as if they had been read from their file."""
    from compressor.decoder.weights import LoadedGates

    digest = hashlib.sha256(content).hexdigest()
    task = trained.task
    return LoadedGates(task.candidates, task.width, digest, gate_tensors(trained))
