"""An artifact that contradicts itself is refused when it is opened, by the manifest's key."""

import copy
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from compressor.arrangement import Unpadded
from compressor.errors import ArtifactError
from compressor.facts import ModelFacts
from compressor.families.pictures.processors import saved_steps, several_steps
from compressor.families.pictures.sizes import cell_step, most_tiles, output_size
from compressor.families.pictures.steps import FitTiles
from compressor.plan.edits import keep_in_front
from compressor.plan.plan import Plan
from export.artifact.artifact import Artifact, write_manifest
from export.artifact.contradictions import contradictions
from export.graphs.spec import decoder_graph, vision_graph
from tests import facts
from tests.test_artifact import FILES

SQUARE = {"height": 32, "width": 32}
PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    "one square": {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "size": SQUARE}
    | {"crop_size": SQUARE},
    "tiles": {"image_processor_type": "GotOcr2ImageProcessor", "size": SQUARE, "max_patches": 4}
    | {"crop_to_patches": True},
    "cut tiles": {"image_processor_type": "SmolVLMImageProcessor", "size": {"longest_edge": 64}}
    | {"max_image_size": {"longest_edge": 32}},
    "arranged": {"image_processor_type": "LlavaNextImageProcessor", "size": {"shortest_edge": 32}}
    | {"crop_size": SQUARE, "image_grid_pinpoints": [[32, 64], [64, 64]]},
    "arranged and uncut": {"image_processor_type": "LlavaOnevisionImageProcessor", "size": SQUARE}
    | {"image_grid_pinpoints": [[32, 64], [64, 64], [96, 32]]},
    "own sizes": {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 4, "merge_size": 2}
    | {"size": {"shortest_edge": 256, "longest_edge": 3072}},
    "in a frame": {"image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 64}}
    | {"patch_size": {"height": 8, "width": 8}},
    "one size in cells": {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 4}
    | {"merge_size": 2, "size": {"height": 48, "width": 64}},
}
KINDS = tuple(PROCESSORS)
ROPE = {"rope_axes": (0, 1), "deepstack": 1}
ONCE = ("plan.json", "processor_config.json")
"""Where a second word on the manifest's values stands, but for the graphs."""


def model_of(kind: str) -> ModelFacts:
    """Return the facts that a family would give with such a processor."""
    steps = saved_steps(PROCESSORS[kind], kind)
    given: dict[str, Any] = {"image_size": 32, "visual_tokens": 16, "most_tiles": most_tiles(steps)}
    decoder = facts.dims()
    if (step := cell_step(steps)) is not None:
        side = math.isqrt(step.most_cells) * step.cell
        given |= {"cell": 8, "visual_tokens": step.most_cells, "image_size": side}
        decoder = facts.dims(**ROPE)
    elif kind == "one size in cells":
        assert output_size(steps) == (48, 64)
        given |= {"cell": 8, "visual_tokens": 48, "token_grid": (6, 8), "image_size": 48}
    elif isinstance(steps[0], FitTiles):
        rows = Unpadded(side=4, most_tiles=4 if "uncut" in kind else None)
        given |= {"arrangement": rows, "most_rows": rows.most_rows(steps[0].grids)}
    else:
        given |= {"token_grid": (4, 4)}
    return facts.facts(decoder, **given)


def write(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "baseline_decoder.onnx").write_bytes(FILES["decoder.onnx"])
    plan, saved = facts.plan(frozen=(1,), model=model_of(kind)), PROCESSORS[kind]
    plan.save(folder / "plan.json")
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": saved}))
    fields = facts.manifest_fields(
        plan,
        picture_steps=saved_steps(saved, kind),
        steps_beside_others=several_steps(saved, kind),
    )
    baseline = decoder_graph(plan.naive(), "float32", "last", name="baseline_decoder")
    fields["graphs"] += (baseline,)
    write_manifest(folder, **fields)
    return folder


def leaves(
    value: Any, place: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in pairs:
        if isinstance(part, dict) or (isinstance(part, list) and part and part[0] != part[-1]):
            yield from leaves(part, (*place, key))
        if not isinstance(part, dict):
            yield (*place, key), part


def others(value: Any) -> list[Any]:
    """Return other values that are of the same kind."""
    match value:
        case bool():
            return [not value]
        case int() | float():
            return [value + 1, value * 2, value / 2 if isinstance(value, float) else value // 2]
        case str():
            return [value + "x", "bilinear", "gelu"]
        case list() if value:
            return [value[::-1], value[:-1], value + value[-1:]]
    return [[4, 4], 8, {"side": 4}, {"max_tiles": 2}]


def changed(document: Any, place: tuple[str | int, ...], value: Any) -> Any:
    found = copy.deepcopy(document)
    part = found
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    return found


def refused(folder: Path, document: Any) -> tuple[str, ...]:
    (folder / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(ArtifactError) as caught:
        Artifact.open(folder, verify=False)
    return caught.value.problems


def edits(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield other values of every leaf of the model and its pictures, and steps in other orders."""
    for root in ("model", "picture_steps", "steps_beside_others"):
        for place, value in leaves(document[root] or {}):
            for other in others(value):
                if other != value:
                    name = ".".join(map(str, (root, *place)))
                    yield f"{name}={other!r:.60}", changed(document, (root, *place), other)
        steps = document[root] if root != "model" else ()
        for i in range(len(steps or ())):
            left = steps[:i] + steps[i + 1 :]
            yield f"{root}: {i} left out", changed(document, (root,), left)
            yield f"{root}: {i} last", changed(document, (root,), [*left, steps[i]])
            yield f"{root}: {i} twice", changed(document, (root,), [*steps[: i + 1], *steps[i:]])


@pytest.mark.parametrize("kind", KINDS)
def test_no_value_of_the_model_or_its_pictures_can_be_another_one(
    kind: str, tmp_path: Path
) -> None:
    """The kind: whatever the key is, one line names manifest and key and says what to do."""
    folder = write(tmp_path / "artifact", kind)
    Artifact.open(folder)
    document = json.loads((folder / "manifest.json").read_text())
    count = 0
    for what, edited in edits(document):
        if edited == document:
            continue
        count += 1
        lines = refused(folder, edited)
        for line in lines:
            assert line.startswith(f"{folder / 'manifest.json'}: "), (what, line)
            assert "export the model a" in line, (what, line)
            assert "\n" not in line
            key = what.split("=")[0].split(":")[0].split(".")[0]
            assert key in line, (what, line)
    assert count > 100


FROM_GRAPHS = (
    "model.decoder.hidden",
    "model.decoder.vocab",
    "model.decoder.kv_heads",
    "model.decoder.head_dim",
    "model.decoder.layers",
    "model.visual_tokens",
    "model.image_size",
    "model.cell",
    "model.token_grid",
    "model.arrangement",
    "model.most_rows",
    "model.most_tiles",
    "model.arrangement.side",
    "picture_steps.0.cell",
    "picture_steps.0.size",
    "picture_steps.0.sizes",
    "picture_steps.0.edge",
    "picture_steps.0.most",
)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_and_counts_are_held_against_the_graphs_where_nothing_else_tells_them(
    kind: str, tmp_path: Path
) -> None:
    """Another tool may leave out plan and processor; the rest still must be one thing."""
    folder = write(tmp_path / "artifact", kind)
    document = json.loads((folder / "manifest.json").read_text())
    for name in ONCE:
        (folder / name).unlink()
        del document["files"][name]
    (folder / "manifest.json").write_text(json.dumps(document))
    Artifact.open(folder)
    told = [
        (what, edited)
        for what, edited in edits(document)
        if what.split("=")[0] in FROM_GRAPHS and not harmless(what)
    ]
    assert len(told) > 20
    for what, edited in told:
        try:
            assert refused(folder, edited)
        except pytest.fail.Exception:
            pytest.fail(f"{what}: opened")


def harmless(what: str) -> bool:
    """Whether nothing in the artifact can tell: as many tiles, or cells, in other sizes."""
    return what.startswith(("picture_steps.0.sizes=", "picture_steps.0.most=3073"))


def test_positions_and_added_rows_are_those_that_the_decoder_takes(tmp_path: Path) -> None:
    folder = write(tmp_path / "artifact", "own sizes")
    document = json.loads((folder / "manifest.json").read_text())
    for name in ONCE:
        del document["files"][name]
    for key, value, tensor in (("rope_axes", None, "positions"), ("deepstack", 2, "deepstack.1")):
        (line, *_) = refused(folder, changed(document, ("model", "decoder", key), value))
        assert tensor in line
        assert "graphs." in line


def test_rows_that_go_on_in_a_graph_are_those_of_the_plan(tmp_path: Path) -> None:
    """Else a runtime would keep a picture for other questions, and count rows that left."""
    folder = write(tmp_path / "artifact", "one square")
    document = json.loads((folder / "manifest.json").read_text())
    (place,) = (i for i, graph in enumerate(document["graphs"]) if graph["name"] == "decoder")
    (line,) = refused(folder, changed(document, ("graphs", place, "kept"), {"past_1": [[8, 16]]}))
    assert "graphs.decoder.kept: {'past_1': ((8, 16),)}, by the plan beside it {}; export" in line


def test_an_original_beside_a_choice_has_a_vision_graph_of_all_rows(tmp_path: Path) -> None:
    """Else it would be timed on the rows that were chosen."""
    folder = write(tmp_path / "artifact", "one square")
    artifact = Artifact.open(folder)
    plan = Plan.load(folder / "plan.json")
    chosen = keep_in_front(plan, 8, "random", {"keep": 0.5})
    (vision, *others) = (graph for graph in artifact.manifest.graphs)
    assert vision.name == "vision"
    kept = vision_graph(plan.model, "float32", chosen.front)
    manifest = artifact.manifest.model_copy(update={"graphs": (kept, *others)})
    (line,) = contradictions(folder, manifest, chosen)
    assert line == "graphs: has no baseline_vision, which the plan beside it asks for"
    whole = vision_graph(plan.model, "float32", name="baseline_vision")
    manifest = manifest.model_copy(update={"graphs": (kept, *others, whole)})
    assert contradictions(folder, manifest, chosen) == ()


def test_text_around_a_picture_holds_no_picture(tmp_path: Path) -> None:
    folder = write(tmp_path / "artifact", "one square")
    document = json.loads((folder / "manifest.json").read_text())
    text = {"text": "run", "before": "<image>", "after": ""}
    (line,) = refused(folder, document | {"picture_text": text})
    assert line == (
        f"{folder / 'manifest.json'}: picture_text.before: '<image>' holds the image token; export the model "
        "again"
    )


@pytest.mark.parametrize("graph", [0, 1, 2])
def test_a_first_axis_of_another_name_is_refused(tmp_path: Path, graph: int) -> None:
    folder = write(tmp_path / "artifact", "one square")
    document = json.loads((folder / "manifest.json").read_text())
    tensor = document["graphs"][graph]["inputs"][-1]
    tensor["axes"][0] = "others"
    (line,) = refused(folder, document)
    assert f"{tensor['name']}: its first axis is 'others'" in line
    tensor["axes"][0] = 1
    (folder / "manifest.json").write_text(json.dumps(document))
    Artifact.open(folder, verify=False)
