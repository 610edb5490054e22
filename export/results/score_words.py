"""What a score is called wherever its figures stand; known by its name alone, so that nothing is imported."""

from dataclasses import dataclass

GRADED_NAMES = {"vqa": "VQA accuracy", "anls": "ANLS"}
"""Graded scores by their names in a recipe, and what the papers call them."""

RULES = {
    "exact": "An answer is right, or the same, if it is equal character for character but for white space "
    "around it.",
    "contains": "An answer is right if the words of a right one stand in it one behind another, letter case, "
    "punctuation and articles aside (contains).",
    "normalized": "An answer is right if it is a right one but for letter case, punctuation, articles, "
    "number words and the apostrophes of contractions (normalized).",
    "vqa": "VQA accuracy of an answer: 1 if three of the annotators gave it, a third less for each that is "
    "missing, both normalised; the figures are means.",
    "anls": "ANLS of an answer: its likeness to the nearest right answer, 1 less the Levenshtein distance by "
    "the longer one's length, 0 from half of it on; the figures are means.",
}


@dataclass(frozen=True)
class ScoreWords:
    """The words of one score.

    Attributes:
        graded: whether figures are means, not shares of right answers.
        name: of the measure, in lines on limits.
        right: what the figure is of; stands in headings too.
        rule: what makes an answer right, a sentence.
    """

    graded: bool
    name: str
    right: str
    rule: str

    @property
    def kept(self) -> str:
        """What the figure divided by the original's is called."""
        return f"{self.right} kept"


def score_words(score: str) -> ScoreWords:
    """Return the words of a score by its name in a recipe."""
    if score in GRADED_NAMES:
        name = GRADED_NAMES[score]
        return ScoreWords(True, name, f"mean {name}", RULES[score])
    if score in RULES:
        name = "exact match" if score == "exact" else f"right answers ({score})"
        return ScoreWords(False, name, "right answers", RULES[score])
    rule = f"An answer's score is what {score} gives, 0 to 1; the figures are means."
    return ScoreWords(True, f"score {score}", f"mean score {score}", rule)
