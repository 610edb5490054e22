"""`vtcompress generate`: one question, or a conversation over stdin; text to stdout, all else to stderr."""

import dataclasses
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import click

from compressor.disk.opening import MAX_PICTURE_BYTES
from compressor.errors import ArtifactWarning, DataError
from compressor.samples.picture_names import shown_name
from export.artifact.manifest import Manifest, shortcoming
from export.checks.memory import resident_bytes
from export.results.verdict import Verdict
from export.runtime.answering import Answering
from export.runtime.sampling import AnswerOptions
from vtcompress.cli.backend_options import loading_options
from vtcompress.cli.kinds import FOLDER, Finite
from vtcompress.console import Output
from vtcompress.terminal import say, say_line

if TYPE_CHECKING:
    from compressor.samples.pictures import Picture
    from export.runtime.runtime import Runtime

HELP = "/image PATH adds a picture to the next question, /quit ends"
PROMPT = "> "
STDIN = "-"
# What begins a message on a picture that has no file.
_NUMBERED = re.compile(r"^images\[(\d+)\]")
USUAL = AnswerOptions()


def say_shortcoming(out: Output, manifest: Manifest) -> None:
    """Say once on stderr if an artifact's checks do not speak for its answers; failures also if quiet."""
    words = shortcoming(manifest)
    if words is not None and manifest.verdict is Verdict.FAILED:
        out.warn(f"{words}; see report.html in the artifact")
    elif words is not None:
        out.say(f"note: {words}")


class LoadKeys(TypedDict):
    """How an artifact is run: options of `Runtime.load`."""

    backend: str
    precision: str
    mapped: bool
    threads: int | None
    gpu: int


def loaded(
    out: Output, artifact: Path, *, preload: bool, no_verify: bool, **loading: Unpack[LoadKeys]
) -> "Runtime":
    """Load an artifact, and say what speaks against its answers."""
    from export.artifact.artifact import Artifact
    from export.backends.compared import uncompared
    from export.runtime.runtime import Runtime

    if no_verify:
        out.say("files are not verified")
    with warnings.catch_warnings():
        # Said below, in a line of our own.
        warnings.simplefilter("ignore", ArtifactWarning)
        runtime = Runtime.load(
            artifact, verify=not no_verify, preload=preload, progress=out, **loading
        )
    opened = Artifact.open(artifact, verify=False)
    say_shortcoming(out, opened.manifest)
    backend, precision = loading["backend"], loading["precision"]
    if (words := uncompared(opened, runtime.session, backend, precision)) is not None:
        out.warn(words)
    return runtime


@dataclass
class Generation:
    """Answers of one runtime, shown as they come.

    Attributes:
        out: shows the answers.
        runtime: answers.
        options: keyword arguments of `Runtime.generate`.
        stats: whether figures are shown.
        loaded_bytes: resident memory after load.
        turns: documents of the answers so far, for `--json`.
    """

    out: Output
    runtime: "Runtime"
    options: Mapping[str, Any]
    stats: bool
    loaded_bytes: int | None
    turns: list[dict[str, Any]] = field(default_factory=list)

    def ask_once(
        self, prompt: str, images: tuple[str, ...], pictures: "tuple[Picture, ...]"
    ) -> None:
        """Answer one question about pictures that were named `images`."""
        with named_as_given("--image", images):
            answer = self.runtime.generate(prompt, pictures, **self.options)
        self._show(answer, prompt, images)
        self._finish(self.turns[0])

    def chat(self, prompt: str | None, images: tuple[str, ...]) -> bool:
        """Hold a conversation: a first question if one is given, then lines of stdin to its end or /quit.

        A turn that fails is printed on stderr and the conversation goes on without it.

        Returns:
            Whether every turn was answered.
        """
        conversation = self.runtime.chat()
        waiting, failed = list(images), 0
        self.out.say(HELP)
        for line in self._lines(prompt):
            command, _, rest = line.partition(" ")
            if command == "/quit":
                break
            if command == "/image" and rest.strip():
                waiting.append(rest.strip())
                continue
            if command.startswith("/"):
                self._tell(f"{line}: no such command; {HELP}")
                failed += 1
                continue
            asked, waiting = tuple(waiting), []
            try:
                with named_as_given("/image", asked):
                    answer = conversation.ask(line, asked, **self.options)
                self._show(answer, line, asked)
            except DataError as error:
                failed += 1
                for problem in error.problems:
                    self._tell(problem)
        self._finish({"turns": self.turns})
        return not failed

    def _lines(self, first: str | None) -> Iterator[str]:
        """Lines with something in them; each is asked for on stderr."""
        if first is not None:
            yield first
        while True:
            if self.out.verbosity >= 0:
                say(PROMPT, nl=False, err=True)
            line = sys.stdin.readline()
            if not line:
                return
            if line.strip():
                yield line.strip()

    def _tell(self, problem: str) -> None:
        say_line(f"error: {problem}")

    def _show(self, answer: Answering, prompt: str, images: tuple[str, ...]) -> None:
        pieces = []
        for piece in answer:
            pieces.append(piece)
            if not self.out.machine:
                say(piece, nl=False)
                sys.stdout.flush()
        self.out.always("")
        turn: dict[str, Any] = {
            "prompt": prompt,
            "images": list(images),
            "text": "".join(pieces),
        }
        if self.stats:
            figures = answer.figures
            turn["stats"] = dataclasses.asdict(figures)
            pace = "-" if figures.tokens_per_s is None else f"{figures.tokens_per_s:,.1f}"
            left = figures.exit_layer
            exited = "" if left is None else f"; visual tokens left at layer {left}"
            self._say_figures(
                f"first token {figures.first_token_s:.3f} s, then {pace} tokens/s; "
                f"{figures.tokens} tokens; prompt {figures.prompt_rows} rows, {figures.reused_rows} of them "
                f"kept from before; KV cache {figures.kv_bytes:,} bytes{exited}"
            )
        self.turns.append(turn)

    def _finish(self, document: dict[str, Any]) -> None:
        if self.stats:
            end = resident_bytes()
            document["memory"] = {"loaded_bytes": self.loaded_bytes, "end_bytes": end}
            if self.loaded_bytes is not None and end is not None:
                self._say_figures(
                    f"resident memory: {self.loaded_bytes / 2**20:,.0f} MiB after load, "
                    f"{end / 2**20:,.0f} MiB at the end"
                )
        self.out.result(document)

    def _say_figures(self, line: str) -> None:
        if not self.out.machine:  # in JSON they are part of the document
            say(line, err=True)


@contextmanager
def named_as_given(option: str, names: Sequence[str]) -> Iterator[None]:
    """Let errors on pictures that have no file call them as they were given, not by their number.

    Args:
        option: by which they were given.
        names: their names, in their order.
    """
    try:
        yield
    except DataError as error:
        raise DataError(
            _NUMBERED.sub(lambda found: f"{option} {_shown(names[int(found[1])])}", line)
            for line in error.problems
        ) from error


def _shown(name: str) -> str:
    return name if name == STDIN else shown_name(name)


def _pictures(names: Sequence[str], *, chat: bool) -> "tuple[Picture, ...]":
    """Return the pictures of the command line; that of stdin is read.

    Raises:
        UsageError: stdin is asked for twice, or has the chat's turns.
        DataError: something is no picture.
    """
    from compressor.samples.pictures import pictures_of

    if STDIN in names and chat:
        raise click.UsageError("--image -: with --chat stdin has the turns; name a file")
    if names.count(STDIN) > 1:
        raise click.UsageError("--image -: stdin holds one picture; give it once")
    given = [_of_stdin() if name == STDIN else name for name in names]
    with named_as_given("--image", names):
        return pictures_of(given)


def _of_stdin() -> bytes:
    content = sys.stdin.buffer.read(MAX_PICTURE_BYTES + 1)
    if not content:
        raise DataError(["--image -: stdin gave nothing; send it an image file"])
    if len(content) > MAX_PICTURE_BYTES:
        raise DataError([f"--image -: more than the {MAX_PICTURE_BYTES >> 20} MiB that are read"])
    return content


@click.command()
@click.argument("artifact", type=FOLDER)
@click.option(
    "--image", "images", metavar="FILE", multiple=True, help="Picture, - is stdin; may be repeated."
)
@click.option("--prompt", help="The question; with --chat the first one.")
@click.option(
    "--chat", is_flag=True, help="Several turns, a line of stdin each; /image PATH, /quit."
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=USUAL.max_new_tokens,
    help="Longest answer.",
)
@click.option("--temperature", type=Finite(min=0), default=USUAL.temperature, help="0: greedy.")
@click.option(
    "--top-p",
    type=Finite(0, 1, min_open=True),
    default=USUAL.top_p,
    help="Draw from this share.",
)
@click.option("--seed", type=click.IntRange(min=0), default=USUAL.seed, help="Of the draws.")
@click.option(
    "--generation-config/--no-generation-config",
    default=USUAL.generation_config,
    help="Bar and punish tokens (repetition_penalty ...) as the model's generation_config.json asks for.",
)
@click.option(
    "--stats",
    is_flag=True,
    help="Times, KV bytes, exit layer and memory: to stderr, or into the JSON.",
)
@loading_options
@click.pass_obj
def generate(
    out: Output,
    /,
    artifact: Path,
    images: tuple[str, ...],
    prompt: str | None,
    chat: bool,
    stats: bool,
    backend: str,
    precision: str,
    mapped: bool,
    threads: int | None,
    gpu: int,
    no_verify: bool,
    **options: Any,
) -> int:
    """Ask an artifact about pictures, once or in a chat; needs neither torch nor transformers."""
    if prompt is None and not chat:
        raise click.UsageError("give --prompt, or --chat")
    if not options["temperature"]:
        for name in ("top_p", "seed"):
            if (given := options[name]) != getattr(USUAL, name):
                out.say(
                    f"note: --{name.replace('_', '-')} {given}: has no effect without --temperature"
                )
    pictures = _pictures(images, chat=chat)  # what is none is told before anything is loaded
    loading = LoadKeys(
        backend=backend, precision=precision, mapped=mapped, threads=threads, gpu=gpu
    )
    runtime = loaded(out, artifact, preload=stats, no_verify=no_verify, **loading)
    if prompt is not None:
        runtime.check_question(prompt, "--prompt")
    generation = Generation(out, runtime, options, stats, resident_bytes())
    if chat or prompt is None:
        return 0 if generation.chat(prompt, images) else 1
    generation.ask_once(prompt, images, pictures)
    return 0
