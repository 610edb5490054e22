"""VTW: visual tokens leave the decoder at one layer, the same for every prompt.

Source: "Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference" (VTW,
2024), training-free.

Rule: p is the original next-token distribution at the last prompt token, p_K the one with visual rows
absent from the input of layer K on, positions kept. K is the smallest layer from a first one on (5) whose
KL(p_K || p), mean over calibration samples, is within a bound. All K are scored in one sweep in
`compressor.methods.exit_scores`; this file holds the choice.

Limitations:
- K depends on the task. With a K from captions or yes-no questions, tasks that read small details, such as
  text in pictures or counts, can collapse: calibrate on the task.
- The mean can hide single prompts that need the image longer.
"""

from collections.abc import Callable, Sequence

FIRST_LAYER = 5


def smallest_within(exit_kl: Sequence[float], bound: float, first: int) -> int | None:
    """Return the smallest layer from `first` on whose mean KL is within the bound, None if none is.

    Args:
        exit_kl: mean KL [L] by the first layer without visual rows.
        bound: in nats.
        first: smallest layer to consider.
    """
    return next((k for k in range(first, len(exit_kl)) if exit_kl[k] <= bound), None)


def for_speedup(layers: int, wanted: float, speedup_of: Callable[[int], float]) -> int | None:
    """Return the largest exit layer whose predicted speed-up reaches `wanted`, None if none does.

    Args:
        layers: of the decoder.
        wanted: prefill speed-up, above 1.
        speedup_of: predicted speed-up of an exit at a layer.
    """
    return next((k for k in range(layers - 1, 0, -1) if speedup_of(k) >= wanted), None)
