"""Records the known answers of an artifact while it is made."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from compressor.errors import VtcompressError, first_line
from compressor.samples.made_pictures import MADE_PICTURES
from export.backends.checked_on import CHECKED_ON
from export.checks.fidelity import how_different
from export.checks.known.answers import KNOWN_FOLDER, KnownAnswers, KnownPicture, all_finite
from export.checks.known.made_calls import known_graphs, made_calls
from export.checks.known.observe import known_picture, observe, pairs
from export.results.fidelity import Difference
from export.runtime.core import RuntimeCore

QUESTIONS = (
    "What is in this picture?",
    "How many colours do you see? Answer with one word.",
    "Describe the picture, please.",
    "Is it day or night?",
)
SECOND = "Which colour is in the middle?"
# Of the first picture the answer goes on for longer; of the others one step behind the prompt is enough.
STEPS = (8, 2, 2, 2)
NOT_IN_MEMORY = "the weights were never in memory when the artifact was made (streamed)"


def record_known(runtime: RuntimeCore, folder: Path, *, decoder: bool = True) -> KnownAnswers:
    """Write the made pictures into an artifact under construction, and return what its runtime has of them.

    Args:
        runtime: on a session that computes as exactly as checks do.
        folder: of the artifact.
        decoder: run it; False: of it and of caches nothing is recorded.
    """
    (folder / KNOWN_FOLDER).mkdir(exist_ok=True)
    pictures, left_out = [], []
    for number, made in enumerate(MADE_PICTURES):
        name = f"{made.name}.png"
        made.image().save(folder / KNOWN_FOLDER / name, "PNG")
        steps = STEPS[number] if decoder else 0
        second = "" if number or not decoder else SECOND
        found = _tried(
            lambda name=name, number=number, steps=steps, second=second: known_picture(  # type: ignore[misc]
                runtime, folder, name, QUESTIONS[number], steps, second
            )
        )
        if isinstance(found, KnownPicture):
            pictures.append(found)
        else:
            left_out.append(f"decoder: {name}: {found}")
            (folder / KNOWN_FOLDER / name).unlink()
    calls = made_calls(runtime.session, runtime.facts, decoder=decoder)
    graphs = known_graphs(calls)
    if calls.error:
        left_out.append(f"{calls.at}: made-up numbers: {calls.error}")
    if graphs is not None and not all_finite(graphs):
        graphs = None
    if not decoder:
        left_out += [f"{part}: {NOT_IN_MEMORY}" for part in ("decoder", "cache")]
    return KnownAnswers(
        measured_in=CHECKED_ON.title,
        pictures=tuple(pictures),
        graphs=graphs,
        left_out=tuple(left_out),
    )


def _tried(make: Callable[[], KnownPicture]) -> KnownPicture | str:
    """Return what is known of a picture, or why nothing is."""
    try:
        found = make()
    except VtcompressError as error:
        return first_line(error)
    return found if all_finite(found) else "its logits are no numbers"


def rounding_of(runtime: RuntimeCore, folder: Path, known: KnownAnswers) -> Difference | None:
    """Return how far the logits of a session are off that computes as users' sessions do; None: none ran.

    Args:
        runtime: on that session.
        folder: of the artifact under construction.
        known: computed exactly.
    """
    found: list[Difference] = []
    for one in known.pictures:
        picture = folder / KNOWN_FOLDER / one.image
        got = observe(runtime, picture, one.question, len(one.steps), one)
        for what, wanted, seen in pairs(one, got):
            values = np.array([wanted.values]), np.array([seen.values])
            found += [how_different(what, *values)]
            whole = wanted.whole.against(seen.whole, what)
            found += [whole] if isinstance(whole, Difference) else []
    if not found:
        return None
    return Difference(
        call="of all answers",
        max_abs=max(one.max_abs for one in found[::2]),
        max_relative=max(one.max_relative for one in found),
        cosine=min(one.cosine for one in found),
    )
