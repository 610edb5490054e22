"""The torch side of an export: the reference of the first check, and the graphs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.families.pictures.text import PictureForm
from compressor.generation.settings import write_keys
from compressor.plan.plan import Plan
from compressor.profile import Profile
from compressor.progress import Megabytes
from compressor.schema.sections import ExportSection
from export.checks import fidelity
from export.graphs.limits import limits_of_original
from export.graphs.spec import (
    BASELINE,
    BASELINE_VISION,
    GraphSpec,
    decoder_graph,
    decoder_graphs,
    embed_graph,
    vision_graph,
)
from export.results.answers import Answers
from export.results.loss_report import LossReport
from export.results.quantization import QuantizationReport
from vtcompress.stages.compress import as_stored, write_inputs
from vtcompress.stages.exporting.before_healing import loss_before_healing
from vtcompress.stages.exporting.job import Job
from vtcompress.stages.exporting.whole_numbers import (
    measure_quantization,
    stored_in_whole_numbers,
)
from vtcompress.stages.validate import record_torch

if TYPE_CHECKING:
    from compressor.compressed import CompressedModel
    from compressor.decoder import Decoder
    from export.checks.by_layer.reference import Reference


@dataclass(frozen=True)
class Written:
    """What the torch side leaves for the checks of the ONNX side.

    Attributes:
        plan: the compressed model's plan.
        graphs: the written graphs.
        reference: outputs of the compressed torch model; None: it was not in memory.
        by_layer: the torch model to be run a layer at a time; None: it was in memory, or cannot be parted.
        original: answers of the original model; None without validation data.
        form: how the model takes pictures.
        quantization: what whole numbers lose; None: weights are float.
        unhealed: what the plan loses before healing; None: nothing was healed, or it was not measured.
    """

    plan: Plan
    graphs: tuple[GraphSpec, ...]
    reference: fidelity.Recording | None
    original: Answers | None
    form: PictureForm
    quantization: QuantizationReport | None = None
    unhealed: LossReport | None = None
    by_layer: "Reference | None" = None


def torch_side(
    job: Job,
    small: "CompressedModel",
    profile: Profile | None,
    original: Answers | None,
    folder: Path,
) -> Written:
    """Run the compressed model, and write its graphs and all files that they need.

    Args:
        job: the export.
        small: the compressed model; its weights are in another dtype afterwards.
        profile: what the plan was chosen by; None: no profile.
        original: answers of the original model; None without validation data.
        folder: the artifact under construction.
    """
    from compressor.families.registry import picture_form

    write_inputs(folder, job.recipe, small.plan, profile)
    small.processor.save_pretrained(folder)
    write_keys(folder, small.generation)
    form = picture_form(small.processor, small.plan.model)
    if job.stream:
        by_layer = _read_by_layer(job, small)
        graphs = _write_graphs(job, small, folder)
        quantization = stored_in_whole_numbers(small, job.recipe.export, None)
        return Written(small.plan, graphs, None, original, form, quantization, by_layer=by_layer)
    job.progress.say("running the compressed model in torch")
    with job.peaks.of("running the compressed model"):
        stored = as_stored(small, job.recipe.export)
        reference = record_torch(stored, job.limits(small.plan))
    quantization = None
    if stored is not small:
        job.progress.say(f"measuring what {job.recipe.export.weights} weights lose")
        models = {"float": small, "whole": stored}
        with job.peaks.of("measuring what the weights lose"):
            quantization = measure_quantization(job, models, reference, folder, form)
        del models
    del stored
    unhealed = loss_before_healing(job, small, original, folder, form)
    graphs = _write_graphs(job, small, folder)
    return Written(small.plan, graphs, reference, original, form, quantization, unhealed)


def _read_by_layer(job: Job, small: "CompressedModel") -> "Reference | None":
    """Run what of a streamed model is in memory; None: its layers cannot be run one at a time."""
    from compressor.decoder.by_layer import cannot_part
    from export.checks.by_layer.reference import read_reference

    if why := cannot_part(small.plan):
        job.progress.say(
            f"export fidelity is not checked: {why}, so that layers cannot be run by themselves"
        )
        return None
    limits = job.limits(small.plan)
    room = limits.max_context if limits else None
    return read_reference(small, job.recipe.export, room)


def _write_graphs(job: Job, small: "CompressedModel", folder: Path) -> tuple[GraphSpec, ...]:
    import torch

    from compressor.chosen_rows import vision_of
    from compressor.compressed import naive_decoder
    from compressor.decoder.weights import joined_parts
    from export.writer.weights import SharedWeights
    from export.writer.write import export_decoder, export_embed, export_vision, save_graph

    settings, plan = job.recipe.export, small.plan
    dtype, logits = settings.dtype, settings.logits
    limits = job.limits(plan)
    small = small.to(getattr(torch, dtype))
    of_original = None if limits is None else limits_of_original(limits, plan.model)
    specs = [
        vision_graph(plan.model, dtype, plan.front),
        embed_graph(plan.model, dtype),
        *decoder_graphs(plan, dtype, logits, limits),
        decoder_graph(plan.naive(), dtype, logits, name=BASELINE, limits=of_original),
    ]
    makers: list[Callable[[GraphSpec], Any]] = [
        lambda spec: export_vision(small, spec, settings),
        lambda spec: export_embed(small, spec, settings),
        *decoder_makers(small.decoder, plan, settings),
        lambda spec: export_decoder(
            naive_decoder(small), spec, joined_parts(small.decoder), settings
        ),
    ]
    if plan.front is not None:  # what the original's decoder reads: all visual rows
        specs.append(vision_graph(plan.model, dtype, name=BASELINE_VISION))
        whole = replace(small, vision=vision_of(plan.naive(), small.vision))
        makers.append(lambda spec: export_vision(whole, spec, settings))
    bar = Megabytes(job.progress, "writing weights, MB")
    with SharedWeights(folder, small.stored, bar.add) as weights:
        pairs = list(zip(specs, makers, strict=True))
        waiting: list[tuple[Any, Path]] = []
        with job.peaks.of("exporting graphs"):
            for spec, make in job.progress.track(pairs, "exporting graphs", len(pairs)):
                graph = make(spec)
                # Weights that are read from files come last, in one go, with a bar of their own.
                if waiting or weights.is_streamed(graph):
                    waiting.append((graph, folder / spec.file))
                else:
                    save_graph(graph, folder / spec.file, weights)
        if waiting:
            to_read = weights.bytes_to_read(graph for graph, _ in waiting)
            with job.peaks.of("writing weights"), bar.of(to_read):
                for graph, path in waiting:
                    save_graph(graph, path, weights)
    return tuple(specs)


def decoder_makers(
    decoder: "Decoder", plan: Plan, settings: ExportSection | None = None
) -> list[Callable[[GraphSpec], Any]]:
    """Return what exports each of the plan's decoder graphs, in order; without settings by the defaults."""
    from compressor.decoder import Stage
    from export.writer.write import export_decoder

    export = partial(export_decoder, settings=settings or ExportSection())
    if plan.gates is None or plan.gates.mode == "dynamic":
        return [partial(export, decoder)]
    stages = [Stage(decoder, number).eval() for number in range(len(plan.segments()))]
    return [partial(export, stage) for stage in stages]
