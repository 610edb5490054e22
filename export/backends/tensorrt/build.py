"""Builds all engines of an artifact for one target: from its graphs and weights alone, without torch."""

import contextlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from compressor.disk.files import write_text
from compressor.disk.opening import sha256_of
from compressor.errors import ArtifactError, BackendError, VtcompressError
from compressor.progress import SILENT, Progress
from compressor.recipe import load_recipe
from export.artifact.artifact import RECIPE_FILE, Artifact
from export.artifact.engine_set import (
    ENGINES_FILE,
    ENGINES_FOLDER,
    TIMING_FILE,
    EngineEntry,
    EngineSet,
    OpenedSet,
    artifact_digest,
    set_name,
)
from export.artifact.manifest import FileEntry, Manifest
from export.artifact.staging import staged
from export.backends.gpus import find_gpu
from export.backends.tensorrt.maker import Maker, check_buildable
from export.backends.tensorrt.targets import (
    DEFAULT_CAPABILITY,
    Target,
    check_capabilities,
    find_target,
)
from export.backends.tensorrt.trtexec import build_command
from export.graphs.limits import Limits, limits_of, limits_of_original
from export.graphs.profiles import ShapeProfile, profiles_of
from export.graphs.spec import BASELINE, BASELINE_VISION, WEIGHTS_FILE, GraphSpec, in_order

# In place of the compute capability where it is the GPU's own, and no GPU was asked.
THIS_GPU = "GPU"


@dataclass(frozen=True)
class EnginePlan:
    """What a build will do, settled and checked before anything is built.

    Attributes:
        artifact: whose engines.
        target: which TensorRT.
        maker: builds them.
        capabilities: of the GPUs that they will serve.
        device: name of the GPU that they are built on; empty: none is needed.
        limits: the largest sizes of their calls.
        baseline: the original decoder gets an engine too.
    """

    artifact: Artifact
    target: Target
    maker: Maker
    capabilities: tuple[str, ...]
    device: str
    limits: Limits
    baseline: bool

    @property
    def folder(self) -> Path:
        """Where the engines will lie."""
        name = set_name(self.target.name, self.capabilities)
        return self.artifact.folder / ENGINES_FOLDER / name

    @cached_property
    def profiles(self) -> tuple[tuple[GraphSpec, tuple[ShapeProfile, ...]], ...]:
        """Return each graph with the profiles of its engine, in the order of the calls."""
        specs = engine_graphs(self.artifact.manifest, baseline=self.baseline)
        of_all = limits_of_original(self.limits, self.artifact.manifest.model)
        # A vision graph that gives some rows alone reads all.
        whole = {spec.name for spec in specs if spec.rows_kept} | {BASELINE, BASELINE_VISION}
        return tuple(
            (spec, profiles_of(spec, of_all if spec.name in whole else self.limits))
            for spec in specs
        )

    def commands(self) -> dict[str, tuple[str, ...]]:
        """Return by graph the vendor's command that builds the same engine, if it has one.

        It writes into the working folder: engines in the artifact must be those that its manifest names.
        """
        return {
            spec.name: build_command(
                self.target,
                self.artifact.folder / spec.file,
                spec,
                profiles,
                Path(f"{self.folder.name}-{engine_file(spec)}"),
                Path(f"{self.folder.name}-{TIMING_FILE}"),
                self.maker.capabilities,
            )
            for spec, profiles in self.profiles
            if not spec.fixed
        }

    def without_command(self) -> dict[str, str]:
        """Return by graph why it has no command of the vendor's.

        Buffers of fixed caches have a named room in the file, which TensorRT refuses; see `pinned`.
        """
        return {
            spec.name: "it names the room of its KV cache and TensorRT wants a number; `vtcompress build` "
            "hands it the graph with one"
            for spec, _ in self.profiles
            if spec.fixed
        }


def plan_engines(
    path: str | Path,
    target_name: str,
    *,
    limits: Mapping[str, int] | None = None,
    capabilities: tuple[str, ...] = (),
    baseline: bool = False,
    gpu: int = 0,
    dry: bool = False,
    verify: bool = True,
    progress: Progress = SILENT,
) -> EnginePlan:
    """Open an artifact and settle what a build of its engines will do.

    Args:
        path: the artifact.
        target_name: one of `export.targets.TARGETS`.
        limits: largest sizes of calls that differ from the artifact's recipe, by name.
        capabilities: for `tensorrt-rtx`, such as `SM86`; one engine serves all of them. Empty: those of the
            artifact's recipe, else the target's default.
        baseline: build the original decoder too, to time it beside the compressed one.
        gpu: number of the GPU that `tensorrt` builds on.
        dry: ask neither a builder nor a GPU, for a plan that is shown and not built; capabilities are then
            taken as they are given.
        verify: as of `Artifact.open`.
        progress: shows the builder's phases.

    Raises:
        VtcompressError: the artifact is broken or cannot be built, the target is not installed, a capability
            is unknown, there is no GPU where one is needed, or the limits make no sense; nothing is written.
    """
    artifact = Artifact.open(path, verify=verify, progress=progress)
    target, manifest = find_target(target_name), artifact.manifest
    if gpu and target.ahead:
        raise BackendError(f"{target.name}: is built without a GPU; leave out `gpu`")
    asked = load_recipe(artifact.folder / RECIPE_FILE, stored=True).export.profiles
    kept = next(spec.rows_kept for spec in manifest.graphs if spec.name == "vision")
    sizes = limits_of(asked.model_copy(update=dict(limits or {})), manifest.model, kept)
    wanted = capabilities or (asked.compute_capabilities if target.ahead else None)
    specs = engine_graphs(manifest, baseline=baseline)
    check_buildable(specs, manifest.dtype, str(artifact.folder))
    problems = (*sizes.problems(manifest.model.decoder.max_positions), *_short(specs, sizes))
    if problems:
        raise ArtifactError(f"{artifact.folder}: engines: {line}" for line in problems)
    if dry:
        if not target.ahead:
            check_capabilities(target, wanted, None)
        named = wanted or (DEFAULT_CAPABILITY if target.ahead else THIS_GPU,)
        maker = Maker(target, None, named if target.ahead else (), progress)
        return EnginePlan(artifact, target, maker, named, "", sizes, baseline)
    maker = Maker.of(target, progress=progress)
    chosen = check_capabilities(target, wanted, maker.trt)
    if target.ahead:
        maker = replace(maker, capabilities=chosen)
        return EnginePlan(artifact, target, maker, chosen, "", sizes, baseline)
    card = find_gpu(gpu)
    return EnginePlan(artifact, target, maker, (card.capability,), card.name, sizes, baseline)


def build_engines(plan: EnginePlan, *, overwrite: bool = False) -> OpenedSet:
    """Build the engines; they appear in the artifact when all are complete.

    Args:
        plan: what is built.
        overwrite: replace engines that are there; their timing cache is used if the builder is the same.

    Raises:
        VtcompressError: a graph is refused, or the folder cannot be written; nothing is left behind.
    """
    folder, manifest = plan.folder, plan.artifact.manifest
    if folder.exists() and not overwrite:
        raise VtcompressError(f"{folder}: exists; add `overwrite` to build it anew")
    weights = manifest.files.get(WEIGHTS_FILE)
    needed = weights.size * (2 if plan.baseline else 1) if weights else 0
    try:
        with staged(folder, overwrite=overwrite, needed_bytes=needed) as staging:
            _build_into(staging, plan, _old_timing(folder, plan.maker.trt.__version__))
    except BaseException:
        with contextlib.suppress(OSError):  # it holds other engines
            folder.parent.rmdir()
        raise
    return OpenedSet.read(folder)


def engine_graphs(manifest: Manifest, *, baseline: bool = False) -> tuple[GraphSpec, ...]:
    """Return the graphs that engines are built of, in the order of the calls.

    Raises:
        ArtifactError: the original decoder is asked for, and the artifact has none.
    """
    by_name = {spec.name: spec for spec in manifest.graphs}
    specs = [by_name["vision"], by_name["embed"], *in_order(manifest.graphs, "decoder")]
    if baseline and BASELINE_VISION in by_name:
        specs.append(by_name[BASELINE_VISION])
    if baseline:
        if BASELINE not in by_name:
            raise ArtifactError([f"the artifact has no {BASELINE}; leave out the baseline"])
        specs.append(by_name[BASELINE])
    return tuple(specs)


def _short(specs: Sequence[GraphSpec], limits: Limits) -> tuple[str, ...]:
    """Return what is wrong with limits that graphs with fixed caches have no room for."""
    rooms = {
        (t.filled, t.rows, tuple(spec.kept.items()))
        for spec in specs
        for t in spec.cached
        if t.filled
    }

    def fits(context: int) -> bool:
        asked = limits.model_copy(update={"max_context": context})
        return all(asked.cached_rows(length, dict(kept)) <= rows for length, rows, kept in rooms)

    if fits(limits.max_context):
        return ()
    # Caches that hold fewer or more visual rows than the prompt have room for another number of rows.
    most = next(context for context in range(limits.max_context, 0, -1) if fits(context))
    return (
        f"max_context: {limits.max_context} is more than {most}, for which the artifact's KV cache of fixed "
        f"size was exported; give {most} or less, or export it with a larger export.profiles.max_context",
    )


def engine_file(spec: GraphSpec) -> str:
    """Return the file name of a graph's engine."""
    return f"{spec.name}.engine"


def _build_into(staging: Path, plan: EnginePlan, timing: bytes) -> None:
    entries = []
    for spec, profiles in plan.profiles:
        plan.maker.progress.say(f"building {engine_file(spec)} for {plan.folder.name}")
        output = staging / engine_file(spec)
        seconds, timing = plan.maker.build_engine(
            plan.artifact.folder / spec.file, profiles, spec, output, timing
        )
        entries.append(
            EngineEntry(
                graph=spec.name,
                file=output.name,
                sha256=sha256_of(output),
                size=output.stat().st_size,
                seconds=round(seconds, 2),
                profiles=profiles,
            )
        )
    kept = None
    if plan.target.timing:
        (staging / TIMING_FILE).write_bytes(timing)
        kept = FileEntry(sha256=sha256_of(staging / TIMING_FILE), size=len(timing))
    facts = EngineSet(
        target=plan.target.name,
        version=plan.maker.trt.__version__,
        compute_capabilities=plan.capabilities,
        device=plan.device,
        platform=f"{platform.system()} {platform.machine()}",
        limits=plan.limits,
        artifact=artifact_digest(plan.artifact.manifest),
        engines=tuple(entries),
        timing=kept,
    )
    write_text(staging / ENGINES_FILE, facts.model_dump_json(indent=1) + "\n")


def _old_timing(folder: Path, version: str) -> bytes:
    """Return the timing cache of the engines that will be replaced, if this builder can use it."""
    try:
        return OpenedSet.read(folder).timing(version)
    except ArtifactError:
        return b""
