"""`vtcompress generate`: one question, or a conversation over stdin; text to stdout, all else to stderr."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from compressor.errors import DataError
from export.artifact.manifest import Manifest, shortcoming
from export.checks.memory import resident_bytes
from export.results.verdict import Verdict
from export.runtime.answering import Answering
from vtcompress.console import Output

if TYPE_CHECKING:
    from export.runtime.runtime import Runtime

HELP = "/image PATH adds a picture to the next question, /quit ends"
PROMPT = "> "


def say_shortcoming(out: Output, manifest: Manifest) -> None:
    """Say once on stderr if an artifact's checks do not speak for its answers; failures also if quiet."""
    words = shortcoming(manifest)
    if words is not None and manifest.verdict is Verdict.FAILED:
        out.warn(f"{words}; see report.html in the artifact")
    elif words is not None:
        out.say(f"note: {words}")


@dataclass
class Generation:
    """Answers of one runtime, shown as they come.

    Attributes:
        out: where they are shown.
        runtime: gives them.
        options: of `Runtime.generate`, by name.
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

    def ask_once(self, prompt: str, images: tuple[str, ...]) -> None:
        """Answer one question."""
        answer = self.runtime.generate(prompt, images, **self.options)
        self._show(answer, prompt, images)
        self._finish(self.turns[0])

    def chat(self, prompt: str | None, images: tuple[str, ...]) -> bool:
        """Hold a conversation: a first question if one is given, then lines of stdin to its end or /quit.

        A turn that fails is told on stderr and the conversation goes on without it.

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
                self._show(conversation.ask(line, asked, **self.options), line, asked)
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
                click.echo(PROMPT, nl=False, err=True)
            line = sys.stdin.readline()
            if not line:
                return
            if line.strip():
                yield line.strip()

    def _tell(self, problem: str) -> None:
        click.echo(f"error: {problem}", err=True)

    def _show(self, answer: Answering, prompt: str, images: tuple[str, ...]) -> None:
        pieces = []
        for piece in answer:
            pieces.append(piece)
            if not self.out.machine:
                click.echo(piece, nl=False)
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
            click.echo(line, err=True)
