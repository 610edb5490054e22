"""Judges what a device had by what is known: each part by itself, as far as what it reads was right.

Limits are those that backends are compared by (`vtcompress validate --backend`): the recipe's of export
fidelity. Sums of rows are judged as layers are by themselves, without the absolute one.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat

import numpy as np

from export.checks.fidelity import missed_limits
from export.checks.known.answers import KnownAnswers, KnownGraphs, KnownPicture
from export.checks.known.made_calls import MadeCalls
from export.checks.known.observe import Observed, pairs
from export.checks.known.report import PARTS, Part, PartName
from export.checks.known.sums import Logits, Pixels, Sums, rows_compared
from export.results.fidelity import Difference, FidelityLimits
from export.results.rewrite import MAX_PIXEL_DIFFERENCE

READS_WRONG = "what it reads of pictures is wrong already"
# Two roundings of one size are no further apart than twice that.
ROUNDINGS = 2


@dataclass
class _Part:
    """A part while it is being judged."""

    limits: FidelityLimits
    compared: int = 0
    differences: list[Difference] = field(default_factory=list)
    of_logits: list[Difference] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def differs(self, found: Difference | str, *, absolute: bool = False) -> None:
        """Note a comparison; `absolute`: its size is that of logits, so that every limit holds."""
        self.compared += 1
        if isinstance(found, str):
            self.failures.append(found)
            return
        self.differences.append(found)
        self.of_logits += [found] if absolute else []
        limits = self.limits if absolute else relative(self.limits)
        self.failures += missed_limits(found, limits)[:1]  # one line says that an output is wrong

    def logits(self, wanted: Logits, got: Logits, what: str) -> None:
        """Compare logits: those of the likeliest tokens, and if these are right, all by their sums."""
        shape, failed = (1, len(wanted.values)), len(self.failures)
        pair = rows_compared(shape, [wanted.values], (1, len(got.values)), [got.values], what)
        self.differs(pair, absolute=True)
        if len(self.failures) == failed:
            self.differs(wanted.whole.against(got.whole, f"{what}, all logits"))

    def ended(self, what: str, error: str, *, refused: bool) -> None:
        """Note an error; a call that is refused for its size tells nothing."""
        if refused:
            self.skip(f"{what}: {error}")
        else:
            self.failures.append(f"{what}: {error}")

    def skip(self, words: str) -> None:
        """Note what is not judged, once."""
        if words not in self.skipped:
            self.skipped.append(words)

    def done(self, name: PartName) -> Part:
        """Return the outcome."""
        return Part(
            name=name,
            compared=self.compared,
            worst=max(self.differences, key=lambda one: one.max_relative, default=None),
            failures=tuple(dict.fromkeys(self.failures)),
            skipped=tuple(self.skipped),
            notes=tuple(self.notes),
        )


NO_LIMITS = FidelityLimits(max_abs=math.inf, max_relative=math.inf, min_cosine=-math.inf)
Judging = Mapping[PartName, _Part]


def relative(limits: FidelityLimits) -> FidelityLimits:
    """Return limits without the absolute one, for states, whose size is the model's."""
    return limits.model_copy(update={"max_abs": np.inf})


def widened(limits: FidelityLimits, rounding: Difference | None) -> FidelityLimits:
    """Return limits for logits that are rounded on the way, as the backend of the export rounds them."""
    if rounding is None:
        return limits
    return FidelityLimits(
        max_abs=limits.max_abs + ROUNDINGS * rounding.max_abs,
        max_relative=limits.max_relative + ROUNDINGS * rounding.max_relative,
        min_cosine=limits.min_cosine - ROUNDINGS * (1 - rounding.cosine),
    )


def judge(
    known: KnownAnswers,
    found: Sequence[Observed],
    made: MadeCalls | None,
    limits: FidelityLimits,
) -> tuple[Part, ...]:
    """Return what became of every part.

    Args:
        known: the known answers.
        found: what a device had of each of the pictures.
        made: likewise of the made-up calls; None: they were not run.
        limits: of every output.
    """
    parts = _judged(known, found, made, limits)
    return tuple(parts[name].done(name) for name in PARTS)


def rounding_among(
    known: KnownAnswers, found: Sequence[Observed], made: MadeCalls | None
) -> Difference | None:
    """Return how far logits are from those that are known, at most; None: there are none.

    Args:
        known: computed exactly.
        found: of a session as users have it, of each picture.
        made: likewise of the made-up calls.
    """
    parts = _judged(known, found, made, NO_LIMITS)
    either = parts["decoder"], parts["cache"]
    return worst_of(
        [one for part in either for one in part.differences],
        [one for part in either for one in part.of_logits],
    )


def worst_of(found: Sequence[Difference], absolute: Sequence[Difference] = ()) -> Difference | None:
    """Return the worst of each measure; None: there is none.

    Args:
        found: all of them.
        absolute: those whose size tells something.
    """
    if not found:
        return None
    return Difference(
        call="at most",
        max_abs=max((one.max_abs for one in absolute), default=0.0),
        max_relative=max(one.max_relative for one in found),
        cosine=min(one.cosine for one in found),
    )


def _judged(
    known: KnownAnswers,
    found: Sequence[Observed],
    made: MadeCalls | None,
    limits: FidelityLimits,
) -> Judging:
    decoder = widened(limits, known.rounding)
    parts: Judging = {
        name: _Part(decoder if name in ("decoder", "cache") else limits) for name in PARTS
    }
    for words in known.left_out:
        for name in PARTS:
            if words.startswith(f"{name}: "):
                parts[name].skip(words.removeprefix(f"{name}: "))
    if known.graphs is not None and made is not None:
        _judge_made(parts, known.graphs, made)
    for wanted, got in zip(known.pictures, found, strict=True):
        _judge_picture(parts, wanted, got)
    return parts


def _judge_made(parts: Judging, known: KnownGraphs, made: MadeCalls) -> None:
    """Judge the made-up calls, which read nothing of other parts."""
    vision, decoder = parts["vision"], parts["decoder"]
    if made.vision is not None:
        _judge_rows(vision, known.vision, tuple(map(Sums.of, made.vision)), "made-up pixels")
        kept = None if made.kept is None else tuple(np.asarray(made.kept).tolist())
        if kept != known.kept:
            vision.failures.append("made-up pixels: other visual rows are kept than are known")
    if made.embedded is not None and known.logits is not None:
        told = Sums.of(made.embedded[0])
        decoder.differs(known.embedded.against(told, "embeddings of made-up tokens"))
    if known.logits is not None and made.logits is not None:
        got = Logits.at(made.logits, known.logits.ids)
        decoder.logits(known.logits, got, "made-up rows")
    if made.error:
        failed = vision if made.at == "vision" else decoder
        failed.ended("made-up numbers", made.error, refused=made.refused)


def _judge_picture(parts: Judging, known: KnownPicture, found: Observed) -> None:
    """Judge one picture's way to its answer; what reads something wrong is not judged."""
    before = {name: len(part.failures) for name, part in parts.items()}

    def right(*names: PartName) -> bool:
        return all(len(parts[name].failures) == before[name] for name in names)

    if found.error:
        at: PartName = next(name for name in PARTS if name == found.at)
        parts[at].ended(known.image, found.error, refused=found.refused)
    if found.pixels is not None:
        _judge_pixels(parts["preprocessing"], known, found.pixels)
    _judge_prompt(parts["prompt"], known, found)
    if not right("preprocessing"):
        parts["vision"].skip(READS_WRONG)
    elif found.vision is not None:
        _judge_rows(parts["vision"], known.vision, found.vision, known.image)
        if found.visual_places != known.visual_places:
            words = f"{known.image}: other visual rows are kept than are known"
            parts["vision"].failures.append(words)
    if not right("preprocessing", "prompt", "vision"):
        parts["decoder"].skip(READS_WRONG)
        parts["cache"].skip(READS_WRONG)
        return
    steps = list(enumerate(pairs(known, found)))
    _judge_steps(parts["decoder"], known, found, steps[:1])
    if not right("decoder"):
        parts["cache"].skip("the decoder is wrong already")
        return
    _judge_steps(parts["cache"], known, found, steps[1:])
    _judge_second(parts, known, found)


def _judge_steps(
    part: _Part,
    known: KnownPicture,
    found: Observed,
    steps: Sequence[tuple[int, tuple[str, Logits, Logits]]],
) -> None:
    for number, (what, wanted, got) in steps:
        failed = len(part.failures)
        part.logits(wanted, got, what)
        if len(part.failures) == failed:
            _judge_token(part, known, found, number, what)


def _judge_second(parts: Judging, known: KnownPicture, found: Observed) -> None:
    if known.second is None or found.second is None:
        return
    if found.second_runs != known.second.runs:
        parts["prompt"].failures.append(f"{known.image}: other tokens of the second question")
        return
    what = f"{known.image}, a second question behind the kept picture"
    parts["cache"].logits(known.second.first, found.second, what)


def _judge_pixels(part: _Part, known: KnownPicture, found: Pixels) -> None:
    wanted, name = known.pixels, known.image
    part.compared += 1
    if found.shape != wanted.shape or len(found.sampled) != len(wanted.sampled):
        part.failures.append(f"{name}: becomes {[*found.shape]}, known is {[*wanted.shape]}")
    elif found.sha256 != wanted.sha256:
        sampled = np.abs(np.subtract(found.sampled, wanted.sampled))
        off = float(sampled.max())
        # Errors of rounding, one from each number, add up to the root of how many there are.
        sums = np.abs(np.subtract(found.sums, wanted.sums)).max()
        in_sum = math.sqrt(max(1.0, math.prod(wanted.shape) / np.size(wanted.sums)))
        if not (off <= MAX_PIXEL_DIFFERENCE and sums <= MAX_PIXEL_DIFFERENCE * in_sum):
            others = int((sampled > MAX_PIXEL_DIFFERENCE).sum())
            part.failures.append(
                f"{name}: pixel values differ: {others} of {sampled.size} sampled ones, by {off:.3g}, "
                f"allowed {MAX_PIXEL_DIFFERENCE:g}"
            )


def _judge_prompt(part: _Part, known: KnownPicture, found: Observed) -> None:
    if found.runs is None:
        return
    part.compared += 1
    if found.runs != known.runs:
        either = zip(_spread(known.runs), _spread(found.runs), strict=False)
        lengths = [sum(count for _, count in runs) for runs in (found.runs, known.runs)]
        place = next((i for i, (a, b) in enumerate(either) if a != b), min(lengths))
        part.failures.append(
            f"{known.image}: other tokens from place {place} on ({lengths[0]}, known are {lengths[1]})"
        )
    elif found.text_places is not None and found.text_places != known.text_places:
        part.failures.append(f"{known.image}: rows stand at other places, or at other positions")


def _spread(runs: Sequence[tuple[int, int]]) -> Iterator[int]:
    return chain.from_iterable(repeat(token, count) for token, count in runs)


def _judge_rows(part: _Part, known: Sequence[Sums], found: Sequence[Sums], what: str) -> None:
    if len(known) != len(found):
        part.failures.append(f"{what}: gives {len(found)} arrays, known are {len(known)}")
    for number, (wanted, got) in enumerate(zip(known, found, strict=False)):
        name = f"{what}, rows added behind layer {number - 1}" if number else f"{what}, visual rows"
        part.differs(wanted.against(got, name))


def _judge_token(part: _Part, known: KnownPicture, found: Observed, number: int, what: str) -> None:
    """Judge which token is the likeliest; where the second is as near as limits are wide, none is wrong."""
    likeliest, wanted = found.likeliest[number], known.answer[number]
    if likeliest == wanted:
        return
    margin = known.steps[number].margin
    words = f"{what}: token {likeliest} is the likeliest, known is {wanted}"
    if margin > 2 * part.limits.max_abs:
        part.failures.append(words)
    else:
        part.notes.append(f"{words}; a tie within the limits ({margin:.2g} apart)")
