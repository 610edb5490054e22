"""How an answer is scored by the right ones: what `validate.score` names.

`exact`, `contains` and `normalized` call an answer right or not. `vqa` and `anls` are graded, 0 to 1: what is
told of many answers is their mean, never how many reach some value. Definitions are those of the papers:

- VQA accuracy: min(1, m / 3), m of the ten annotators having given the answer, once both are normalised.
  Antol and others, "VQA: Visual Question Answering", 2015. The benchmark's server takes the mean of this over
  every nine of the ten, which gives 0.3, 0.6, 0.9 and 1 for m of 1, 2, 3 and 4.
- ANLS: the largest of 1 - d / n over the right answers, d the Levenshtein distance, n the length of the
  longer text; 0 where d / n is `ANLS_THRESHOLD` or more. Biten and others, "Scene Text Visual Question
  Answering", 2019.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Final

from compressor.errors import DataError, RecipeError, first_line
from compressor.samples.questions import MAX_PROBLEMS, Sample
from compressor.schema.values import OWN_SCORE

ANLS_THRESHOLD: Final = 0.5
ANNOTATORS: Final = 3
"""How many of the annotators must have given an answer for VQA accuracy to be 1."""

_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
# Without those that are other words without their apostrophe, such as "we're" and "its".
_CONTRACTIONS = {
    f"{word}{end}": f"{word}'{end}"
    for end, words in {
        "d": "he how it that there they who you",
        "ll": "it that they what who you",
        "m": "i",
        "re": "they what you",
        "s": "he here how she that there what when where who why",
        "ve": "could i might must should they we who would you",
    }.items()
    for word in words.split()
} | {
    f"{word}nt": f"{word}n't"
    for word in re.findall(
        r"\w+",
        "ai are ca could did does do had has have is might must need sha should was were wo would",
    )
}
# A number, a word, or one character that is neither.
_TOKEN = re.compile(r"-?\.?\w+(?:['.:]\w+)*|\S")


def normalised(text: str) -> str:
    """Return an answer as VQA compares it; what nothing is left of stays as it was, in lower case.

    Lower case; periods that are not in a number and commas that are in one go; other punctuation and symbols
    become spaces, but an apostrophe, a colon in a time and the sign of a number; number words up to ten
    become digits, contractions get their apostrophe, and articles go.
    """
    lower = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'").strip()
    found = re.sub(r"(?<=\d),(?=\d)|\.(?!\d)|(?<=[^\W\d])\.", "", lower)
    # Between digits both are of a number or a time.
    kept = re.compile(r"(?<=\d)[:](?=\d)|\.|(?<=\w)'(?=\w)|(?<!\w)-(?=\.?\d)")
    places = {match.start() for match in kept.finditer(found)}
    found = "".join(
        " " if unicodedata.category(letter)[0] in "PS" and place not in places else letter
        for place, letter in enumerate(found)
    )
    words = [_NUMBERS.get(word, _CONTRACTIONS.get(word, word)) for word in found.split()]
    return " ".join(word for word in words if word not in _ARTICLES) or lower


def exact(text: str, answer: str) -> bool:
    """Whether two answers are equal, character for character, white space around them aside."""
    return text.strip() == answer.strip()


def _tokens(text: str) -> list[str]:
    """Return the words of a normalised text; of scripts without cases, which may lack spaces, letters."""
    found: list[str] = []
    for part in _TOKEN.findall(text):
        found += [part] if part.lower() != part.upper() or part[-1].isdigit() else list(part)
    return found


def _contains(text: str, answers: Sequence[str]) -> bool:
    """Whether the words of a right answer stand one behind another in the text."""
    said = _tokens(normalised(text))
    return any(_stands_in(answer, text, said) for answer in answers)


def _stands_in(answer: str, text: str, said: Sequence[str]) -> bool:
    if normalised(answer) in _ARTICLES:
        # The letter of a choice, not the article in front of a word.
        return re.search(rf"(?<!\w){re.escape(answer.strip())}(?!\w|\s+\w)", text) is not None
    right = _tokens(normalised(answer))
    return any(
        list(said[place : place + len(right)]) == right
        for place in range(len(said) - len(right) + 1)
    )


def _vqa(text: str, answers: Sequence[str]) -> float:
    said = normalised(text)
    return min(1.0, sum(normalised(answer) == said for answer in answers) / ANNOTATORS)


def _anls(text: str, answers: Sequence[str]) -> float:
    """Return the score in lower case, white space around the answers aside, as the benchmarks have it."""
    said, best = text.strip().lower(), 0.0
    for answer in answers:
        right = answer.strip().lower()
        longest = max(len(said), len(right))
        apart = _levenshtein(said, right) / longest if longest else 0.0
        if apart < ANLS_THRESHOLD:
            best = max(best, 1.0 - apart)
    return best


def _levenshtein(a: str, b: str) -> int:
    """Return the least number of letters to add, leave out or change that makes one text the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


@dataclass(frozen=True)
class Score:
    """A rule that scores answers.

    Attributes:
        name: in the recipe.
        rule: of an answer's text and all right answers, repeated ones too; gives 0 to 1.
        graded: whether it gives more than 0 (wrong) and 1 (right), so that a mean is told and no share.
        least: how many right answers a question must have for it to reach 1.
        begins: whether a text that goes on may still score above 0 by a right answer; None: any may.
    """

    name: str
    rule: Callable[[str, Sequence[str]], object]
    graded: bool = False
    least: int = 1
    begins: Callable[[str, str], bool] | None = None

    def may(self, text: str, sample: Sample) -> bool:
        """Whether a text that goes on may still score above 0."""
        begins = self.begins
        return begins is None or any(begins(text, answer) for answer in sample.answers)

    def of(self, text: str, sample: Sample) -> float | None:
        """Return the score of an answer; None: no right answer is known.

        Raises:
            DataError: a function of the user's own failed, or gave no number from 0 to 1.
        """
        if not sample.answers:
            return None
        where = f"validate.score: {self.name}: {sample.place}"
        try:
            given = self.rule(text, sample.answers)
        except Exception as failure:
            if not self.name.startswith(OWN_SCORE):
                raise
            said = f"{type(failure).__name__}: {first_line(failure)}"
            raise DataError([f"{where}: the function failed: {said}"]) from None
        value = _number(given)
        if value is None:
            raise DataError([f"{where}: gave {given!r:.60}; it must give a number from 0 to 1"])
        return value

    def check(self, samples: Sequence[Sample]) -> None:
        """Refuse, before a model runs, what cannot be scored.

        Raises:
            DataError: questions with too few right answers, or the user's own function fails on the first.
        """
        where = f"validate.score: {self.name}"
        answered = [sample for sample in samples if sample.answers]
        problems = [
            f"{where}: {sample.place}: right answers: {len(sample.answers)}; give those of all annotators, "
            f"repeated ones too: {self.least} that agree make an answer right"
            for sample in answered
            if len(sample.answers) < self.least
        ]
        if more := len(problems[MAX_PROBLEMS:]):
            problems = [*problems[:MAX_PROBLEMS], f"{where}: and {more} more"]
        if problems:
            raise DataError(problems)
        for sample in answered[:1]:
            self.of(sample.answers[0], sample)


def _number(given: object) -> float | None:
    """Return what a rule gave as a number from 0 to 1, None if it is none."""
    if isinstance(given, str):
        return None
    try:
        value = float(given)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return value if 0 <= value <= 1 else None


def _begins(text: str, answer: str) -> bool:
    """Whether a text may go on to an answer; spaces aside, which decoding more tokens may take away."""
    # What is no whole character yet, decoders write as this one.
    said = "".join(text.split()).rstrip("\ufffd")
    return "".join(answer.split()).startswith(said)


EXACT: Final = Score(
    "exact", lambda text, answers: any(exact(text, a) for a in answers), begins=_begins
)

SCORES: Final[Mapping[str, Score]] = {
    score.name: score
    for score in (
        EXACT,
        Score("contains", _contains),
        Score("normalized", lambda text, answers: any(normalised(text) == normalised(a) for a in answers)),
        Score("vqa", _vqa, graded=True, least=ANNOTATORS),
        Score("anls", _anls, graded=True),
    )
}  # fmt: skip


def find_score(name: str) -> Score:
    """Return a score by its name in a recipe; of the user's own, the module is imported.

    Only what a user gave in this call may be asked for: an artifact's word for it would run code that a file
    names.

    Raises:
        RecipeError: there is no such module or function.
    """
    if not name.startswith(OWN_SCORE):
        return SCORES[name]
    module, _, function = name.removeprefix(OWN_SCORE).rpartition(".")
    try:
        found = getattr(import_module(module), function, None)
    except Exception as failure:  # noqa: BLE001 - it is another's code
        said = f"{type(failure).__name__}: {first_line(failure)}"
        remedy = "install it, or name its folder in PYTHONPATH"
        raise RecipeError(
            [f"validate.score: {name}: {module} cannot be imported: {said}; {remedy}"]
        ) from None
    if not callable(found):
        problem = f"{module} has no function {function}"
        remedy = "give one that takes an answer and the right answers, and gives 0 to 1"
        raise RecipeError([f"validate.score: {name}: {problem}; {remedy}"])
    return Score(name, found, graded=True)
