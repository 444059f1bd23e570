import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hasten.core.tensors import BY_VALUE, TensorSpec
from hasten.errors import InputError
from hasten.inputs.models.onnx import load, read
from hasten.inputs.models.source import find_model
from hasten.testing.models import write

LINEAR = """
<ir_version: 10, opset_import: ["" : 20]>
linear (float[batch, 4] x, int64[1] ids) => (float[batch, 3] y)
<float[4, 3] w = {1,2,3,4,5,6,7,8,9,10,11,12}>
{ y = MatMul(x, w) }
"""


def saved(text: str, path: Path) -> Path:
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def external(tmp_path: Path, location: str = "weights.bin") -> Path:
    model = onnx.parser.parse_model(LINEAR)
    weights = numpy_helper.to_array(model.graph.initializer[0])
    # Only raw bytes go to external files; the text form keeps numbers in a field of their own.
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=0)
    return path


def refused(path: Path, custom_ops: tuple[Path, ...] = ()) -> str:
    with pytest.raises(InputError) as error:
        load(path, custom_ops)
    return str(error.value)


def test_inputs_outputs_and_open_dimensions_are_read_from_the_file(tmp_path: Path) -> None:
    path = saved(LINEAR, tmp_path / "a model, with a strange name")
    model = load(path)
    assert model.inputs == (
        TensorSpec("x", "float32", ("batch", 4)),
        TensorSpec("ids", "int64", (1,)),
    )
    assert model.outputs == (TensorSpec("y", "float32", ("batch", 3)),)
    assert (model.path, model.format, model.files, model.request) == (path, "onnx", (), ())


def test_inputs_that_are_initializers_are_no_inputs(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(LINEAR)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    onnx.save(proto, tmp_path / "model.onnx")
    assert [spec.name for spec in load(tmp_path / "model.onnx").inputs] == ["x", "ids"]


def test_a_dimension_without_name_or_with_minus_one_is_open(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(LINEAR)
    proto.graph.input[0].type.tensor_type.shape.dim[0].ClearField("value")
    proto.graph.input[1].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(proto, tmp_path / "model.onnx")
    assert [spec.shape for spec in load(tmp_path / "model.onnx").inputs] == [("?", 4), ("?",)]


def test_an_output_without_shape_is_inferred_or_left_unknown(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(LINEAR)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(proto, tmp_path / "model.onnx")
    assert load(tmp_path / "model.onnx").outputs[0].shape == ("batch", 3)
    proto.graph.node[0].domain = "custom"
    proto.opset_import.append(helper.make_opsetid("custom", 1))
    onnx.save(proto, tmp_path / "model.onnx")
    assert load(tmp_path / "model.onnx").outputs[0].shape == ("...",)


def test_external_data_belongs_to_the_model(tmp_path: Path) -> None:
    model = load(external(tmp_path))
    assert model.files == (tmp_path / "weights.bin",)
    assert model.size_bytes == sum(f.stat().st_size for f in tmp_path.iterdir())


def test_external_data_in_a_subgraph_is_found(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "w")
    onnx.external_data_helper.set_external_data(tensor, "inner.bin", length=16)
    tensor.ClearField("raw_data")
    body = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["y"])],
        "body",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
        [tensor],
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["z"], then_branch=body, else_branch=body)],
        "outer",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [4])],
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    (tmp_path / "inner.bin").write_bytes(bytes(16))
    assert load(path).files == (tmp_path / "inner.bin",)


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.bin").unlink()
    assert refused(path) == (
        f"{path} keeps its weights in {tmp_path / 'weights.bin'}, which is missing: put it next to the model"
    )


def test_truncated_external_data_is_named(tmp_path: Path) -> None:
    path = external(tmp_path)
    with (tmp_path / "weights.bin").open("r+b") as file:
        file.truncate(40)
    assert refused(path) == (
        f"{tmp_path / 'weights.bin'} is cut short: 'w' ends at byte 48, the file at 40"
    )


def test_external_data_without_a_length_is_measured_by_its_shape(tmp_path: Path) -> None:
    path = external(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    entries = [e for e in proto.graph.initializer[0].external_data if e.key == "location"]
    del proto.graph.initializer[0].external_data[:]
    proto.graph.initializer[0].external_data.extend(entries)
    path.write_bytes(proto.SerializeToString())
    assert load(path).files
    (tmp_path / "weights.bin").write_bytes(bytes(47))
    assert refused(path) == (
        f"{tmp_path / 'weights.bin'} is cut short: 'w' ends at byte 48, the file at 47"
    )


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "a/../../b", ""])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    path = external(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = location
    path.write_bytes(proto.SerializeToString())
    assert refused(path) == (
        f"{path}: the data of 'w' is said to be at {location!r}; "
        "external data must lie in the model's folder"
    )


@pytest.mark.parametrize("place", ["initializer", "sparse", "default"])
@pytest.mark.parametrize(
    "location", ["*/_ORT_MEM_ADDR_/*", "_X_MEM_ADDR_", "a*", "a\nb", "\ufffd", b"\xff" * 3]
)
def test_a_tag_for_memory_is_no_file(tmp_path: Path, location: str | bytes, place: str) -> None:
    path = external(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    (tensor,) = proto.graph.initializer
    beside = tmp_path / os.fsdecode(location)
    beside.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "weights.bin").rename(beside)
    tensor.external_data[0].value = location if isinstance(location, str) else "~~~"
    if place == "sparse":
        node = helper.make_node("Constant", [], ["w"])
        node.attribute.add(name="sparse_value").sparse_tensor.values.CopyFrom(tensor)
        proto.graph.node.insert(0, node)
    elif place == "default":
        proto.functions.add(name="f").attribute_proto.add(name="v").t.CopyFrom(tensor)
    if place != "initializer":
        proto.graph.ClearField("initializer")
    path.write_bytes(proto.SerializeToString().replace(b"~~~", b"\xff" * 3))
    assert refused(path) == (
        f"{path}: the data of 'w' is said to be at {location!r}, which isn't the name of a "
        "file; save the model with its weights in a file beside it"
    )


def test_an_offset_that_is_no_number_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "offset":
            entry.value = "zero"
    path.write_bytes(proto.SerializeToString())
    assert (
        refused(path)
        == f"{tmp_path / 'weights.bin'}: the offset or length of 'w' in it isn't a number"
    )


@pytest.mark.parametrize("key", ["offset", "length"])
def test_an_offset_of_thousands_of_digits_is_refused_in_one_line(tmp_path: Path, key: str) -> None:
    path = external(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == key:
            entry.value = "9" * 4300
    path.write_bytes(proto.SerializeToString())
    assert refused(path) == (
        f"{tmp_path / 'weights.bin'} is cut short: 'w' ends past the largest file, the file at 48"
    )


@pytest.mark.parametrize("place", ["initializer", "constant", "default", "external"])
@pytest.mark.parametrize(
    ("dims", "why"),
    [
        ([2**62] * 300, "300 dimensions; 64 are the most"),
        ([1] * 10**6, "1000000 dimensions; 64 are the most"),
        ([-1, 3], "a dimension of the size -1"),
    ],
)
def test_dimensions_that_no_tensor_has_are_refused(
    tmp_path: Path, place: str, dims: list[int], why: str
) -> None:
    path = external(tmp_path) if place == "external" else saved(LINEAR, tmp_path / "m.onnx")
    proto = onnx.load(path, load_external_data=False)
    (tensor,) = proto.graph.initializer
    del tensor.dims[:]
    tensor.dims.extend(dims)
    if place == "constant":
        proto.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    elif place == "default":
        proto.functions.add(name="f").attribute_proto.add(name="v").t.CopyFrom(tensor)
    if place in ("constant", "default"):
        proto.graph.ClearField("initializer")
    path.write_bytes(proto.SerializeToString())
    assert refused(path) == f"{path} is damaged: the tensor 'w' has {why}"


def test_inputs_with_more_dimensions_than_a_tensor_has_are_refused(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(LINEAR)
    for _ in range(63):
        proto.graph.input[0].type.tensor_type.shape.dim.add(dim_value=2**62)
    onnx.save(proto, tmp_path / "m.onnx")
    assert (
        refused(tmp_path / "m.onnx")
        == f"{tmp_path / 'm.onnx'}: input 'x' has 65 dimensions; 64 are the most"
    )


def calling(*calls: list[str], branch: bool = False) -> onnx.ModelProto:
    """Return a model whose functions F0, F1, ... each have nodes of these operators, in a branch or not."""
    functions = []
    for number, kinds in enumerate(calls):
        nodes = [helper.make_node(kind, ["a"], ["b"], domain="f") for kind in kinds]
        if branch:
            inner = helper.make_graph(nodes, "inner", [], [])
            nodes = [helper.make_node("If", ["a"], ["b"], then_branch=inner, else_branch=inner)]
        sets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
        functions.append(helper.make_function("f", f"F{number}", ["a"], ["b"], nodes, sets))
    proto = onnx.parser.parse_model(LINEAR)
    proto.graph.node.append(helper.make_node("F0", ["x"], ["z"], domain="f"))
    proto.functions.extend(functions)
    return proto


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize(
    ("calls", "why"),
    [
        ([["F0"]], "its functions call each other in a circle"),
        ([["F1"], ["F2", "F0"], []], "its functions call each other in a circle"),
        (
            [*([f"F{i + 1}"] * 2 for i in range(24)), ["Abs"]],
            "its functions and their calls make more than 262,144 nodes of it",
        ),
        (
            [*([f"F{i + 1}"] for i in range(2000)), ["Abs"]],
            "its functions call each other more than 100 levels deep",
        ),
        ([["Abs"]] * 10_001, "it has more than 10,000 functions"),
    ],
)
def test_functions_that_become_too_many_nodes_are_refused(
    tmp_path: Path, calls: list[list[str]], why: str, branch: bool
) -> None:
    proto = calling(*calls, branch=branch)
    proto.graph.output[0].type.tensor_type.ClearField("shape")  # so that it is inferred
    onnx.save(proto, tmp_path / "m.onnx")
    assert refused(tmp_path / "m.onnx") == f"{tmp_path / 'm.onnx'} can't be used: {why}"


def test_functions_in_use_are_taken(tmp_path: Path) -> None:
    onnx.save(calling(["F1", "F1"], ["F2"] * 300, ["Abs"]), tmp_path / "m.onnx")
    assert [spec.name for spec in load(tmp_path / "m.onnx").outputs] == ["y"]


@pytest.mark.parametrize("version", [2**40, -1])
def test_an_operator_set_that_is_not_possible_is_refused(tmp_path: Path, version: int) -> None:
    proto = onnx.parser.parse_model(LINEAR)
    proto.opset_import[0].version = version
    onnx.save(proto, tmp_path / "m.onnx")
    assert refused(tmp_path / "m.onnx") == (
        f"{tmp_path / 'm.onnx'} is damaged: version {version} of the operator set 'ai.onnx' isn't possible"
    )


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [([], ["y"]), (["x"], ["y"]), (["x", "w"], [])])
def test_a_node_without_what_its_operator_needs_is_refused(
    tmp_path: Path, inputs: list[str], outputs: list[str], inner: bool
) -> None:
    proto = onnx.parser.parse_model(LINEAR)
    node = helper.make_node("MatMul", inputs, outputs)
    graph = helper.make_graph([node], "inner", [], [])
    proto.graph.node.append(
        helper.make_node("Op", [], [], domain="a", body=graph) if inner else node
    )
    proto.graph.node.append(helper.make_node("Unknown", [], []))
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    assert refused(path) == (
        f"{path} is damaged: a node MatMul has {len(inputs)} inputs and {len(outputs)} outputs; it needs 2 and 1"
    )


def test_no_such_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "no.onnx") == f"no such file: {tmp_path / 'no.onnx'}"
    path = saved(LINEAR, tmp_path / "model.onnx")
    assert refused(path, (tmp_path / "ops.so",)) == f"no such file: {tmp_path / 'ops.so'}"


@pytest.mark.parametrize("name", ["m.onnx", "m.pt2", "m.pt", "m.json", "m"])
def test_a_pipe_or_a_device_is_refused_unopened(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "pipe", Path("/dev/zero")):
        path = tmp_path / name
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        for reader in (load, read, find_model):
            with pytest.raises(InputError) as error:
                reader(path)
            assert str(error.value) == (
                f"{path} is a pipe or a device, not a file: save what comes from it to a file, and give that"
            )


def test_a_folder_is_no_onnx_file(tmp_path: Path) -> None:
    assert refused(tmp_path) == (
        f"{tmp_path} is a folder that has no ONNX file, no config.json (Hugging Face) and no saved_model.pb "
        "(TensorFlow): give the model's file, or a folder with one of these"
    )
    (tmp_path / "config.json").write_text("{}")
    assert refused(tmp_path) == (
        f"{tmp_path}/config.json has none of architectures, auto_map and model_type, so the folder isn't one of "
        "Hugging Face: give the model's file, or a folder that save_pretrained wrote"
    )
    path = saved(LINEAR, tmp_path / "model.onnx")
    assert (
        refused(tmp_path)
        == f"{tmp_path} is a folder, not an ONNX file: give the file in it, {path}"
    )
    (tmp_path / "net.mlpackage").mkdir()
    assert refused(tmp_path / "net.mlpackage") == (
        f"{tmp_path}/net.mlpackage is a Core ML model: give the model that it was converted from, as an ONNX file or "
        "in its own framework"
    )


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 64, b"hello, this is no model\n" * 9, b"\x08\x04" + bytes(90)]
)
def test_what_is_not_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert refused(path) == f"{path} is not an ONNX file, or it is cut short"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("m.xml", b"<a/>", "an XML file, as OpenVINO and PMML have them"),
        ("m.mlmodel", b"\x08\x04", "a Core ML model"),
        ("m.pdmodel", b"", "a PaddlePaddle model"),
    ],
)
def test_a_file_of_another_runtime_is_named_with_a_step(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert refused(tmp_path / name) == (
        f"{tmp_path / name} is {told}, not an ONNX file: give the model that it was converted from, as an ONNX file "
        "or in its own framework"
    )


HDF5 = (
    "an HDF5 file| save a Keras model as .keras, as in keras.models.load_model('model.h5').save('model.keras'); if it "
    "contains weights alone, build the network in a my.py, load them there and give my.py:model"
)
GRAPH = (
    "a graph of TensorFlow 1| convert it, as in python -m tf2onnx.convert --graphdef frozen.pb --inputs x:0 "
    "--outputs y:0 --output model.onnx, and give the ONNX file"
)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("model", b"PK\x03\x04" + bytes(90), "an archive| unpack it, and give the model in it"),
        ("m.tar", b"", "an archive| unpack it, and give the model in it"),
        ("model", bytes(257) + b"ustar", "an archive| unpack it, and give the model in it"),
        ("m.h5", b"\x89HDF\r\n", HDF5),
        ("m.h5", b"", HDF5),
        ("m.pb", b"\n\x05\n\x01x\x12\x00", GRAPH),
        ("saved_model.pb", b"", "the graph of a SavedModel| give the folder that it is in"),
        (
            "model",
            b"GGUF\x03",
            "a GGUF file| hasten takes no models that write text token by token; give another model as an ONNX file",
        ),
        (
            "m.plan",
            b"\x01",
            "a TensorRT engine, compiled for one kind of GPU| give the ONNX file that it was built from",
        ),
        (
            "model",
            b'\x10\x00\x00\x00\x00\x00\x00\x00{"a":1}',
            "a file of weights without their network| build the network in a my.py, load the weights there and give "
            "my.py:model",
        ),
    ],
)
def test_a_file_of_another_format_is_named_by_its_content_or_suffix(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(content)
    kind, _, step = told.partition("|")
    assert refused(tmp_path / name) == f"{tmp_path / name} is {kind}, not an ONNX file:{step}"


def test_a_model_is_read_whatever_its_files_suffix_says(tmp_path: Path) -> None:
    path = saved(LINEAR, tmp_path / "model.engine")
    assert load(path).inputs[0].name == "x"


def test_an_onnx_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    path = saved(LINEAR, tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes()[:-20])
    assert refused(path) == f"{path} is not an ONNX file, or it is cut short"


def test_a_git_lfs_pointer_is_recognized(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert refused(path) == f"{path} is a Git LFS pointer, not the model: run `git lfs pull`"


def test_a_file_past_two_gibibytes_is_told_to_use_external_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)
    assert refused(path) == (
        f"{path} is larger than the 2 GiB that a protobuf file can be: "
        "save the model with its weights as external data"
    )


def test_external_data_behind_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "from-elsewhere").mkdir()
    path = external(tmp_path / "from-elsewhere")
    secret = tmp_path / "secret"
    (path.parent / "weights.bin").rename(secret)
    (path.parent / "weights.bin").symlink_to(secret)
    name = onnx.load(path, load_external_data=False).graph.initializer[0].name
    assert refused(path) == (
        f"{path}: the data of {name!r} is said to be at 'weights.bin', a link to {secret}; "
        "external data must lie in the model's folder: copy it there if you trust the model"
    )


def test_a_model_and_its_external_data_may_be_links_into_one_folder(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    file = external(tmp_path / "blobs")
    for one in (file, file.parent / "weights.bin"):
        (tmp_path / "snapshot" / one.name).symlink_to(Path("..") / "blobs" / one.name)
    model = load(tmp_path / "snapshot" / file.name)
    assert model.files == (tmp_path / "snapshot" / "weights.bin",)


def test_external_data_past_two_gibibytes_is_taken(tmp_path: Path) -> None:
    path = external(tmp_path)
    with (tmp_path / "weights.bin").open("r+b") as file:
        file.truncate(3 * 2**30)
    assert load(path).size_bytes > 3 * 2**30


def test_a_model_without_inputs_or_outputs_is_refused(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(LINEAR)
    path = tmp_path / "model.onnx"
    outputs = list(proto.graph.output)
    del proto.graph.output[:]
    onnx.save(proto, path)
    assert refused(path) == f"{path} has no outputs: there is nothing to compare"
    proto.graph.output.extend(outputs)
    del proto.graph.input[:]
    onnx.save(proto, path)
    assert refused(path) == f"{path} has no inputs: there is nothing to make faster"


def test_sequences_maps_and_text_are_refused_by_name(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(LINEAR)
    path = tmp_path / "model.onnx"
    scores = helper.make_value_info(
        "scores",
        helper.make_sequence_type_proto(
            helper.make_map_type_proto(
                TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
            )
        ),
    )
    proto.graph.output.append(scores)
    onnx.save(proto, path)
    told = f"{path}: output 'scores' is a sequence, and only tensors can be compared: "
    assert refused(path) == (
        told + "export the model with outputs that are tensors in its place, or without it"
    )
    del proto.graph.output[1]
    proto.graph.input.append(helper.make_tensor_value_info("words", TensorProto.STRING, [1]))
    onnx.save(proto, path)
    assert refused(path) == (
        f"{path}: input 'words' contains text; only numbers are supported: turn text into numbers "
        "before the model, and export only the part after that"
    )
    proto.graph.node.append(helper.make_node("Scaler", ["y"], ["z"], domain="ai.onnx.ml"))
    onnx.save(proto, path)
    assert refused(path) == (
        f"{path}: input 'words' contains text; only numbers are supported: turn text into numbers "
        "before the model, and export only the part after that; or give the fitted scikit-learn pipeline or "
        "booster itself, as my.py:model or in Python: its columns and classes may be texts"
    )
    proto.graph.input[2].CopyFrom(scores)
    onnx.save(proto, path)
    step = "export the model with inputs that are tensors in its place, or without it"
    assert refused(path) == (
        f"{path}: input 'scores' is a sequence, and only tensors can be given: {step}"
    )
    optional = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    proto.graph.input[2].CopyFrom(helper.make_value_info("mask", optional))
    onnx.save(proto, path)
    assert refused(path) == (
        f"{path}: input 'mask' is an optional, and only tensors can be given: {step}"
    )


@pytest.mark.parametrize(
    ("kind", "name", "usual"),
    [("BFLOAT16", "bfloat16", "float32"), ("INT4", "int4", "int8"), ("UINT4", "uint4", "uint8")],
)
def test_numbers_of_a_type_that_numpy_lacks_are_refused(
    tmp_path: Path, kind: str, name: str, usual: str
) -> None:
    proto = onnx.parser.parse_model(LINEAR)
    path = tmp_path / "model.onnx"
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.DataType.Value(kind)
    onnx.save(proto, path)
    assert refused(path) == (
        f"{path}: output 'y' is {name}, which NumPy doesn't have, so it can't be compared: export the model "
        f"with {usual} outputs, and let it cast them itself"
    )
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.DataType.Value(kind)
    onnx.save(proto, path)
    assert refused(path) == (
        f"{path}: input 'x' is {name}, which NumPy doesn't have, so it can't be given: export the model with "
        f"{usual} inputs, and let it cast them itself"
    )


def test_inputs_of_unknown_rank_or_type_are_refused(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(LINEAR)
    path = tmp_path / "model.onnx"
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(proto, path)
    assert refused(path) == f"{path}: input 'x' has no shape; save the model with it"
    proto.graph.input[0].type.tensor_type.elem_type = 0
    onnx.save(proto, path)
    assert refused(path) == f"{path}: input 'x' has no element type; save the model with it"


@pytest.mark.parametrize(
    "name", ["given", "made", "weights", "biases", "node_1", "Gemm", "alpha", "batch"]
)
def test_a_name_that_is_no_text_is_refused(tmp_path: Path, name: str) -> None:
    """The protobuf library gives such names as bytes, wherever they are."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
        net (float[batch, 2] given) => (float[batch, 1] made)
        <float[2, 1] weights = {1, 2}, float[1] biases = {3}>
        { [node_1] made = Gemm <alpha = 1.0> (given, weights, biases) }"""
    path = saved(text, tmp_path / "m.onnx")
    damaged = b"\xff" * len(name)
    path.write_bytes(path.read_bytes().replace(name.encode(), damaged))
    assert refused(path) == f"{path} is damaged: the name {damaged!r} in it isn't text"


@pytest.mark.parametrize(
    ("outputs", "nodes", "axes"),
    [
        ("int64[found, 2] y", "above = Greater (x, zero) f = NonZero (above) y = Transpose (f)", [BY_VALUE]),
        ("float[?, 6] y", "above = Greater (x, zero) m = Reshape (above, flat) y = Compress<axis = 0> (x, m)", [BY_VALUE]),
        ("float[t] y", "y = Unique (x)", [BY_VALUE]),
        ("float[t] y, int64[1] z", "y = Unique (x) s = Shape (y) z = Identity (s)", [BY_VALUE, 1]),
        ("float[t, 6] y", "s = Shape (x) f = NonZero (s) y = Expand (x, s)", ["t"]),
        ("float[t, 6] y", "f = NonZero (x) y = Relu (x)", ["t"]),
        ("float[N, 6] y", "f = NonZero (x) p = Transpose (f) v = GatherND (x, p) y = ScatterND (x, p, v)", ["N"]),
        ("float y", "u = Unique (x) y = ReduceSum<keepdims = 0> (u)", [None]),
    ],
)  # fmt: skip
def test_a_first_axis_that_values_size_is_told_from_the_batch_s(
    tmp_path: Path, outputs: str, nodes: str, axes: list[object]
) -> None:
    text = f"m (float[N, 6] x) => ({outputs}) <float zero = {{0}}, int64[1] flat = {{-1}}> {{ {nodes} }}"
    specs = load(write(tmp_path / "m.onnx", text, {})).outputs
    assert [spec.shape[0] if spec.shape else None for spec in specs] == axes


def test_an_axis_that_values_size_within_a_branch_is_found(tmp_path: Path) -> None:
    text = """m (float[N, 6] x) => (float[t] y) <float zero = {0}> {
        highest = ReduceMax<keepdims = 0> (x)
        some = Greater (highest, zero)
        y = If (some) <
            then_branch = a () => (float[s] u) { u = Unique (x) },
            else_branch = b () => (float[r] v) { v = Unique (x) }
        >
    }"""
    (spec,) = load(write(tmp_path / "m.onnx", text, {})).outputs
    assert spec.shape == (BY_VALUE,)
