"""Several artifacts side by side: one table, accuracy against speed, and what forbids comparing them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from compressor.disk.model_digest import alike
from compressor.errors import ArtifactError
from compressor.methods import label_of_cuts
from export.artifact.artifact import PLAN_FILE, RECIPE_FILE, Artifact
from export.artifact.manifest import Manifest
from export.report.document import Table
from export.report.words.cuts import cuts_words
from export.report.words.exits import exits_words
from export.report.words.methods import method_words
from export.results.bench import bench_rows, ratio_words
from export.results.intervals import Interval
from export.results.loss_report import nats, share
from export.results.verdict import Verdict, verdict_of, verdict_words

Kind = Literal["stay", "leave", "may leave"]
"""Visual rows `stay` to the last layer, `leave` at a fixed exit, or `may leave` where gates decide."""


@dataclass(frozen=True)
class Entry:
    """One artifact in a comparison.

    Attributes:
        number: its place in the comparison, from 1; marks its point in the plot.
        name: of its folder.
        layers: how many, and in how many of them visual rows are frozen.
        exits: where visual rows leave, in words.
        cuts: what else visual rows do less of, in words; with the semantics.
        visual: what is done to visual rows; chooses the shape of the point in the plot.
        predicted: speed-up of the prefill by FLOPs.
        kv_cache: predicted share of the original's KV cache, after the prefill.
        measured: median speed-up of the prefill; None if it was not timed.
        decode_words: measured speed-up of a decode step.
        fidelity: what became of the check.
        loss: likewise.
        loss_words: the same, and why if it was not judged.
        kept: share of the original's right answers; None if unknown.
        kept_interval: of 95%; None if unknown.
        agreement: share of equal first tokens; None if compression loss did not run.
        agreement_interval: likewise.
        kl: mean, in nats; likewise.
    """

    number: int
    name: str
    model: str
    methods: tuple[str, ...]
    layers: int
    frozen: int
    exits: str
    cuts: str
    visual: Kind
    predicted: float
    kv_cache: float
    measured: float | None
    measured_words: str
    decode_words: str
    fidelity: Verdict
    loss: Verdict
    loss_words: str
    kept: float | None
    kept_interval: Interval | None
    agreement: float | None
    agreement_interval: Interval | None
    kl: float | None


@dataclass(frozen=True)
class Axis:
    """What one direction of the plot shows.

    Attributes:
        title: with the unit.
        values: one for each artifact, in order; higher is better.
    """

    title: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """Artifacts side by side.

    Attributes:
        notes: what makes figures of these artifacts not comparable, one sentence each.
        speed: measured if all were timed, predicted otherwise.
        accuracy: None if there is no figure that all artifacts have.
        groups: places, from 0, of artifacts whose figures can be compared: of one model and one data, on one
            machine where times are plotted.
        fronts: of each group, the places of those that no other of it beats in both; none without accuracy.
    """

    entries: tuple[Entry, ...]
    notes: tuple[str, ...]
    speed: Axis
    accuracy: Axis | None
    groups: tuple[tuple[int, ...], ...]
    fronts: tuple[tuple[int, ...], ...]

    @property
    def front(self) -> tuple[int, ...]:
        """The places on the front of their group."""
        return tuple(sorted(place for front in self.fronts for place in front))


def compare_artifacts(folders: Sequence[Path]) -> Comparison:
    """Read artifacts and put them side by side; weights are neither read nor verified.

    Raises:
        ArtifactError: fewer than two, or not artifacts; all that are none are named.
    """
    if len(folders) < 2:
        raise ArtifactError(["nothing to compare: give at least two artifacts"])
    opened: list[tuple[Path, Manifest]] = []
    problems: list[str] = []
    for folder in folders:
        try:
            opened.append((folder, Artifact.open(folder, verify=False).manifest))
        except ArtifactError as failure:
            problems += failure.problems
    if problems:
        raise ArtifactError(problems)
    entries = tuple(_entry(i, folder, m) for i, (folder, m) in enumerate(opened, start=1))
    return compared(entries, [manifest for _, manifest in opened])


def compared(entries: tuple[Entry, ...], manifests: Sequence[Manifest]) -> Comparison:
    """Return the comparison of entries that were read already."""
    digests = alike([manifest.model_digest for manifest in manifests])
    manifests = [
        manifest.model_copy(update={"model_digest": digest})
        for manifest, digest in zip(manifests, digests, strict=True)
    ]
    speed, accuracy = _speed(entries), _accuracy(entries)
    groups = _groups(manifests, timed=all(entry.measured is not None for entry in entries))
    fronts: list[tuple[int, ...]] = []
    if accuracy is not None:
        points = tuple(zip(speed.values, accuracy.values, strict=True))
        for group in groups:
            found = pareto_front([points[place] for place in group])
            fronts.append(tuple(group[place] for place in found))
    notes = tuple(_notes(entries, manifests))
    return Comparison(entries, notes, speed, accuracy, groups, tuple(fronts))


def _groups(manifests: Sequence[Manifest], *, timed: bool) -> tuple[tuple[int, ...], ...]:
    """Return the places of artifacts whose accuracy and speed are figures of the same kind."""
    found: dict[object, list[int]] = {}
    for place, manifest in enumerate(manifests):
        told = (_model, _data, _machine if timed else _workload)
        found.setdefault(tuple(of(manifest) for of in told), []).append(place)
    return tuple(map(tuple, found.values()))


def _model(manifest: Manifest) -> object:
    return manifest.model_digest


def _data(manifest: Manifest) -> object:
    return manifest.loss and manifest.loss.data_digest


def _workload(manifest: Manifest) -> object:
    p = manifest.predicted
    return p.images, p.visual, p.text


def _machine(manifest: Manifest) -> object:
    m = manifest.measured
    return m and (m.processor, m.threads, m.text)


def _entry(number: int, folder: Path, manifest: Manifest) -> Entry:
    from compressor.plan.plan import Plan
    from compressor.recipe import load_recipe

    plan, measured, loss = Plan.load(folder / PLAN_FILE), manifest.measured, manifest.loss
    methods = load_recipe(folder / RECIPE_FILE, stored=True).methods
    return Entry(
        number=number,
        name=folder.resolve().name,
        model=manifest.model.name,
        methods=tuple(map(method_words, methods)),
        layers=len(plan.layers),
        frozen=len(plan.frozen_layers()),
        exits=exits_words(plan),
        cuts=cuts_words(plan, methods),
        visual="may leave" if plan.gates else "stay" if plan.exit_layer is None else "leave",
        predicted=manifest.predicted.speedup,
        kv_cache=manifest.predicted.kv_bytes / manifest.predicted.kv_bytes_original,
        measured=measured.prefill.ratio if measured else None,
        measured_words=ratio_words(measured.prefill) if measured else "-",
        decode_words=ratio_words(measured.decode_step) if measured else "-",
        fidelity=verdict_of(manifest.fidelity),
        loss=verdict_of(loss),
        loss_words=verdict_words(loss),
        kept=loss.overall.exact_match_kept if loss else None,
        kept_interval=loss.overall.exact_match_kept_interval if loss else None,
        agreement=loss.overall.agreement if loss else None,
        agreement_interval=loss.overall.agreement_interval if loss else None,
        kl=loss.overall.kl if loss else None,
    )


def _speed(entries: Sequence[Entry]) -> Axis:
    measured = [entry.measured for entry in entries if entry.measured is not None]
    if len(measured) == len(entries):
        return Axis("prefill time, original / compressed, measured", tuple(measured))
    return Axis(
        "prefill work, original / compressed, predicted",
        tuple(entry.predicted for entry in entries),
    )


def _accuracy(entries: Sequence[Entry]) -> Axis | None:
    choices: tuple[tuple[str, Callable[[Entry], float | None]], ...] = (
        ("right answers kept", lambda entry: entry.kept),
        ("first tokens equal to the original's", lambda entry: entry.agreement),
    )
    for title, of in choices:
        values = [value for entry in entries if (value := of(entry)) is not None]
        if len(values) == len(entries):
            return Axis(title, tuple(values))
    return None


def _notes(entries: Sequence[Entry], manifests: Sequence[Manifest]) -> list[str]:
    """Return what differs that should not."""
    facts: tuple[tuple[str, Callable[[Manifest], object]], ...] = (
        ("Different models", _model),
        ("Different validation data", _data),
        ("Different prompts predicted for", _workload),
        ("Timed on different machines, threads or prompts", _machine),
    )
    notes = []
    for title, of in facts:
        groups: dict[object, list[int]] = {}
        for entry, manifest in zip(entries, manifests, strict=True):
            value = of(manifest)
            if value is not None:
                groups.setdefault(value, []).append(entry.number)
        if len(groups) > 1:
            sets = " against ".join(", ".join(map(str, group)) for group in groups.values())
            notes.append(f"{title}: {sets}. Do not compare their figures.")
    busy = [
        str(entry.number)
        for entry, manifest in zip(entries, manifests, strict=True)
        if manifest.measured
        and not all(timing.steady for _, timing in bench_rows(manifest.measured))
    ]
    if busy:
        notes.append(f"Times are not steady, the machine was busy: {', '.join(busy)}.")
    notes += [
        f"{entry.number}: {line}."
        for entry, manifest in zip(entries, manifests, strict=True)
        for line in (manifest.loss.warnings if manifest.loss else ())
    ]
    unjudged = [str(e.number) for e in entries if e.loss is Verdict.NOT_JUDGED]
    if unjudged:
        notes.append(f"Compression loss was not judged: {', '.join(unjudged)}.")
    without = [str(e.number) for e in entries if e.agreement is None]
    if without:
        notes.append(f"Compression loss was not run: {', '.join(without)}.")
    return notes


def pareto_front(points: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """Return the indices of the points that no other point beats, higher being better in both.

    A point beats another if it is nowhere lower and somewhere higher; equal points stay together.
    """
    return tuple(
        i
        for i, (x, y) in enumerate(points)
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
    )


def comparison_table(comparison: Comparison) -> Table:
    """Return one row a figure, one column an artifact."""
    figures: tuple[tuple[str, Callable[[Entry], str]], ...] = (
        ("model", lambda entry: entry.model),
        ("methods", lambda entry: ", ".join(entry.methods) or "none"),
        ("frozen layers", lambda entry: f"{entry.frozen} of {entry.layers}"),
        ("exited layers", lambda entry: entry.exits),
        (f"{label_of_cuts()}'s cuts", lambda entry: entry.cuts),
        ("predicted prefill", lambda entry: f"{entry.predicted:.2f} x"),
        ("measured prefill", lambda entry: entry.measured_words),
        ("measured decode step", lambda entry: entry.decode_words),
        ("KV cache, predicted", lambda entry: f"{entry.kv_cache:.0%}"),
        ("export fidelity", lambda entry: entry.fidelity),
        ("compression loss", lambda entry: entry.loss_words),
        ("right answers kept", lambda entry: share(entry.kept, entry.kept_interval)),
        ("next token equal", lambda entry: share(entry.agreement, entry.agreement_interval)),
        ("KL mean, nats", lambda entry: nats(entry.kl)),
    )
    rows = [(name, *(of(entry) for entry in comparison.entries)) for name, of in figures]
    places = range(len(comparison.entries))
    rows.append(("on the Pareto front", *(_on_front(comparison, place) for place in places)))
    columns = ("", *(f"{entry.number}: {entry.name}" for entry in comparison.entries))
    return Table("Artifacts", columns, rows, wrapped=True)


def _on_front(comparison: Comparison, place: int) -> str:
    """Return whether an artifact is on its group's front, and of whom that is the front."""
    (group,) = (group for group in comparison.groups if place in group)
    if not comparison.fronts or len(group) == 1:
        return "-" if not comparison.fronts else "nothing to compare it with"
    found = "yes" if place in comparison.front else "no"
    if len(comparison.groups) == 1:
        return found
    return f"{found}, of {', '.join(comparison.entries[other].name for other in group)}"


def comparison_figures(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison for dashboards."""
    accuracy = comparison.accuracy
    return {
        "artifacts": [
            {
                **asdict(entry),
                "on_front": place in comparison.front,
                "group": next(i for i, g in enumerate(comparison.groups, 1) if place in g),
            }
            for place, entry in enumerate(comparison.entries)
        ],
        "notes": list(comparison.notes),
        "speed": comparison.speed.title,
        "accuracy": accuracy and accuracy.title,
    }
