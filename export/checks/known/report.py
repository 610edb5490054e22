"""What a selftest found: one outcome for each part, in the order in which a question runs through them."""

from typing import Literal

from compressor.facts import Facts
from export.results.fidelity import Difference
from export.results.verdict import WORST_FIRST, Check, Judged, Verdict

PartName = Literal["preprocessing", "prompt", "vision", "decoder", "cache"]
PARTS: tuple[PartName, ...] = ("preprocessing", "prompt", "vision", "decoder", "cache")
WHAT: dict[PartName, str] = {
    "preprocessing": "pixel values",
    "prompt": "tokens and places",
    "vision": "visual rows",
    "decoder": "logits of first tokens",
    "cache": "logits behind kept rows",
}
VERDICTS = {Verdict.PASSED: "right", Verdict.FAILED: "WRONG"}


class Part(Check):
    """What became of one part.

    Attributes:
        name: of it.
        compared: outputs that could be compared.
        worst: the one that differs most, relative to its largest value; None: nothing with a size.
        skipped: what could not be judged, and why.
        notes: what is no fault and should be known.
    """

    name: PartName
    compared: int
    worst: Difference | None = None
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def not_judged(self) -> tuple[str, ...]:
        """Why nothing could be judged; empty: something was."""
        return () if self.compared else self.skipped or ("nothing of it is known",)

    @property
    def line(self) -> str:
        """What became of it, with the figures."""
        if self.failures:
            more = len(self.failures) - 1
            also = f"; and {more} more" if more else ""
            return f"{self.name}: {VERDICTS[self.verdict]}: {self.failures[0]}{also}"
        if not self.compared:
            return f"{self.name}: {self.verdict}: {self.not_judged[0]}"
        figures = f"{self.compared} compared: {WHAT[self.name]}"
        if self.worst is not None:
            figures += f", max relative {self.worst.max_relative:.1e}"
        open_ = "".join(f"; not judged: {words}" for words in self.skipped)
        return f"{self.name}: {VERDICTS[self.verdict]} ({figures}{open_})"


class Located(Facts):
    """Where states part on their way through the layers.

    Attributes:
        layer: the first behind which they are others; None: there is none, or they part in front of them.
        line: in words, with the figures.
    """

    layer: int | None
    line: str


class SelftestReport(Judged):
    """The outcome.

    Attributes:
        backend: that ran.
        precision: it ran in.
        known_in: the backend of the known answers, for people.
        parts: in their order.
        located: where logits part; None: not asked for.
        not_located: why it could not be told, if it was asked for.
    """

    backend: str
    precision: str
    known_in: str
    parts: tuple[Part, ...]
    located: Located | None = None
    not_located: str = ""

    @property
    def failures(self) -> tuple[str, ...]:
        """Everything that is wrong, a line each."""
        return tuple(f"{part.name}: {line}" for part in self.parts for line in part.failures)

    @property
    def first_wrong(self) -> PartName | None:
        """The first part that is wrong; None: none is."""
        return next((part.name for part in self.parts if part.failures), None)

    def _judge(self) -> Verdict:
        return min((part.verdict for part in self.parts), key=WORST_FIRST.index)

    @property
    def line(self) -> str:
        """The verdict."""
        if self.first_wrong is not None:
            return f"selftest: WRONG, and first of all in the {self.first_wrong}"
        open_ = [part.name for part in self.parts if part.verdict is not Verdict.PASSED]
        if open_:
            return f"selftest: nothing is wrong; not judged: {', '.join(open_)}"
        return f"selftest: right, as known from {self.known_in}"
