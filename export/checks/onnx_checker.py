"""The ladder's first rung: the ONNX package's own checker on every graph file. Runs while exporting."""

from collections.abc import Sequence
from pathlib import Path

from export.graphs.spec import GraphSpec
from export.results.checker import CheckerReport


def check_graphs(folder: Path, graphs: Sequence[GraphSpec]) -> CheckerReport:
    """Check every graph file by its path, shapes inferred through the whole graph.

    By path, because the weights lie outside the graphs and may be more than protobuf holds.
    """
    import onnx

    files = tuple(dict.fromkeys(spec.file for spec in graphs))
    failures = []
    for file in files:
        try:
            onnx.checker.check_model(str(folder / file), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as failure:
            lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
            failures.append(f"{file}: the ONNX checker refuses it: {' '.join(lines[:2])}")
    return CheckerReport(version=onnx.__version__, files=files, failures=tuple(failures))
