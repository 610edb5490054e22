"""What an artifact says of its model and of pictures, held against itself: plan, processor's files, graphs.

A manifest that was edited by hand, or written by another tool, would else end in the error of a library, or
in other answers. What stands in one place alone, nobody can tell to be wrong.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compressor.errors import ModelError
from compressor.facts import ModelFacts
from compressor.families.pictures.processors import (
    image_section,
    saved_steps,
    several_steps,
    steps_in,
)
from compressor.families.pictures.sizes import cell_step, most_tiles, output_size
from compressor.families.pictures.steps import FitTiles, PictureSteps, TileByAspect
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan
from export.artifact.manifest import Manifest
from export.graphs.limits import Limits
from export.graphs.spec import (
    BASELINE,
    BASELINE_VISION,
    GraphSpec,
    decoder_graph,
    decoder_graphs,
    embed_graph,
    in_order,
    vision_graph,
)


def contradictions(folder: Path, manifest: Manifest, plan: Plan | None) -> tuple[str, ...]:
    """Return what a manifest says otherwise than another place of the artifact, a line each.

    Args:
        folder: the artifact, whose files were found to be the manifest's.
        manifest: of it.
        plan: that lies in it; None: none does.
    """
    # One wrong value contradicts several places; the first that tells its key is enough.
    for found in (
        _other_than_the_plan(manifest, plan),
        _other_than_the_processor(folder, manifest),
        _other_steps_than_facts(folder, manifest),
        _other_graphs(manifest, plan),
    ):
        if lines := tuple(found):
            return lines
    return ()


def _other_than_the_plan(manifest: Manifest, plan: Plan | None) -> Iterator[str]:
    if plan is None:
        return
    told = {key: plan.model_dump(mode="json")[key] for key in ("model", "model_digest")}
    for key, found, wanted in _differences(manifest.model_dump(mode="json"), told):
        yield f"{key}: {found!r:.60}, but the plan beside it has {wanted!r:.60}"


def _differences(
    found: Any, wanted: Any, place: tuple[str, ...] = ()
) -> Iterator[tuple[str, Any, Any]]:
    """Yield key and both values of what differs, of the keys that are wanted."""
    if isinstance(found, Mapping) and isinstance(wanted, Mapping):
        for key, value in wanted.items():
            yield from _differences(found.get(key), value, (*place, key))
    elif found != wanted:
        yield ".".join(place), found, wanted


def _other_than_the_processor(folder: Path, manifest: Manifest) -> Iterator[str]:
    steps = manifest.picture_steps
    if steps is None or manifest.model.family_package is not None:
        return  # a family that a package registered may read its files as it likes
    try:
        saved, where = image_section(folder)
        # Some models cut pictures whatever the file says; whether they do, the model's facts tell.
        cut = {"crop_to_patches": True} if any(isinstance(s, TileByAspect) for s in steps) else {}
        pairs = (
            ("picture_steps", steps, saved_steps({**saved, **cut}, where)),
            ("steps_beside_others", manifest.steps_beside_others, several_steps(saved, where)),
        )
    except ModelError:
        return
    for name, found, wanted in pairs:
        first, second = (
            {step.step: step.model_dump(mode="json") for step in one or ()}
            for one in (found, wanted)
        )
        names = " then ".join(first) or "none", " then ".join(second) or "none"
        if names[0] != names[1] or len(found or ()) != len(first):
            yield f"{name}: {names[0]}, but {where} says {names[1]}"
        for key, value, other in _differences(
            first, second if first.keys() == second.keys() else {}
        ):
            yield f"{name}.{key}: {value!r:.60}, but {where} says {other!r:.60}"


def _other_steps_than_facts(folder: Path, manifest: Manifest) -> Iterator[str]:
    facts = manifest.model
    for key, text in manifest.picture_text.model_dump(exclude={"text"}).items():
        if manifest.image_token in text:
            yield f"picture_text.{key}: {text!r:.60} holds the image token"
    if facts.token_grid is not None and facts.grid_cells != facts.tile_rows:
        yield f"model.token_grid: {facts.token_grid} has other than {facts.tile_rows} tokens"
    side = math.isqrt(facts.visual_tokens) * (facts.cell or 0)
    if facts.cell is not None and facts.image_size != side:
        yield f"model.image_size: {facts.image_size}, but by model.cell a square has {side}"
    try:
        steps = steps_in(folder) if manifest.picture_steps is None else manifest.picture_steps
    except ModelError:
        return  # nothing tells what is done to pictures: who asks for it hears of it
    yield from _other_sizes("picture_steps", steps, facts)
    if manifest.steps_beside_others is not None:
        yield from _other_sizes("steps_beside_others", manifest.steps_beside_others, facts)
    if (tiles := most_tiles(steps)) != facts.most_tiles:
        yield f"model.most_tiles: {facts.most_tiles}, but picture_steps give up to {tiles}"
    yield from _other_arrangement(steps, facts)


def _other_arrangement(steps: PictureSteps, facts: ModelFacts) -> Iterator[str]:
    fitted = [step for step in steps if isinstance(step, FitTiles)]
    arrangement = facts.arrangement
    if (arrangement is not None) != bool(fitted):
        is_not = "" if fitted else "not "
        yield f"model.arrangement: {arrangement}, but picture_steps are {is_not}those of arranged rows"
    elif arrangement is None:
        if facts.most_rows is not None:
            yield f"model.most_rows: {facts.most_rows}, but rows are not arranged"
    elif facts.token_grid is not None:
        yield f"model.token_grid: {facts.token_grid}, but rows are arranged"
    elif arrangement.side**2 != facts.tile_rows:
        yield f"model.arrangement.side: {arrangement.side}, but a tile has {facts.tile_rows} rows"
    elif (most := arrangement.most_rows(fitted[0].grids)) != facts.most_rows:
        yield f"model.most_rows: {facts.most_rows}, but picture_steps give up to {most}"


def _other_sizes(name: str, steps: PictureSteps, facts: ModelFacts) -> Iterator[str]:
    try:
        size, step = output_size(steps), cell_step(steps)
    except ModelError as error:
        yield from (f"{name}: {line.removeprefix('picture steps: ')}" for line in error.problems)
        return
    if (step is not None) != facts.sizes_differ:
        own = "sizes of their own" if step else "one size"
        yield f"{name}: give pictures {own}, but model.cell and model.token_grid say otherwise"
    elif step is not None:
        if step.cell != facts.cell:
            yield f"{name}.cell: {step.cell}, but model.cell is {facts.cell}"
        elif step.most_cells != facts.visual_tokens:
            most = f"up to {step.most_cells} visual tokens"
            yield f"{name}: give pictures {most}, but model.visual_tokens is {facts.visual_tokens}"
    elif size is not None and size != facts.largest_picture:
        wanted = " x ".join(map(str, facts.largest_picture))
        yield f"{name}: give {size[0]} x {size[1]} pixels, but the model takes {wanted}"


def _other_graphs(manifest: Manifest, plan: Plan | None) -> Iterator[str]:
    graphs = {graph.name: graph for graph in manifest.graphs}
    for graph in _wanted_graphs(manifest, plan):
        declared = graphs.get(graph.name)
        if declared is None:
            yield f"graphs: has no {graph.name}, which the plan beside it asks for"
        else:
            yield from _other_graph(declared, graph)


def _wanted_graphs(manifest: Manifest, plan: Plan | None) -> tuple[GraphSpec, ...]:
    """Return the graphs that model and plan make, as far as the manifest must have them."""
    facts, dtype, logits = manifest.model, manifest.dtype, manifest.logits
    whole = plan or Plan(
        model=facts,
        model_digest=manifest.model_digest,
        layers=tuple(LayerPlan(index=i) for i in range(facts.decoder.layers)),
    )
    # How many rows fixed caches have stands in no axis.
    some = Limits(
        max_batch=1,
        max_images=1,
        max_text=1,
        max_context=facts.picture_rows + 1,
        visual_tokens=facts.picture_rows,
    )
    limits = some if any(graph.fixed for graph in manifest.graphs) else None
    wanted: tuple[GraphSpec, ...] = (
        vision_graph(facts, dtype, whole.front),
        embed_graph(facts, dtype),
    )
    if plan is not None:
        wanted += decoder_graphs(plan, dtype, logits, limits)
    if in_order(manifest.graphs, BASELINE):
        wanted += (decoder_graph(whole.naive(), dtype, logits, name=BASELINE, limits=limits),)
        if whole.front is not None:  # else the original would be timed on the rows that were chosen
            wanted += (vision_graph(facts, dtype, name=BASELINE_VISION),)
    return wanted


def _other_graph(declared: GraphSpec, graph: GraphSpec) -> Iterator[str]:
    facts, plan = "the model's facts", "the plan beside it"
    for key, source in (("pixel_multiple", facts), ("kept", plan), ("moves_text", plan)):
        if getattr(declared, key) != getattr(graph, key):
            told = f"{getattr(declared, key)}, by {source} {getattr(graph, key)}"
            yield f"graphs.{graph.name}.{key}: {told}"
    # The first axis may be of a fixed size, as with gates of one prompt.
    found, known = (
        {t.name: [t.dtype, *t.axes[1:]] for t in (*one.inputs, *one.outputs)}
        for one in (declared, graph)
    )
    first = {t.name: t.axes[:1] for t in (*graph.inputs, *graph.outputs)}
    for tensor in (*declared.inputs, *declared.outputs):
        (axis,) = tensor.axes[:1] or (0,)
        if tensor.name in known and (axis,) != first[tensor.name] and not isinstance(axis, int):
            told = f"its first axis is {axis!r:.40}, by the model's facts {first[tensor.name][0]!r}"
            yield f"graphs.{graph.name}.{tensor.name}: {told}"
    if odd := sorted(found.keys() ^ known.keys()):
        yield f"graphs.{graph.name}: {', '.join(odd):.80}: in the model's facts or in the graph alone"
    for name, axes in known.items():
        if name in found and found[name] != axes:
            told = f"declared as {_shape(found[name])}, by the model's facts {_shape(axes)}"
            yield f"graphs.{graph.name}.{name}: {told}"


def _shape(axes: list[Any]) -> str:
    dtype, *sizes = map(str, axes)
    return f"{dtype} [.., {', '.join(sizes)}]"
