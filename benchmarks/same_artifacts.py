"""Whether two versions of this tool make the same artifacts: every shipped recipe on the bundled model.

    python -m benchmarks.same_artifacts record before.json     (in the tree of before)
    python -m benchmarks.same_artifacts record after.json      (in the tree of now)
    python -m benchmarks.same_artifacts compare before.json after.json

Recorded are the weight file's digest, the nodes of every graph, the plan's layers and predicted figures, and
of some held-out questions the answers and the bits of the first logits. No timings, no validation.
"""

import hashlib
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import yaml

import vtcompress
from compressor.plan.layer import LayerPlan

EXAMPLE = Path(__file__).parent.parent / "examples" / "digits-llava"
RECIPES = Path(__file__).parent.parent / "recipes"
QUESTIONS = 8


def on_the_bundled_model() -> list[str]:
    """Return the names of the shipped recipes that name no model of their own."""
    return sorted(
        path.stem
        for path in RECIPES.glob("*.yaml")
        if (yaml.safe_load(path.read_text(encoding="utf-8")).get("model") or {}).get("id") is None
    )


def nodes(folder: Path) -> dict[str, dict[str, int]]:
    """Return how many nodes of each operator every graph has, those of branches included."""

    def count(graph: onnx.GraphProto, found: Counter[str]) -> Counter[str]:
        for node in graph.node:
            found[node.op_type] += 1
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    count(attribute.g, found)
        return found

    graphs = sorted(folder.glob("*.onnx"))
    loaded = {path.name: onnx.load(path, load_external_data=False).graph for path in graphs}
    return {name: dict(sorted(count(graph, Counter()).items())) for name, graph in loaded.items()}


def record(recipe: str, scratch: Path) -> dict[str, Any]:
    """Export one recipe and return what must not change."""
    changes = {
        "model.id": str(EXAMPLE / "model"),
        "calibrate.data": str(EXAMPLE / "calibration.jsonl"),
        "calibrate.samples": 16,
    }
    folder = scratch / recipe
    made = vtcompress.load_recipe(recipe).override(changes)
    if any(section for section in made.model_dump()["compress"] if section.get("dyvte")):
        made = made.override({"compress.dyvte.gates": str(EXAMPLE / "gates.safetensors")})
    manifest = vtcompress.export(made, folder)
    runtime = vtcompress.Runtime.load(folder, threads=1)
    lines = (EXAMPLE / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[:QUESTIONS]
    asked = [json.loads(line) for line in lines]
    replies = [runtime.answer(one["question"], EXAMPLE / one["image"]) for one in asked]
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    return {
        "weights": hashlib.sha256((folder / "weights.bin").read_bytes()).hexdigest(),
        "nodes": nodes(folder),
        "layers": plan["layers"],
        "predicted": manifest.predicted.model_dump(mode="json"),
        "answers": [reply.text for reply in replies],
        "logits": [hashlib.sha256(reply.first_logits.tobytes()).hexdigest() for reply in replies],
    }


def read(found: dict[str, Any]) -> dict[str, Any]:
    """Return what was recorded with layers as this version reads them: it may name reasons otherwise."""
    layers = [LayerPlan.model_validate(layer) for layer in found.get("layers", ())]
    return {**found, "layers": layers}


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print what is equal and what is not, a line a recipe; return how many recipes differ."""
    differing = 0
    for recipe in sorted(before.keys() | after.keys()):
        old, new = (read(found.get(recipe, {})) for found in (before, after))
        other = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
        differing += bool(other)
        print(f"{recipe}: " + (f"differs in {', '.join(other)}" if other else "equal"))
    return differing


def main() -> None:
    """Record or compare."""
    match sys.argv[1:]:
        case ["record", target]:
            with tempfile.TemporaryDirectory() as scratch:
                found = {name: record(name, Path(scratch)) for name in on_the_bundled_model()}
            Path(target).write_text(json.dumps(found, indent=1), encoding="utf-8")
        case ["compare", before, after]:
            documents = [json.loads(Path(p).read_text(encoding="utf-8")) for p in (before, after)]
            sys.exit(1 if compare(*documents) else 0)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
