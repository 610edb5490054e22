"""What a graph wants of which file, found before ONNX Runtime parses it: the same as `onnx` finds."""

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from compressor.errors import ArtifactError
from export.artifact.artifact import Artifact, write_manifest
from export.artifact.onnx_header import (
    MAX_FIELDS,
    MAX_GRAPH_BYTES,
    TensorHeader,
    check_graph,
    read_tensors,
)
from export.artifact.protobuf_wire import MalformedError
from export.graphs.operators import ONNX_OPERATORS
from tests import facts

SIZES = {"weights.bin": 4096}


def external(name="w", dims=(8, 16), data_type=1, **entries) -> TensorProto:
    tensor = TensorProto(name=name, dims=dims, data_type=data_type, data_location=1)
    for key, value in ({"location": "weights.bin", "offset": 0, "length": 512} | entries).items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def model(*tensors, nodes=()) -> ModelProto:
    return ModelProto(ir_version=10, graph=GraphProto(name="g", initializer=tensors, node=nodes))


def tensors_of(graph: GraphProto) -> list[TensorProto]:
    tensors = list(graph.initializer)
    for attribute in (a for node in graph.node for a in node.attribute):
        tensors += tensors_of(attribute.g)
        tensors += [attribute.t] if attribute.HasField("t") else []
        tensors += attribute.tensors
    return tensors


def by_onnx(content: bytes) -> list[TensorHeader]:
    """The same findings by the library's own parser."""
    found = []
    for tensor in tensors_of(onnx.load_model_from_string(content).graph):
        pairs = {entry.key: entry.value for entry in tensor.external_data}
        here = tensor.data_location != TensorProto.EXTERNAL
        length = pairs.get("length")
        found.append(
            TensorHeader(
                tensor.name,
                tensor.data_type,
                tuple(tensor.dims),
                inline=tensor.ByteSize() if here else 0,
                location=None if here else pairs["location"],
                offset=int(pairs.get("offset", 0)),
                length=None if length is None else int(length),
            )
        )
    return found


def problems(folder: Path, content: bytes, sizes=SIZES) -> list[str]:
    (folder / "g.onnx").write_bytes(content)
    return check_graph(folder, "g.onnx", sizes)


# Against onnx itself

texts = st.text(st.characters(codec="utf-8"), max_size=12)
places = st.builds(
    external,
    texts,
    st.lists(st.integers(0, 2**63 - 1), max_size=6),
    st.sampled_from([1, 2, 7, 10, 11, 16]),
    location=texts,
    offset=st.integers(0, 10**19 - 1),
    length=st.none() | st.integers(0, 10**19 - 1),
)
inlines = st.lists(st.integers(-(2**31), 2**31 - 1), max_size=9).flatmap(
    lambda values: st.sampled_from(
        [
            onnx.helper.make_tensor("i", 7, (len(values),), values),
            onnx.helper.make_tensor("f", 1, (len(values),), list(map(float, values))),
            onnx.numpy_helper.from_array(np.asarray(values, "int32"), "raw"),
        ]
    )
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.lists(places | inlines, max_size=5), st.lists(places | inlines, max_size=3))
def test_every_tensor_is_found_as_onnx_finds_it(initializers, constants):
    nodes = [
        NodeProto(
            op_type="Constant",
            output=["c"],
            attribute=[AttributeProto(name="value", type=4, t=tensor)],
        )
        for tensor in constants
    ]
    content = model(*initializers, nodes=nodes).SerializeToString()
    assert list(read_tensors(content)) == by_onnx(content)
    branch = AttributeProto(name="then_branch", type=5, g=model(*initializers, nodes=nodes).graph)
    nodes.append(NodeProto(op_type="If", input=["i"], output=["o"], attribute=[branch]))
    content = model(*initializers, nodes=nodes).SerializeToString()
    assert list(read_tensors(content)) == by_onnx(content)


def test_a_branch_may_not_reach_out_of_the_artifact(tmp_path):
    outside = model(external(location="../secret")).graph
    branch = AttributeProto(name="then_branch", type=5, g=outside)
    nodes = [NodeProto(op_type="If", input=["i"], output=["o"], attribute=[branch])]
    (line,) = problems(tmp_path, model(nodes=nodes).SerializeToString())
    assert "'../secret', which is not among the files" in line


def test_real_graphs_read_as_onnx_reads_them_and_lie_in_their_artifact(tiny_artifact):
    files = {name: path.stat().st_size for path in tiny_artifact.iterdir() if (name := path.name)}
    for name in ("vision", "embed", "decoder", "baseline_decoder"):
        content = (tiny_artifact / f"{name}.onnx").read_bytes()
        found = read_tensors(content)
        assert list(found) == by_onnx(content)
        assert any(tensor.location for tensor in found)
        assert check_graph(tiny_artifact, f"{name}.onnx", files) == []


def test_bytes_that_are_changed_are_refused_or_read_as_onnx_reads_them():
    whole = model(external(), onnx.helper.make_tensor("i", 7, (3,), [1, 2, 3])).SerializeToString()
    randomly = random.Random(3)
    agreed = refused = 0
    for _ in range(2000):
        content = bytearray(whole)
        for _ in range(randomly.randint(1, 3)):
            content[randomly.randrange(len(content))] ^= 1 << randomly.randrange(8)
        try:
            found = list(read_tensors(bytes(content)))
        except MalformedError:
            refused += 1
            continue
        try:
            wanted = by_onnx(bytes(content))
        except DecodeError:  # stricter than this reader in fields that it passes over
            continue
        assert [t.location for t in found] == [t.location for t in wanted]
        assert [(t.offset, t.length, t.dims) for t in found] == [
            (t.offset, t.length, t.dims) for t in wanted
        ]
        agreed += 1
    assert agreed > 200
    assert refused > 200


# What is refused


def test_a_tensor_that_lies_in_the_artifact_is_accepted(tmp_path):
    assert problems(tmp_path, model(external(), external(offset=3584)).SerializeToString()) == []


@pytest.mark.parametrize(
    "location",
    [
        "/etc/passwd", "../weights.bin", "a/../../x", "..\\weights.bin", "other.bin", "",
        "weights.bin\0", "*/_ORT_MEM_ADDR_/*", "C:weights.bin",
    ],
)  # fmt: skip
def test_a_tensor_that_lies_elsewhere_is_refused(tmp_path, location):
    (line,) = problems(tmp_path, model(external(location=location)).SerializeToString())
    assert "which is not among the files; do not use this artifact" in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"offset": 3585}, "ends at byte 4097 of weights.bin, which has 4096"),
        ({"offset": 10**18}, "ends at byte 1000000000000000512"),
        ({"length": 511}, "is 511 bytes long; its shape takes 512"),
        ({"length": None}, "is None bytes long"),
        ({"dims": (2**40, 2**40)}, "its shape takes"),
        ({"dims": (8, 16), "data_type": 11}, "its shape takes 1024"),
        ({"offset": "-1"}, "'-1' for a number of bytes"),
        ({"offset": "1e9"}, "'1e9' for a number of bytes"),
        ({"length": "٣"}, "for a number of bytes"),
        ({"dims": (-1, 8)}, "no shape that a tensor can have"),
        ({"dims": (1,) * 17}, "no shape that a tensor can have"),
        ({"data_type": 8}, "has the data type 8"),
        ({"basepath": "/"}, "the key 'basepath' twice, or it is unknown"),
        ({"location": None}, "names no file"),
    ],
)
def test_absurd_places_and_sizes_are_refused(tmp_path, changes, said):
    (line,) = problems(tmp_path, model(external(**changes)).SerializeToString())
    assert said in line
    assert line.startswith(f"{tmp_path / 'g.onnx'}: ")


def test_a_tensor_in_a_nodes_attribute_is_judged_too(tmp_path):
    node = NodeProto(op_type="Constant", output=["c"])
    node.attribute.add(name="value", type=4, t=external(location="/etc/passwd"))
    (line,) = problems(tmp_path, model(nodes=[node]).SerializeToString())
    assert "/etc/passwd" in line


def test_a_tensor_that_declares_more_than_it_holds_is_refused(tmp_path):
    declared = TensorProto(name="big", dims=[2**40], data_type=1, float_data=[1.0])
    (line,) = problems(tmp_path, model(declared).SerializeToString())
    assert "is declared with" in line
    raw = TensorProto(name="raw", dims=[2], data_type=1, raw_data=b"1234")
    (line,) = problems(tmp_path, model(raw).SerializeToString())
    assert "other than the bytes of its shape" in line


def hidden() -> dict[str, bytes]:
    """Graphs that hide a tensor where this reader would not look, or that protobuf would merge."""
    nested = NodeProto(op_type="If", input=["i"], output=["o"])
    nested.attribute.add(name="then_branch", type=5, g=model(external()).graph)
    deeper = NodeProto(op_type="If", input=["i"], output=["o"])
    deeper.attribute.add(name="then_branch", type=5, g=model(nodes=[nested]).graph)
    many = NodeProto(op_type="Scan", input=["i"], output=["o"])
    many.attribute.add(name="bodies", type=10, graphs=[model(external()).graph])
    function, training, sparse = model(), model(), model()
    function.functions.add(name="f", domain="d")
    training.training_info.add()
    sparse.graph.sparse_initializer.add()
    plain = model(external()).SerializeToString()
    both = external()
    both.float_data.append(1.0)
    inside = external()
    inside.data_location = TensorProto.DEFAULT
    foreign = NodeProto(op_type="MatMulNBits", domain="com.microsoft")
    lacking = NodeProto(op_type="LayerNormalization", input=["x", "scale", ""], output=["y"])
    short = NodeProto(op_type="Conv", input=["x"], output=["y"])
    long = NodeProto(op_type="Neg", input=["x", "x"], output=["y"])
    twofold = NodeProto(op_type="Neg", input=["x"], output=["y", "z"])
    inner = NodeProto(op_type="If", input=["i"], output=["o"])
    branch = model(nodes=[NodeProto(op_type="Resize2")])
    inner.attribute.add(name="then_branch", type=5, g=branch.graph)
    twice = external()
    twice.external_data.add(key="location", value="/etc/passwd")
    return {
        "a subgraph within a subgraph": model(nodes=[deeper]).SerializeToString(),
        "subgraphs": model(nodes=[many]).SerializeToString(),
        "functions": function.SerializeToString(),
        "training": training.SerializeToString(),
        "sparse initializers": sparse.SerializeToString(),
        "field 7 twice": plain + ModelProto(graph=GraphProto(name="h")).SerializeToString(),
        "lies elsewhere too": model(both).SerializeToString(),
        "says neither": model(inside).SerializeToString(),
        "'location' twice": model(twice).SerializeToString(),
        "wire type 3": plain + b"\x0b\x0c",
        "field number 0": plain + b"\x02\x00",
        "the operator 'Loop'": model(nodes=[NodeProto(op_type="Loop")]).SerializeToString(),
        "the operator 'com.microsoft.MatMulNBits'": model(nodes=[foreign]).SerializeToString(),
        "the operator ''": model(nodes=[NodeProto()]).SerializeToString(),
        "a node LayerNormalization has an input": model(nodes=[lacking]).SerializeToString(),
        "a node Conv has 1 inputs": model(nodes=[short]).SerializeToString(),
        "a node Neg has 2 inputs": model(nodes=[long]).SerializeToString(),
        "a node Neg has 1 inputs and 2 outputs": model(nodes=[twofold]).SerializeToString(),
        "the operator 'Resize2'": model(nodes=[inner]).SerializeToString(),
        "an overload": model(
            nodes=[NodeProto(op_type="Add", input=["x", "x"], output=["y"], overload="o")]
        ).SerializeToString(),
    }


LATER = {
    "Gelu": 20, "RMSNormalization": 23, "RotaryEmbedding": 23, "Attention": 24, "Swish": 24,
    "TensorScatter": 24,
}  # fmt: skip


@pytest.mark.parametrize("version", [18, 23, 24])
def test_operators_take_as_many_inputs_as_onnx_says(version):
    """Of all versions that exports declare, and older ones; what came later, in the first that has it."""
    for name, (least, most, outputs) in ONNX_OPERATORS.items():
        first = LATER.get(name, 18)
        known = onnx.defs.get_schema(name, max(first, version), "")
        assert known.min_input == least, name
        assert min(known.max_input, 1 << 16) == most, name
        assert min(known.max_output, 1 << 16) == outputs, name


@pytest.mark.parametrize("name", hidden())
def test_what_our_graphs_never_have_is_refused(tmp_path, name):
    (line,) = problems(tmp_path, hidden()[name])
    assert name in line
    assert "not an ONNX graph of this tool" in line


@pytest.mark.parametrize(
    "content",
    [b"", b"no graph at all, but text\n", b"\x80\x05K\x01.", b"PK\x03\x04", b"\xff" * 40, b"\x08\x0a",
     model(external()).SerializeToString()[:-3]],
)  # fmt: skip
def test_files_that_are_no_graphs_are_refused(tmp_path, content):
    (line,) = problems(tmp_path, content)
    assert "not an ONNX graph of this tool" in line


def test_a_graph_of_absurd_size_is_not_even_read(tmp_path):
    with (tmp_path / "g.onnx").open("wb") as stream:
        stream.truncate(MAX_GRAPH_BYTES + 1)
    (line,) = check_graph(tmp_path, "g.onnx", SIZES)
    assert "larger than 64 MiB" in line


def test_a_graph_of_very_many_fields_is_given_up(monkeypatch):
    monkeypatch.setattr("export.artifact.onnx_header.MAX_FIELDS", 1000)
    assert MAX_FIELDS > 1000
    with pytest.raises(MalformedError, match="more than 1000 fields"):
        read_tensors(b"\x2a\x00" * 1001)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("content", [b"text", model(external(offset=1)).SerializeToString()])
def test_an_artifact_with_such_a_graph_is_refused_before_onnx_runtime_sees_it(
    tmp_path, monkeypatch, content, verify
):
    from export.runtime.runtime import Runtime

    for name in ("vision", "embed"):
        (tmp_path / f"{name}.onnx").write_bytes(model().SerializeToString())
    (tmp_path / "decoder.onnx").write_bytes(content)
    (tmp_path / "weights.bin").write_bytes(bytes(512))
    write_manifest(tmp_path, **facts.manifest_fields())

    def loaded(*_: object, **__: object) -> None:
        pytest.fail("ONNX Runtime was started")

    monkeypatch.setattr("export.backends.onnxruntime.OnnxSession", loaded)
    with pytest.raises(ArtifactError, match=r"decoder\.onnx"):
        Runtime.load(tmp_path, verify=verify)
    with pytest.raises(ArtifactError, match=r"decoder\.onnx"):
        Artifact.open(tmp_path, verify=verify)


def test_a_graph_in_a_folder_of_the_artifact_finds_its_weights_beside_it(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "g.onnx").write_bytes(model(external()).SerializeToString())
    assert check_graph(tmp_path, "sub/g.onnx", {"sub/weights.bin": 512}) == []
    assert len(check_graph(tmp_path, "sub/g.onnx", {"weights.bin": 512})) == 1
