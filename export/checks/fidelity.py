"""Export fidelity: the compressed torch model against its own exported graphs, call by call.

The two sides run one after the other on equal inputs, so that the models are never in memory together:
`record` keeps the outputs of one side, `compare` judges two recordings and collects every failure.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from compressor.facts import ModelFacts
from compressor.plan.plan import Plan
from compressor.samples.layout import Grid, Layout, Pictured, VisualRows, layout_around
from export.checks.choices import Choices, behind, in_both, others
from export.graphs.limits import rows_of_picture
from export.graphs.spec import GraphSpec
from export.results.fidelity import Difference, FidelityLimits, FidelityReport
from export.session.arrays import Array
from export.session.feeds import CallRows, prompt_rows, text_rows
from export.session.session import Session, look

IMAGE_COUNTS = (0, 1, 2)
TEXT_ROWS = (9, 5)
PROMPTS = len(IMAGE_COUNTS) * len(TEXT_ROWS)
LATER_TEXT_ROWS = 3
DECODE_STEPS = 16
PREFILL = "prefill"
# Below it, a difference relative to the largest value says nothing.
TINY = 1e-6


LabelledCall = tuple[str, CallRows]


@dataclass
class Recording:
    """Outputs of one side by call, what it chose on the way, and the shapes of its caches."""

    outputs: dict[str, Array] = field(default_factory=dict)
    choices: Choices = field(default_factory=Choices)
    shapes: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)


def record(
    session: Session,
    plan: Plan,
    seed: int = 0,
    images: Sequence[int] = IMAGE_COUNTS,
    room: int | None = None,
) -> Recording:
    """Run the fixed set of calls and keep what comes out.

    Images are seeded noise, one tile each, tokens are seeded draws from the vocabulary: V = 0, N and 2N with
    two lengths of T; each prompt is followed by a later turn on its cache and by decode steps. Where images
    have sizes of their own, one more of other proportions is among them.

    Args:
        session: runs them.
        plan: of the decoder.
        seed: of the draws.
        images: of the prompts.
        room: rows of one conversation in caches of fixed size; what does not fit is shortened or left out.
    """
    recording = Recording()
    for name, calls in prompts(recording, session, plan, seed, images, room):
        past = session.empty_past(1)
        for label, rows in calls:
            logits, past = session.decode(rows, past)
            recording.outputs[f"{name}: {label}"] = logits
            recording.shapes[f"{name}: {label}"] = session.past_shapes(past)
            if label == PREFILL:
                kept = plan.rows_of_layers(rows.visual_index.shape[1])
                for layer in plan.keeps() if kept[0] else ():
                    keys = session.cached_keys(past, layer)
                    recording.choices.going_on[name, layer] = (keys, kept[layer])
    return recording


def prompts(
    recording: Recording,
    session: Session,
    plan: Plan,
    seed: int = 0,
    images: Sequence[int] = IMAGE_COUNTS,
    room: int | None = None,
    texts: Sequence[int] = TEXT_ROWS,
    steps: int = DECODE_STEPS,
) -> Iterator[tuple[str, list[LabelledCall]]]:
    """Yield the prompts' names and their calls of the decoder, each behind the one before it.

    What the vision and embedding graphs make of them is recorded on the way.

    Args:
        recording: takes it.
        session: sees the pictures and embeds the tokens.
        plan: as in `record`.
        seed: likewise.
        images: likewise.
        room: likewise.
        texts: text rows of the prompts.
        steps: decode steps behind each.
    """
    rng = np.random.default_rng(seed)
    facts = plan.model
    for count, grid, words in _pictures(facts, images):
        size, one = facts.picture_on(grid), math.prod(grid)
        if grid == facts.largest_grid:  # rows of tiles may be arranged
            one = facts.largest_rows // facts.most_tiles
        pixels = rng.standard_normal((count, 3, *size)).astype(np.float32)
        seen = VisualRows(())
        if count:
            arranged = facts.made_up_rows(1, one)
            seen = look(session, [Pictured(tile[None], one, arranged) for tile in pixels])
            for number, part in enumerate(seen.features):
                name = f"deepstack {number - 1}" if number else "vision"
                recording.outputs[f"{name}, {words}"] = part.astype(np.float32)
            if seen.kept is not None:
                recording.choices.entering[words] = seen.kept
        for rows in texts:
            ids = rng.integers(0, facts.decoder.vocab, rows + LATER_TEXT_ROWS + DECODE_STEPS)
            if room is not None:
                # Caches of text alone have room for the text beside one image.
                visual = count * one if seen.kept is None else len(seen.kept)
                ids = ids[: max(0, room - max(visual, rows_of_picture(facts, plan.rows_kept)))]
            if len(ids):
                layout = layout_around(ids[:rows], (one,) * count, facts=facts, grid=grid)
                name = f"{words}, T={rows}"
                embedded = session.embed(ids[None])
                recording.outputs[f"{name}: embed"] = embedded.astype(np.float32)
                yield name, [*_calls(seen, layout, embedded, steps)]


def _pictures(facts: ModelFacts, images: Sequence[int]) -> Iterator[tuple[int, Grid, str]]:
    """Yield how many images prompts have, on which grid each lies, and words for both."""
    for count in images:
        yield count, facts.largest_grid, f"{count} images"
    if any(images) and (grid := facts.oblong_grid) is not None:
        yield 1, grid, f"1 image of {grid[0]} x {grid[1]} tokens"


def _calls(seen: VisualRows, layout: Layout, embedded: Array, steps: int) -> Iterator[LabelledCall]:
    """Yield a prompt's call on the first of the embedded rows, and what follows on the others."""
    prompt, later = np.split(embedded, [len(layout.text_ids)], axis=1)
    yield PREFILL, prompt_rows(layout, prompt, *seen)
    start = 0
    for label, wanted in _later_calls(steps):
        text = later[:, start : start + wanted]
        if not text.size:
            return
        yield label, text_rows(layout.behind(start, text.shape[1]), text)
        start += wanted


def _later_calls(steps: int) -> Iterator[tuple[str, int]]:
    yield "later turn", LATER_TEXT_ROWS
    for step in range(steps):
        yield f"decode step {step + 1}", 1


def compare(
    reference: Recording,
    recording: Recording,
    graphs: Sequence[GraphSpec],
    declared: Sequence[str],
    limits: FidelityLimits,
    *,
    beside: str = "torch",
) -> FidelityReport:
    """Judge one recording against another.

    Args:
        reference: of the compressed torch model, or of another backend.
        recording: of the exported graphs.
        graphs: the graphs that were run; named in the report.
        declared: failures of names, axes and dtypes that `check_declared` found.
        limits: what every output must satisfy.
        beside: what gave the reference, in words.
    """
    moved = others(reference.choices, recording.choices, limits, beside)
    failures = [*declared, *moved.values()]
    differences = []
    for call, wanted in reference.outputs.items():
        if behind(call, [*moved]):
            continue
        got = recording.outputs.get(call)
        if got is None:
            failures.append(f"{call}: missing")
            continue
        if got.shape != wanted.shape:
            failures.append(f"{call}: shape {got.shape}, {beside} gives {wanted.shape}")
            continue
        pair = in_both(call, (wanted, got), (reference.choices, recording.choices))
        if not len(pair[0]):
            continue
        found = how_different(call, *pair)
        differences.append(found)
        failures += missed_limits(found, limits)
    for call, shapes in reference.shapes.items():
        if recording.shapes.get(call) != shapes:
            failures.append(
                f"{call}: cache shapes {recording.shapes.get(call)}, {beside} gives {shapes}"
            )
    if not differences:
        nothing = Difference(
            call="nothing compared", max_abs=np.inf, max_relative=np.inf, cosine=-1.0
        )
        names = ", ".join(spec.name for spec in graphs)
        failures.append(f"nothing could be compared in {names}")
        differences.append(nothing)
    return FidelityReport(
        calls=len(differences),
        limits=limits,
        worst_abs=max(differences, key=lambda d: d.max_abs),
        worst_relative=max(differences, key=lambda d: d.max_relative),
        worst_cosine=min(differences, key=lambda d: d.cosine),
        failures=tuple(failures),
    )


def how_different(call: str, wanted: Array, got: Array) -> Difference:
    """Return how far an output is from the wanted one, of the same shape."""
    a, b = wanted.astype(np.float64), got.astype(np.float64)
    worst = float(np.abs(a - b).max())
    if not np.isfinite(worst):
        return Difference(call=call, max_abs=np.inf, max_relative=np.inf, cosine=-1.0)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    same = (a == b).all(axis=-1)  # also rows of zeros, whose cosine is not defined
    cosine = np.where(same, 1.0, (a * b).sum(axis=-1) / np.maximum(lengths, TINY))
    return Difference(
        call=call,
        max_abs=worst,
        max_relative=worst / max(float(np.abs(a).max()), TINY),
        cosine=float(cosine.min()),
    )


def missed_limits(d: Difference, limits: FidelityLimits) -> list[str]:
    """Return a line for each limit that a difference misses."""
    lines = []
    if d.max_abs > limits.max_abs:
        lines.append(f"{d.call}: differs by {d.max_abs:.3g}, allowed max_abs {limits.max_abs:g}")
    if d.max_relative > limits.max_relative:
        lines.append(
            f"{d.call}: differs by {d.max_relative:.3g} of the largest value, "
            f"allowed max_relative {limits.max_relative:g}"
        )
    if d.cosine < limits.min_cosine:
        lines.append(f"{d.call}: cosine {d.cosine:.7f}, wanted min_cosine {limits.min_cosine:g}")
    return lines


def check_declared(
    spec: GraphSpec, inputs: Sequence[object], outputs: Sequence[object]
) -> list[str]:
    """Return how a loaded graph's names, axes and dtypes differ from its declaration.

    Args:
        spec: the declaration.
        inputs: ONNX Runtime's node arguments (`name`, `shape`, `type`).
        outputs: likewise.
    """
    kinds = {
        "float32": "tensor(float)",
        "float16": "tensor(float16)",
        "bfloat16": "tensor(bfloat16)",
        "int64": "tensor(int64)",
        "bool": "tensor(bool)",
    }
    lines = []
    for side, declared, found in (
        ("input", spec.inputs, inputs),
        ("output", spec.outputs, outputs),
    ):
        actual = {a.name: (tuple(a.shape), a.type) for a in found}  # type: ignore[attr-defined]
        wanted = {t.name: (t.axes, kinds[t.dtype]) for t in declared}
        lines += [f"{spec.file}: {side} {n}: missing" for n in wanted.keys() - actual.keys()]
        lines += [f"{spec.file}: {side} {n}: not declared" for n in actual.keys() - wanted.keys()]
        lines += [
            f"{spec.file}: {side} {n}: is {actual[n]}, declared {wanted[n]}"
            for n in wanted.keys() & actual.keys()
            if actual[n] != wanted[n]
        ]
    return sorted(lines)
