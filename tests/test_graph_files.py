"""Every file that a graph reads is named in the manifest, however its author hides it."""

import dataclasses
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from ppd import runtime
from ppd.bundle import file_entry, open_bundle
from ppd.changes import write_manifest
from ppd.errors import BundleError
from ppd.graph_files import external_files, require_named_files
from ppd.manifest import MANIFEST_FILE, manifest_from_bytes
from ppd.signature import FUSED_GRAPH_FILE, GRAPH_FILE
from tests.damage import replace


def outside(name: str, location: str = "elsewhere.bin") -> TensorProto:
    """A tensor whose content lies in another file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value="0")
    return tensor


def hidden(place: str) -> onnx.ModelProto:
    """A model with such a tensor in one of the places that can hold one."""
    model = helper.make_model(helper.make_graph([], "g", [], []))
    tensor, inner = outside("t"), helper.make_graph([], "inner", [], [], initializer=[outside("t")])
    sparse = onnx.SparseTensorProto(values=tensor, indices=outside("i", "indices.bin"), dims=[1])
    attribute = {
        "attribute": helper.make_attribute("a", tensor),
        "attribute's list": helper.make_attribute("a", [tensor]),
        "sub-graph": helper.make_attribute("a", inner),
        "sub-graphs": helper.make_attribute("a", [inner]),
        "sparse attribute": onnx.AttributeProto(name="a", sparse_tensor=sparse),
    }.get(place)
    if attribute is not None:
        model.graph.node.add(op_type="If").attribute.append(attribute)
    elif place == "initializer":
        model.graph.initializer.append(tensor)
    elif place == "sparse initializer":
        model.graph.sparse_initializer.append(sparse)
    else:
        model.functions.add(name="f").node.add(op_type="Constant").attribute.append(helper.make_attribute("a", tensor))
    return model


PLACES = (
    "initializer",
    "sparse initializer",
    "attribute",
    "attribute's list",
    "sub-graph",
    "sub-graphs",
    "sparse attribute",
    "function",
)


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_is_found_wherever_a_graph_can_hold_one(place: str) -> None:
    assert ("t", "elsewhere.bin") in list(external_files(hidden(place).SerializeToString()))


def test_of_a_location_that_stands_twice_the_last_counts_as_for_every_reader() -> None:
    tensor = outside("t", "model.onnx.data")
    entry = tensor.external_data[0].SerializeToString() + b"\x12\x08evil.bin"
    tensor.external_data[0].ParseFromString(entry)
    field = bytes([13 << 3 | 2, len(entry)]) + entry
    raw = TensorProto(name="t").SerializeToString() + field
    model = bytes([5 << 3 | 2, len(raw)]) + raw

    assert tensor.external_data[0].value == "evil.bin"
    assert list(external_files(bytes([7 << 3 | 2, len(model)]) + model)) == [("t", "evil.bin")]


def test_the_graphs_of_an_export_read_files_that_the_manifest_names(tinypy_bundle: Path) -> None:
    opened = open_bundle(tinypy_bundle)
    for role in (GRAPH_FILE, FUSED_GRAPH_FILE):
        require_named_files(opened, role)
        assert {name for _, name in external_files(opened.read_bytes(role))} == {"model.onnx.data", "tree.bin"}


def test_a_graph_that_reads_another_file_is_not_run(own_bundle: Path) -> None:
    model = onnx.load(own_bundle / FUSED_GRAPH_FILE, load_external_data=False)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.external_data)
    tensor.external_data[0].value = "unnamed.bin"
    (own_bundle / "unnamed.bin").hardlink_to(own_bundle / "model.onnx.data")
    replace(own_bundle / FUSED_GRAPH_FILE, model.SerializeToString())
    manifest = manifest_from_bytes((own_bundle / MANIFEST_FILE).read_bytes())
    files = manifest.files | {FUSED_GRAPH_FILE: file_entry(own_bundle, FUSED_GRAPH_FILE)}
    write_manifest(own_bundle, dataclasses.replace(manifest, files=files))

    with pytest.raises(BundleError, match=r"reads the file 'unnamed\.bin', which the manifest does not name"):
        runtime.load(own_bundle, threads=1)


@pytest.mark.parametrize("content", [b"\xff" * 30, b"\x3a\xff\x01", b"\x0b", b"\x3a\x02\x2a"])
def test_what_is_no_model_is_an_error_of_python(content: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        list(external_files(content))
