"""Records the known answers of an artifact while it is made."""

from collections.abc import Callable
from pathlib import Path

from compressor.errors import VtcompressError, first_line
from compressor.samples.made_pictures import MADE_PICTURES
from export.backends.checked_on import CHECKED_ON
from export.checks.known.answers import KNOWN_FOLDER, KnownAnswers, KnownPicture, all_finite
from export.checks.known.judge import rounding_among
from export.checks.known.made_calls import known_graphs, made_calls
from export.checks.known.observe import known_picture, observe
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
        # An artifact names no folder of the machine that made it.
        left_out=tuple(words.replace(f"{folder}", ".") for words in left_out),
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
    found = [
        observe(runtime, folder / KNOWN_FOLDER / one.image, one.question, len(one.steps), one)
        for one in known.pictures
    ]
    made = None
    if known.graphs is not None:
        made = made_calls(runtime.session, runtime.facts, known.graphs)
    return rounding_among(known, found, made)
