"""Several artifacts side by side: one table, accuracy against speed, and what forbids comparing them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.contract.asked import method_words
from compressor.disk.model_digest import alike
from compressor.errors import ArtifactError
from compressor.methods import label_of_cuts
from compressor.plan.plan import Plan
from compressor.recipe import load_recipe
from export.artifact.artifact import PLAN_FILE, RECIPE_FILE, Artifact
from export.artifact.manifest import Manifest
from export.report.charts.points import Axis
from export.report.document import Table
from export.report.words.cuts import choices_words, cuts_words
from export.report.words.exits import exits_words, leaves_of
from export.report.words.methods import methods_done, methods_words
from export.results.bench import ratio_words, unsteady
from export.results.loss_report import nats, share
from export.results.sweep import Leaves
from export.results.verdict import Verdict, verdict_of, verdict_words


@dataclass(frozen=True)
class Entry:
    """One artifact in a comparison.

    Attributes:
        number: its place in the comparison, from 1.
        name: of its folder.
        manifest: with one digest for all artifacts of a model.
        figures: plain values; those that were not measured are None.
        cells: its column of the table, by the names of the rows.
    """

    number: int
    name: str
    manifest: Manifest
    figures: dict[str, Any]
    cells: dict[str, str]

    @property
    def visual(self) -> Leaves:
        """What is done to visual rows; chooses the shape of the point in the plot."""
        kind: Leaves = self.figures["visual"]
        return kind


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
        kept: the row of the table that tells what is kept, in the words of the artifacts' score.
    """

    entries: tuple[Entry, ...]
    notes: tuple[str, ...]
    speed: Axis
    accuracy: Axis | None
    groups: tuple[tuple[int, ...], ...]
    fronts: tuple[tuple[int, ...], ...]
    kept: str

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
    manifests: list[Manifest] = []
    problems: list[str] = []
    for folder in folders:
        try:
            manifests.append(Artifact.open(folder, verify=False).manifest)
        except ArtifactError as failure:
            problems += failure.problems
    if problems:
        raise ArtifactError(problems)
    digests = alike([manifest.model_digest for manifest in manifests])
    named = zip(folders, manifests, digests, strict=True)
    kept = _kept(manifests)
    accuracies = {"kept": kept, "agreement": AGREEMENT}
    entries = tuple(
        _entry(number, folder, manifest.model_copy(update={"model_digest": digest}), kept)
        for number, (folder, manifest, digest) in enumerate(named, start=1)
    )
    speed, accuracy = next(_axes(entries, SPEEDS)), next(_axes(entries, accuracies), None)
    ignored = PREDICTED_FOR if all(entry.manifest.measured for entry in entries) else TIMED_ON
    places: dict[object, list[int]] = {}
    for place, entry in enumerate(entries):
        alike_by = tuple((_conditions(entry.manifest) | {ignored: None}).values())
        places.setdefault(alike_by, []).append(place)
    fronts: list[tuple[int, ...]] = []
    if accuracy is not None:
        points = tuple(zip(speed.values, accuracy.values, strict=True))
        for group in places.values():
            found = pareto_front([points[place] for place in group])
            fronts.append(tuple(group[place] for place in found))
    groups = tuple(map(tuple, places.values()))
    return Comparison(entries, tuple(_notes(entries)), speed, accuracy, groups, tuple(fronts), kept)


PREDICTED_FOR = "Different prompts predicted for"
TIMED_ON = "Timed on different machines, threads or prompts"


def _conditions(manifest: Manifest) -> dict[str, object]:
    """Return what must be alike where figures are compared, by what is to be said where it is not."""
    p, m, loss = manifest.predicted, manifest.measured, manifest.loss
    return {
        "Different models": manifest.model_digest,
        "Different validation data": loss and loss.data_digest,
        "Answers scored in different ways": loss and loss.score,
        PREDICTED_FOR: (p.images, manifest.model.largest_rows, p.text),
        TIMED_ON: m and (m.processor, m.threads, m.text),
    }


def _entry(number: int, folder: Path, manifest: Manifest, kept: str) -> Entry:
    plan, measured, loss = Plan.load(folder / PLAN_FILE), manifest.measured, manifest.loss
    recipe = load_recipe(folder / RECIPE_FILE, stored=True)
    methods, by_recipe = methods_done(plan, recipe.methods)
    predicted, all_ = manifest.predicted, loss and loss.overall
    figures: dict[str, Any] = {
        "number": number,
        "name": folder.resolve().name,
        "model": manifest.model.name,
        "methods": [method_words(m) if by_recipe else m.name for m in methods],
        "plan_given": None if by_recipe is None else not by_recipe,
        "layers": len(plan.layers),
        "frozen": len(plan.frozen_layers()),
        "exits": exits_words(plan),
        "cuts": cuts_words(plan, methods),
        "choices": choices_words(plan),
        "visual": leaves_of(plan),
        "predicted": predicted.speedup,
        "kv_cache": predicted.kv_bytes / predicted.kv_bytes_original,
        "measured": measured and measured.prefill.ratio,
        "measured_words": ratio_words(measured.prefill) if measured else "-",
        "decode_words": ratio_words(measured.decode_step) if measured else "-",
        "fidelity": verdict_of(manifest.fidelity),
        "loss": verdict_of(loss),
        "loss_words": verdict_words(loss),
        "score": loss and loss.score,
        "kept": all_ and all_.exact_match_kept,
        "kept_interval": all_ and all_.exact_match_kept_interval,
        "agreement": all_ and all_.agreement,
        "agreement_interval": all_ and all_.agreement_interval,
        "kl": all_ and all_.kl,
    }
    cells = {
        "model": figures["model"],
        "methods": methods_words(methods, by_recipe=bool(by_recipe)) if methods else "none",
        "frozen layers": f"{figures['frozen']} of {figures['layers']}",
        "exited layers": figures["exits"],
        f"{label_of_cuts()}'s cuts": figures["cuts"],
        "tokens kept, operators left out": figures["choices"],
        "predicted prefill": f"{predicted.speedup:.2f} x",
        "measured prefill": figures["measured_words"],
        "measured decode step": figures["decode_words"],
        "KV cache, predicted": f"{figures['kv_cache']:.0%}",
        "export fidelity": figures["fidelity"],
        "compression loss": figures["loss_words"],
        kept: share(figures["kept"], figures["kept_interval"]),
        "next token equal": share(figures["agreement"], figures["agreement_interval"]),
        "KL mean, nats": nats(figures["kl"]),
    }
    return Entry(number, figures["name"], manifest, figures, cells)


SPEEDS = {
    "measured": "prefill time, original / compressed, measured",
    "predicted": "prefill work, original / compressed, predicted",
}
AGREEMENT = "first tokens equal to the original's"


def _kept(manifests: Sequence[Manifest]) -> str:
    """Return what is kept, as the score has it that all artifacts were validated by."""
    names = {manifest.loss.words.kept for manifest in manifests if manifest.loss is not None}
    return names.pop() if len(names) == 1 else "score kept" if names else "right answers kept"


def _axes(entries: Sequence[Entry], titles: Mapping[str, str]) -> Iterator[Axis]:
    """Yield those of these figures that all artifacts have, the best one first."""
    for name, title in titles.items():
        values = tuple(entry.figures[name] for entry in entries)
        if None not in values:
            yield Axis(title, values)


def _notes(entries: Sequence[Entry]) -> list[str]:
    """Return what differs that should not, and what must be known of single artifacts."""
    notes = []
    for title in _conditions(entries[0].manifest):
        groups: dict[object, list[int]] = {}
        for entry in entries:
            if (value := _conditions(entry.manifest)[title]) is not None:
                groups.setdefault(value, []).append(entry.number)
        if len(groups) > 1:
            sets = " against ".join(", ".join(map(str, group)) for group in groups.values())
            notes.append(f"{title}: {sets}. Do not compare their figures.")

    def note(words: str, numbers: list[int]) -> list[str]:
        return [f"{words}: {', '.join(map(str, numbers))}."] if numbers else []

    busy = [e.number for e in entries if e.manifest.measured and unsteady(e.manifest.measured)]
    notes += note("Times are not steady, the machine was busy", busy)
    for entry in entries:
        lines = entry.manifest.loss.warnings if entry.manifest.loss else ()
        notes += [f"{entry.number}: {line}." for line in lines]
    for words, verdict in (("judged", Verdict.NOT_JUDGED), ("run", Verdict.NOT_RUN)):
        numbers = [entry.number for entry in entries if entry.figures["loss"] is verdict]
        notes += note(f"Compression loss was not {words}", numbers)
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
    entries = comparison.entries
    rows = [(name, *(entry.cells[name] for entry in entries)) for name in entries[0].cells]
    columns = ("", *(f"{entry.number}: {entry.name}" for entry in entries))
    fronts = [_on_front(comparison, place) for place in range(len(entries))]
    rows.append(("on the Pareto front", *fronts))
    return Table("Artifacts", columns, rows, wrapped=True)


def _on_front(comparison: Comparison, place: int) -> str:
    """Return whether an artifact is on its group's front, and of whom that is the front."""
    if not comparison.fronts:
        return "-"
    (group,) = (group for group in comparison.groups if place in group)
    if len(group) == 1:
        return "nothing to compare it with"
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
                **entry.figures,
                "on_front": place in comparison.front,
                "group": next(i for i, g in enumerate(comparison.groups, 1) if place in g),
            }
            for place, entry in enumerate(comparison.entries)
        ],
        "notes": list(comparison.notes),
        "speed": comparison.speed.title,
        "accuracy": accuracy and accuracy.title,
    }
