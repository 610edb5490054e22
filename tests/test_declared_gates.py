"""Whether gates decide is told by a graph's declaration, not read off its batch."""

import json
from pathlib import Path

import pytest

from export.backends.onnxruntime import OnnxSession
from export.graphs.spec import GraphSpec, decoder_graph, decoder_graphs
from tests import facts

GATED = facts.plan(gates=facts.gates())
STAGED = facts.plan(gates=facts.gates().model_copy(update={"mode": "staged"}))


def of_fixed_batch(spec: GraphSpec) -> GraphSpec:
    """The same graph for one prompt a call."""
    document = json.loads(spec.model_dump_json().replace('"batch"', "1"))
    return GraphSpec.model_validate(document)


def of_before(spec: GraphSpec) -> GraphSpec:
    """The declaration as older artifacts hold it."""
    document = json.loads(spec.model_dump_json())
    del document["gated"]
    return GraphSpec.model_validate(document)


@pytest.mark.parametrize("plan", [GATED, STAGED], ids=["dynamic", "staged"])
def test_graphs_of_a_decoder_with_gates_tell_it(plan: facts.Plan) -> None:
    graphs = decoder_graphs(plan, "float32", "last")
    assert [spec.reads_gates for spec in graphs] == [True] * len(graphs)
    assert [spec.narrows for spec in graphs] == [len(graphs) == 1] * len(graphs)


def test_a_graph_of_a_fixed_batch_without_gates_is_not_taken_for_one_with_gates(
    tmp_path: Path,
) -> None:
    spec = of_fixed_batch(decoder_graph(facts.plan(), "float32", "last"))
    assert spec.batch == 1
    assert not spec.reads_gates
    assert not spec.narrows
    session = OnnxSession(tmp_path, (spec,))
    assert not session.reads_question
    assert session.max_batch == 1


def test_older_artifacts_are_read_as_before(tmp_path: Path) -> None:
    with_gates, without = (
        of_before(decoder_graph(plan, "float32", "last")) for plan in (GATED, facts.plan())
    )
    assert (with_gates.reads_gates, without.reads_gates) == (True, False)
    assert OnnxSession(tmp_path, (with_gates,)).max_batch == 1
    assert OnnxSession(tmp_path, (without,)).max_batch is None
