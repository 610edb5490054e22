"""What is said of weights in whole numbers, in sentences that all reports share."""

from export.artifact.manifest import Manifest
from export.results.loss_report import nats, percent
from export.results.quantization import QuantizationLoss

MIB = 2**20


def quantization_words(manifest: Manifest) -> tuple[str, ...]:
    """Return how the decoder's matrices are stored, and what that alone loses; nothing for float ones."""
    found = manifest.quantization
    if found is None:
        return ()
    return (
        f"The decoder's matrices are {found.weights}, with a scale for every {found.block} weights: "
        f"{found.stored_bytes / MIB:,.2f} MiB in place of {found.float_bytes / MIB:,.2f} MiB in "
        f"{manifest.dtype}. Embedding, head, norms and the vision part are {manifest.dtype}, and so is all "
        "of baseline_decoder.onnx, the original that gain and loss are measured beside: weights.bin holds "
        "its matrices, too.",
        f"What {found.weights} weights alone lose{_lost(found.loss)}. Export fidelity compares "
        "with the model that has these weights, in exact arithmetic, and holds nothing of it. Compression "
        "loss is of the artifact as it runs, and holds it, together with what the plan leaves out and what "
        "the backend rounds: ONNX Runtime on the CPU rounds what these weights are multiplied with to 8 "
        "bits.",
    )


def _lost(loss: QuantizationLoss | None) -> str:
    if loss is None:
        return " was not measured: not run, because no model with float weights was in memory"
    return (
        f", of {loss.rows:,} next tokens after {loss.source}, in torch: {percent(loss.agreement)} stay the "
        f"likeliest, KL mean {nats(loss.kl)} and worst {nats(loss.kl_worst)} nats, logits off by "
        f"{loss.largest:.3g} at most"
    )


def shrunk_words(manifest: Manifest) -> str:
    """Return to which share the decoder's matrices shrink; empty where they are float."""
    found = manifest.quantization
    if found is None:
        return ""
    share = found.stored_bytes / found.float_bytes
    return f"the decoder's matrices shrink to {share:.0%} of their bytes, being {found.weights}"
