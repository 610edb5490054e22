"""What was kept of the answers, in words: by right and wrong ones, or by graded scores."""

from compressor.search.results import KeptAnswers, SearchReport
from export.results.loss_report import percent
from export.results.score_words import score_words


def scored_words(kept: KeptAnswers, score: str) -> str:
    """Return what a plan keeps of the original's answers, with its counts and the bound if one holds."""
    words = score_words(score)
    what = f"summed {words.name}" if kept.graded else "right answers"
    if kept.share is None:
        if kept.graded:
            return f"what cannot be told: the original's {what} of these {kept.questions} is 0"
        return f"what cannot be told: the original answers none of these {kept.questions} right"
    bound = "" if kept.bound is None else f"; 95% sure of {kept.bound:.1%} or more"
    return f"{percent(kept.share)} of the original's {what} ({kept.counts}{bound})"


def kept_name(score: str) -> str:
    """Return what the share that is kept is called in a table."""
    words = score_words(score)
    return f"{words.name} kept" if words.graded else "answers kept"


def what_is_kept(report: SearchReport) -> str:
    """Return what the original reaches on the half to judge on, what kept means, and by which score."""
    judged, words = report.original_judged_on, score_words(report.score)
    if judged.graded:
        kept = (
            f", on which the {words.name} of the original's answers to {judged.questions} questions adds up "
            f"to {judged.original:.2f}. Kept: of each question the lesser of the plan's score and the "
            "original's, as a share of that sum, so that no question makes up for another."
        )
    else:
        kept = (
            f", on which the original answers {judged.original} of {judged.questions} right. Kept: of these, "
            "the share that the plan answers right as well."
        )
    own = ""
    if report.own_answers:
        own = (
            f" Of {report.own_answers} questions no right answer is given; there the original's own answer, "
            "token for token, is the right one."
        )
    return f"{kept} Answers are scored as validate.score says: {report.score}. {words.rule}{own}"


def bound_words(report: SearchReport) -> str:
    """Return which bound '95% sure of' is, or why there is none."""
    if report.original_judged_on.graded:
        return (
            "for scores between 0 and 1 these are at least as wide as they must be, and no bound 'sure of' "
            "is given: that of Clopper and Pearson is for right and wrong answers alone."
        )
    return "'95% sure of' is the one-sided bound of Clopper and Pearson."
