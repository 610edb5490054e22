"""What was found and checked for graphs of fewer bits, in sentences that all reports share."""

from export.artifact.manifest import Manifest
from export.report.words.quantization import quantization_words
from export.results.float16 import FLOAT16_MAX, WIDE, Float16Ranges

# More names than that are counted; `inspect --json` has them all.
MOST_NAMES = 12


def reference_words(dtype: str, *, ran: bool) -> str:
    """Return what export fidelity compares.

    Args:
        dtype: of the graphs.
        ran: whether it was.
    """
    words = "Compressed torch model (float32) against its own exported graphs; numerical, tight."
    if dtype == "float32" or not ran:
        return words
    return (
        f"{words} The torch side keeps the original's weights as they were and computes in float32, so the "
        f"figures include what {dtype} rounds."
    )


def dtype_words(manifest: Manifest) -> tuple[str, ...]:
    """Return what was done to the graphs, and what was found for their dtype; nothing for float32."""
    found = () if manifest.ranges is None else _range_words(manifest.ranges)
    if manifest.streamed:
        found = (streamed_words(manifest),)
    if manifest.dtype == "bfloat16" and (manifest.fidelity is not None or not manifest.streamed):
        missing = ", ".join(manifest.missing_kernels)
        ran = "The check" if manifest.streamed else "Both checks"
        found = (
            *found,
            f"{ran} ran the graphs' arithmetic in float32 on the bfloat16 weights. bfloat16 kernels "
            "were not run here; ONNX Runtime's CPU cannot run these graphs"
            f"{f': it has none for {missing}' if missing else ''}. Rounding of the weights is in the "
            "figures, and rounding between the operators is not.",
        )
    return (*manifest.passes, *quantization_words(manifest), *found)


def streamed_words(manifest: Manifest) -> str:
    """Return what was not run of an export that had no model in memory."""
    searched = ""
    if manifest.dtype == "float16":
        searched = (
            " Values that float16 cannot hold were not looked for: not run, and every node is in float16; "
            "an export without streaming looks for them."
        )
    unchecked = ""
    if manifest.fidelity is None:
        why = (
            manifest.unparted
            and f": {manifest.unparted}, so that layers cannot be run by themselves"
        )
        unchecked = f" Export fidelity was not checked{why}."
    unmeasured = "" if manifest.loss is not None else ", no compression loss"
    return (
        "Streamed: weights were copied one at a time and the model was never in memory, so what needs it "
        "whole was not run: no comparison of the rewritten model with the original"
        f"{unmeasured}.{unchecked} "
        "`vtcompress validate ARTIFACT --model MODEL` runs them where the model fits into memory."
        f"{searched}"
    )


def _range_words(ranges: Float16Ranges) -> tuple[str, ...]:
    """Return how large values get in float16 graphs, and which nodes stay in float32."""
    graph, most = max(ranges.graphs.items(), key=lambda item: item[1].largest)
    first = (
        f"float16 ends at {FLOAT16_MAX:,.0f}. The largest value of the graphs, computed in float32 on "
        f"{ranges.prompts} {ranges.source}, is {most.largest:,.0f} (graph {graph}, node {most.at})."
    )
    if not ranges.float32_nodes:
        return first, "So every node is in float16; other prompts may give larger values."
    lines = []
    for name, nodes in ranges.float32_nodes.items():
        more = f" and {len(nodes) - MOST_NAMES} more" if len(nodes) > MOST_NAMES else ""
        lines.append(
            f"{name}: {len(nodes)} nodes stay in float32, because they read or make values above "
            f"{WIDE:,.0f} or overflowed when they ran: {', '.join(nodes[:MOST_NAMES])}{more}."
        )
    return first, *lines, "Other prompts may give larger values."


def not_timed_words(manifest: Manifest) -> str:
    """Return that no time was measured, with the reason if the dtype is one."""
    if manifest.dtype == "bfloat16":
        return "Times: not measured, ONNX Runtime's CPU cannot run bfloat16 graphs."
    return "Times: not measured."
