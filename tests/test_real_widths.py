"""Engines of every family at the widths of a published model, ahead of time in float16; none is run.

What is built takes a quarter of an hour and 8 GiB, so it is part of `make matrix`, which writes the figures
into docs/families.md.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch

import vtcompress
from compressor.facts import ModelFacts
from compressor.plan.edits import freeze, identity_plan, leave
from compressor.plan.layer import LayerPlan
from compressor.plan.plan import Plan
from export.backends.tensorrt.maker import Maker, check_buildable
from export.backends.tensorrt.targets import TARGETS
from export.graphs.limits import limits_of
from export.graphs.profiles import profiles_of
from export.graphs.spec import GraphSpec, vision_graph
from export.writer.weights import SharedWeights
from export.writer.write import export_vision, save_graph
from tests.conftest import Builds
from tests.decoders import write_decoder
from tests.family_cases import MOST_NODES
from tests.family_matrix import PAGE, families_in_order, updated
from tests.real_widths import DECODER_LAYERS, LINES, MODELS, RealModel
from tests.width_table import (
    BEGIN,
    CUT,
    END,
    FOLDER,
    GRAPHS,
    IDENTITY,
    OWN_SIZES,
    VISION,
    Line,
    read_built,
    rows_on,
    with_built,
    without_figures,
)

CASES = [pytest.param(m, p, id=f"{m.name}, {p}") for m in MODELS for p in m.budgets]


def plan_of(model: ModelFacts, kind: str) -> Plan:
    """Return the plan without cuts, or one with half the heads and neurons, a frozen layer and an exit."""
    plan = identity_plan(model, "0" * 64)
    if kind == IDENTITY:
        return plan
    decoder = model.decoder
    heads = tuple(range(decoder.kv_heads // 2, decoder.kv_heads))
    neurons = tuple(range(decoder.intermediate // 2))
    first = LayerPlan(index=0, groups=heads, neurons=neurons)
    cut = plan.model_copy(update={"layers": (first, *plan.layers[1:])})
    return leave(freeze(cut, (1,), "shortv"), 2, "visual_exit")


def build(folder: Path, spec: GraphSpec, model: ModelFacts) -> dict[str, float]:
    """Build a graph's engine; return its bytes and the seconds that it took."""
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx is not installed")
    check_buildable([spec], "float16", model.name)
    limits = limits_of(vtcompress.load_recipe("identity").export.profiles, model)
    assert limits.problems(model.decoder.max_positions) == ()
    engine, maker = folder / "engine", Maker.of(TARGETS["tensorrt-rtx"], ("SM86",))
    seconds, _ = maker.build_engine(
        folder / spec.file, profiles_of(spec, limits), spec, engine, b""
    )
    size, weights = engine.stat().st_size, (folder / "weights.bin").stat().st_size
    # Its weights once: two profiles can double an engine.
    assert weights < size < 1.2 * weights + 2**24
    for file in (engine, folder / "weights.bin"):
        file.unlink()  # pytest keeps the folders of its last sessions
    return {"bytes": size, "seconds": seconds}


def most_nodes(graph: Path) -> int:
    """Return the nodes of a decoder's layer at most, by their names."""
    nodes = onnx.load(graph, load_external_data=False).graph.node
    layers = Counter(found[1] for n in nodes if (found := re.match(r"layers\.(\d+)\.", n.name)))
    assert len(layers) == DECODER_LAYERS
    return max(layers.values())


def test_models_of_published_widths_are_read_of_every_family(tmp_path: Path) -> None:
    for place, (model, pictures) in enumerate((m, p) for m in MODELS for p in m.budgets):
        _, _, facts = model.read(tmp_path / str(place), pictures)
        assert (facts.family, facts.decoder.hidden) == (model.family, model.text["hidden_size"])
        assert facts.sizes_differ == (pictures == OWN_SIZES)
    assert [*dict.fromkeys(model.family for model in MODELS)] == families_in_order()


def test_the_page_has_the_engines_of_every_model_and_leaves_no_cell_out() -> None:
    rows = rows_on(PAGE.read_text(encoding="utf-8"))
    assert tuple(rows) == LINES
    assert without_figures(rows) == []


def record(folder: Path, lines: Iterable[Line], **outcomes: str) -> None:
    """Write what a session notes; outcomes by the first word of a graph."""
    for line in lines:
        file = folder / FOLDER / f"{line[0]}.jsonl"
        file.parent.mkdir(exist_ok=True)
        with file.open("a") as cases:
            for graph in GRAPHS:
                outcome = outcomes.get(graph.split()[0], "passed")
                figures = {"bytes": 3 << 20, "seconds": 2.4} if outcome == "passed" else {}
                case = {"line": line, "graph": graph, "figures": figures, "outcome": outcome}
                cases.write(json.dumps(case) + "\n")


def test_figures_are_written_and_read_back_and_rows_that_did_not_run_stay(tmp_path: Path) -> None:
    one, other = LINES[0], LINES[-1]
    record(tmp_path, [one, other])
    built = read_built(tmp_path)
    text = with_built(f"A\n{BEGIN}\n{END}\nB\n", built, (other, one))
    assert rows_on(text) == {line: ["3 MiB in 2 s"] * len(GRAPHS) for line in (other, one)}
    assert with_built(text, {one: built[one]}, (other, one)) == text
    assert text.startswith(f"A\n{BEGIN}\n")
    assert text.endswith(f"{END}\nB\n")


@pytest.mark.parametrize("outcome", ["failed", "skipped"])
def test_nothing_is_written_while_an_engine_was_not_built(outcome: str, tmp_path: Path) -> None:
    record(tmp_path, LINES, vision=outcome)
    with pytest.raises(SystemExit, match="not shown: vision graph of") as caught:
        updated(f"{BEGIN}{END}", tmp_path)
    assert "decoder of" not in str(caught.value)
    with pytest.raises(SystemExit, match=f"not shown: vision graph of {LINES[0][1]}"):
        with_built(f"{BEGIN}{END}", {}, LINES[:1])


@pytest.mark.matrix
@pytest.mark.parametrize(("model", "pictures"), CASES)
def test_the_vision_graph_builds(
    model: RealModel, pictures: str, tmp_path: Path, builds: Builds
) -> None:
    figures = builds(model.family, model.name, pictures, VISION)
    family, config, facts = model.read(tmp_path / "model", pictures)
    torch.manual_seed(0)
    vision = family.vision(config, image_size=facts.image_size).half()
    spec = vision_graph(facts, "float16")
    with SharedWeights(tmp_path) as weights:
        graph = export_vision(SimpleNamespace(vision=vision), spec)
        save_graph(graph, tmp_path / spec.file, weights)
    del vision, graph
    figures.update(build(tmp_path, spec, facts))


@pytest.mark.matrix
@pytest.mark.parametrize("kind", [IDENTITY, CUT])
@pytest.mark.parametrize(("model", "pictures"), CASES)
def test_the_decoder_builds(
    model: RealModel, pictures: str, kind: str, tmp_path: Path, builds: Builds
) -> None:
    figures = builds(model.family, model.name, pictures, kind)
    _, _, facts = model.read(tmp_path / "model", pictures)
    (spec,) = write_decoder(tmp_path, plan_of(facts, kind))
    nodes = most_nodes(tmp_path / spec.file)
    if kind == IDENTITY:
        assert nodes <= MOST_NODES
    figures.update(build(tmp_path, spec, facts), nodes=nodes)
