"""What was trained of the compressed decoder, and what that gained, in sentences."""

from export.artifact.manifest import Manifest
from export.results.loss_report import LossFigures

COUNTED = {
    "norms": "norms",
    "neurons_scale": "layers' factors of neurons",
    "lora": "matrices by updates of rank {rank}",
}
"""What is counted, by the word of `compressor.contract.healing.Healable`."""


def healed_words(manifest: Manifest) -> tuple[str, ...]:
    """Return how weights were trained; nothing where none were."""
    found = manifest.healed
    if found is None:
        return ()
    parts = [
        f"{count} {COUNTED[kind].format(rank=found.train.rank)}"
        for kind, count in found.trained.items()
    ]
    own = (
        f", {found.own_answers} of them by the original's own answers" if found.own_answers else ""
    )
    return (
        f"The compressed decoder was healed: {_and(parts)} were trained towards the original's next tokens, "
        f"nothing else, in {found.steps} steps on {found.samples} questions of {found.data}{own}. On "
        f"{found.judged} others of these the mean KL was {found.kl_before:.4f} nats before and is "
        f"{found.kl_after:.4f} now. The original beside it keeps its own weights: the weight file holds what "
        "changed a second time.",
    )


def before_and_after(manifest: Manifest) -> tuple[str, ...]:
    """Return what both checks found before and after; nothing where it was not measured."""
    before, after = manifest.unhealed_loss, manifest.loss
    if before is None or after is None:
        return ()
    was, now = before.overall, after.overall
    words = (
        f"Before healing the same plan, in torch, had {_figures(was)}; it has {_figures(now)} now. Export "
        "fidelity compares the healed model with its files."
    )
    return (words,)


def _figures(found: LossFigures) -> str:
    right = "" if found.exact_match is None else f"{found.exact_match:.1%} right answers, "
    return f"{right}{found.agreement:.1%} equal next tokens, a mean KL of {found.kl:.4f}"


def _and(parts: list[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]
