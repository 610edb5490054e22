"""One made picture from its file to the answer, and what each step gave: the same on either machine."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from compressor.arrangement import Arrangement
from compressor.errors import BackendError, DataError, MissingExtraError, VtcompressError
from compressor.samples.layout import VisualRows
from export.checks.known.answers import KNOWN_FOLDER, Followed, KnownPicture
from export.checks.known.sums import Logits, Pixels, Sums, places_digest, token_runs
from export.runtime.core import RuntimeCore
from export.runtime.image_prefix import prefill_images
from export.runtime.images import rows_of
from export.runtime.messages import user_message
from export.runtime.sampling import AnswerOptions, Pick, greedy
from export.session.arrays import Array
from export.session.feeds import CallRows, prompt_rows
from export.session.session import Past, Session

GRAPHS = ("vision", "decoder", "cache")
"""The parts that graphs compute."""

TOP = 50
TOP_LATER = 5


@dataclass(frozen=True)
class KnownTokens(AnswerOptions):
    """Takes the tokens of an answer that is known, whatever the logits say; without one the likeliest.

    Attributes:
        answer: its tokens.
    """

    generation_config: bool = False
    answer: tuple[int, ...] = ()

    def picker(self) -> Pick:
        """See `AnswerOptions.picker`."""
        if not self.answer:
            return greedy
        known = iter(self.answer)
        return lambda logits: np.full(len(logits), next(known))


@dataclass
class Observed:
    """What there was of one picture; steps that were not reached have none.

    Attributes:
        pixels: see `KnownPicture`, as all that follow.
        likeliest: tokens that greedy decoding would have taken behind the tokens that were.
        at: the part that was at work last.
        error: that ended it.
        refused: it ended because a call is larger than what engines were built for.
    """

    pixels: Pixels | None = None
    runs: tuple[tuple[int, int], ...] | None = None
    text_places: str | None = None
    visual_places: str | None = None
    vision: tuple[Sums, ...] | None = None
    steps: list[Logits] = field(default_factory=list)
    likeliest: list[int] = field(default_factory=list)
    second_runs: tuple[tuple[int, int], ...] | None = None
    second: Logits | None = None
    at: str = "preprocessing"
    error: str = ""
    refused: bool = False


@dataclass
class Watched:
    """A session that notes which part is at work, and what the decoder was given last.

    Attributes:
        inner: runs.
        found: takes the note.
        rows: of the last call of the decoder; None: there was none.
    """

    inner: Session
    found: Observed
    rows: CallRows | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def vision(self, pixel_values: Array, arrangement: Arrangement | None = None) -> VisualRows:
        """See `Session.vision`."""
        at, self.found.at = self.found.at, "vision"
        seen = self.inner.vision(pixel_values, arrangement)
        self.found.at = at
        return seen

    def decode(self, rows: CallRows, past: Past) -> tuple[Array, Past]:
        """See `Session.decode`."""
        self.rows = rows
        return self.inner.decode(rows, past)


def observe(
    runtime: RuntimeCore, picture: Path, question: str, steps: int, known: KnownPicture | None
) -> Observed:
    """Return what a runtime makes of a picture and a question, as far as it comes.

    Args:
        runtime: whose session runs.
        picture: its file.
        question: about it.
        steps: tokens of the answer; 0: the decoder is not run.
        known: answer that is fed back, and tokens whose logits are told; None: the runtime's own.
    """
    found = Observed()
    try:
        _run(found, runtime, picture, question, steps, known)
    except MissingExtraError:
        raise  # nothing ran, so that nothing is wrong
    except VtcompressError as error:
        found.error = str(error)
        found.refused = is_refusal(error) and found.at in GRAPHS
    return found


def is_refusal(error: VtcompressError) -> bool:
    """Whether graphs did not run because of the size of a call, which engines have limits for."""
    return isinstance(error, BackendError | DataError)


def _run(
    found: Observed,
    runtime: RuntimeCore,
    picture: Path,
    question: str,
    steps: int,
    known: KnownPicture | None,
) -> None:
    watched = Watched(runtime.session, found)
    core = over(runtime, cast("Session", watched))
    seen = core.look(picture)
    found.pixels = Pixels.of(seen[0].pixels)
    found.at = "prompt"
    ids = core.encode([user_message(question, 1)], seen)
    found.runs = token_runs(ids)
    prompt = core.prompt_of(ids, seen)
    found.at = "decoder"
    chosen = core.session.rows_kept is not None
    if not steps:
        text = core.session.embed(prompt.layout.text_ids[None])
        rows = prompt_rows(prompt.layout, text, *rows_of(core.session, prompt.seen))
        _tell_rows(found, rows, chosen=chosen)
        return
    forced = KnownTokens(max_new_tokens=steps, answer=known.answer if known else ())
    for number, step in enumerate(core.steps([prompt], forced)):
        if not number and watched.rows is not None:
            _tell_rows(found, watched.rows, chosen=chosen)
        logits = step.logits[0]
        found.likeliest.append(int(logits.argmax()))
        if known is None:
            found.steps.append(Logits.of(logits, TOP_LATER if number else TOP))
        else:
            found.steps.append(Logits.at(logits, known.steps[number].ids))
        found.at = "cache"
    if known is not None and known.second is not None:
        _tell_second(found, core, picture, known.second)


def over(runtime: RuntimeCore, session: Session) -> RuntimeCore:
    """Return a runtime as another one, on a session that is put over its own."""
    return RuntimeCore(session, runtime.facts, runtime.prompter, runtime.images, runtime.settings)


def _tell_rows(found: Observed, rows: CallRows, *, chosen: bool) -> None:
    """Note the rows of the prompt's call: where they stand, and what they hold."""
    visual = rows.visual_index.shape[1]
    of_visual, of_text = (
        (None, None)
        if rows.positions is None
        else (rows.positions[:, :visual], rows.positions[:, visual:])
    )
    of_all = () if chosen else (rows.visual_index, of_visual)
    found.text_places = places_digest(rows.text_index, of_text, *of_all)
    found.visual_places = places_digest(rows.visual_index, of_visual) if chosen else None
    found.vision = tuple(Sums.of(np.asarray(part)[0]) for part in (rows.visual, *rows.deepstack))


def _tell_second(found: Observed, core: RuntimeCore, picture: Path, known: Followed) -> None:
    """Ask the second question behind the kept picture."""
    prefix = prefill_images(core, picture)
    if not prefix.rows:  # what becomes of visual rows depends on the question
        return
    reply = prefix.answer(known.question, max_new_tokens=1, generation_config=False)
    found.second_runs = token_runs(
        core.encode([user_message(known.question, 1)], core.look(picture))
    )
    found.second = Logits.at(reply.first_logits, known.first.ids)


def known_second(runtime: RuntimeCore, picture: Path, question: str) -> Followed:
    """Return a second question with the logits of its prompt run at once, nothing kept."""
    seen = runtime.look(picture)
    ids = runtime.encode([user_message(question, 1)], seen)
    logits, _ = runtime.prefill([runtime.prompt_of(ids, seen)])
    return Followed(question=question, runs=token_runs(ids), first=Logits.of(logits[0], TOP))


def known_picture(
    runtime: RuntimeCore, folder: Path, name: str, question: str, steps: int, second: str
) -> KnownPicture:
    """Return what a runtime has of a picture that lies in an artifact under construction.

    Args:
        runtime: on its session.
        folder: of the artifact.
        name: of the picture's file.
        question: about it.
        steps: tokens of the answer; 0: the decoder is not run.
        second: question behind the kept picture; empty: none.

    Raises:
        VtcompressError: the picture and the question do not fit the model or its caches.
    """
    picture = folder / KNOWN_FOLDER / name
    found = Observed()
    _run(found, runtime, picture, question, steps, None)
    if found.pixels is None or found.runs is None or found.text_places is None or not found.vision:
        raise RuntimeError(f"{name}: ran without telling what it read")
    return KnownPicture(
        image=name,
        question=question,
        pixels=found.pixels,
        runs=found.runs,
        text_places=found.text_places,
        visual_places=found.visual_places,
        vision=found.vision,
        answer=tuple(found.likeliest),
        steps=tuple(found.steps),
        second=known_second(runtime, picture, second) if second else None,
    )


def pairs(known: KnownPicture, found: Observed) -> Iterator[tuple[str, Logits, Logits]]:
    """Yield the steps that both have, and what they are called."""
    for number, (wanted, got) in enumerate(zip(known.steps, found.steps, strict=False)):
        name = f"step {number + 1} of the answer" if number else "the first token"
        yield f"{known.image}, {name}", wanted, got
