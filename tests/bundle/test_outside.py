"""A bundle answers from its own files alone, as they were when they were checked."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime import SessionOptions
from tests.support import models
from tests.support.bundles import built, forge, stated

from hasten.bundle import artifact_of, load, read, write
from hasten.bundle.packing.writer import pack
from hasten.core.target import Target
from hasten.engines.base import Engine
from hasten.engines.external_data import external_locations
from hasten.engines.litert.engine import LiteRt
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import CandidateError, InputError, IntegrityError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.spool import write_spool
from hasten.measure.workbench import Bench

_SIZE = 256
_GATHERS = (
    '<ir_version: 10, opset_import: ["" : 20]> m (int64[b, 1] x) => (float[b, 1, 256] y) '
    "<float[256, 256] w> { y = Gather(w, x) }"
)
_PLACE = np.full((1, 1), 7)


@pytest.fixture
def external(tmp_path: Path) -> Path:
    model = models.built(tmp_path / "m", _GATHERS, external=True)
    part = built(tmp_path, model.path, OnnxRuntime(threads=1))
    write(tmp_path / "model.hasten", stated(part, part), {})
    return tmp_path / "model.hasten"


def _secret(bundle: Path, location: str, engine: str = "") -> None:
    """Point a bundle's weights elsewhere, with all its sums made to fit."""
    file = bundle / "model" / "model.onnx"
    proto = onnx.load(str(file), load_external_data=False)
    (tensor,) = proto.graph.initializer
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = location

    def change(record: dict[str, Any]) -> None:
        for part in ("winner", "exact"):
            record[part]["artifact"]["files"] = []
            if engine:
                record[part]["engine"] = {"type": engine}
        del record["files"]["model/model.data"]

    forge(bundle, change, {"model/model.onnx": proto.SerializeToString()})


@pytest.mark.parametrize("attack", ["elsewhere", "unlisted"])
def test_what_a_cache_keeps_of_a_model_opens_none_with_weights_outside(
    external: Path, tmp_path: Path, attack: str
) -> None:
    """An opening that finds a model in the cache needn't read its file; "unlisted" leaves that file as it is."""
    cache, file = tmp_path / "cache", external / "model" / "model.onnx"

    def unlisted(record: dict[str, Any]) -> None:
        for part in ("winner", "exact"):
            record[part]["artifact"]["files"] = []
        del record["files"]["model/model.data"]

    for found in (False, True):
        with load(external, cache=cache) as loaded:
            assert loaded.from_cache is found
    before = file.read_bytes()
    if attack == "elsewhere":
        (tmp_path / "secret").write_bytes((external / "model" / "model.data").read_bytes())
        _secret(external, "../../secret")
    else:
        forge(external, unlisted)
    assert (file.read_bytes() == before) == (attack == "unlisted")
    for path in (external, pack(external).path):
        for which in ("winner", "exact"):
            with pytest.raises(IntegrityError, match="isn't one of the bundle's files"):
                load(path, cache=cache, which=which)


_TAG = "*/_ORT_MEM_ADDR_/*"


@pytest.mark.parametrize("which", ["beside", "above", "absolute", "link", "memory"])
def test_weights_outside_the_listed_files_are_refused(
    external: Path, tmp_path: Path, which: str
) -> None:
    secret = tmp_path / "secret"
    (external / "model" / "model.data").rename(secret)
    location = {
        "beside": "unlisted.data",
        "above": "../../secret",
        "absolute": str(secret),
        "link": "linked.data",
        "memory": _TAG,
    }[which]
    (external / "model" / "unlisted.data").write_bytes(secret.read_bytes())
    (external / "model" / "linked.data").symlink_to(secret)
    _secret(external, location)
    said = (
        f"{external}/model/model.onnx: it refers to weights or compiled parts in "
        f"{location!r:.100}, which isn't one of the bundle's files for this model"
    )
    for path in (external, pack(external).path):
        with pytest.raises(IntegrityError) as error:
            load(path)
        assert str(error.value).split(": ", 1)[1] == said.split(": ", 1)[1]
    manifest = read(external)
    with pytest.raises(IntegrityError):  # as bench, certify and profile open it, too
        artifact_of(external, manifest.winner, manifest, ())


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "location", [_TAG, "*/_ORT_NATIVE_ENDIAN_MEM_ADDR_/*", "_X_MEM_ADDR_", "a*", "\ufffd"]
)
def test_a_tag_for_memory_is_refused_beside_a_listed_file_of_its_name(
    external: Path, location: str, engine: str
) -> None:
    """Such a file satisfied the check, and OpenVINO read the offset as an address of this process."""
    listed = external / "model" / location
    listed.parent.mkdir(parents=True, exist_ok=True)
    _secret(external, location, engine)

    def change(record: dict[str, Any]) -> None:
        for part in ("winner", "exact"):
            record[part]["artifact"]["files"] = [f"model/{location}"]

    forge(external, change, {f"model/{location}": (external / "model" / "model.data").read_bytes()})
    (external / "model" / "model.data").unlink()
    with pytest.raises(IntegrityError) as error:
        load(external, cache=False)
    assert str(error.value) == (
        f"{external}/model/model.onnx: it refers to weights or compiled parts in "
        f"{location!r:.100}, which isn't one of the bundle's files for this model"
    )


@pytest.mark.parametrize("cached", [False, True])
def test_weights_beside_an_ir_that_are_not_listed_are_not_read(
    tmp_path: Path, cached: bool
) -> None:
    bundle, cache = _bundle(tmp_path, OpenVino(threads=1)), tmp_path / "cache" if cached else False
    if cached:
        for found in (False, True):
            with load(bundle, cache=cache) as loaded:
                assert loaded.from_cache is found

    def change(record: dict[str, Any]) -> None:
        for part in ("winner", "exact"):
            record[part]["artifact"]["files"] = []
        del record["files"]["model/model.bin"]

    forge(bundle, change)
    with pytest.raises(CandidateError):
        load(bundle, cache=cache)


def test_a_location_is_found_however_it_is_hidden() -> None:
    where = onnx.StringStringEntryProto(key="location", value="../x")
    tensor = TensorProto(name="w", external_data=[where])
    constant = onnx.NodeProto(attribute=[onnx.AttributeProto(name="value", t=tensor)])
    inner = onnx.GraphProto(node=[constant])
    branch = onnx.NodeProto(attribute=[onnx.AttributeProto(name="then_branch", g=inner)])
    sparse = onnx.SparseTensorProto(values=tensor)
    plain = onnx.ModelProto(ir_version=10, graph=onnx.GraphProto(initializer=[tensor]))
    hidden = [
        plain,
        onnx.ModelProto(graph=onnx.GraphProto(node=[branch])),
        onnx.ModelProto(graph=onnx.GraphProto(sparse_initializer=[sparse])),
        onnx.ModelProto(functions=[onnx.FunctionProto(node=[constant])]),
        onnx.ModelProto(training_info=[onnx.TrainingInfoProto(algorithm=inner)]),
    ]
    for model in hidden:
        assert external_locations(model.SerializeToString()) == {"../x"}
    whole = plain.SerializeToString()
    group = b"\xa3\x06\x3a\x02\x08\x01\xa4\x06"  # an unknown field, as a group
    odd = b"\x38\x05"  # the graph's number with the type of an integer
    damaged = whole + b"\x3a\xff\x7f"
    wide = whole.replace(b"\x3a", b"\xba\x80\x80\x80\x10", 1)  # bits that parsers drop
    for changed in (group + whole, odd + whole, damaged, wide):
        assert external_locations(changed) == {"../x"}
    assert external_locations(np.random.default_rng(0).bytes(1 << 16)) == set()


@pytest.mark.parametrize("location", ["../../secret", "/etc/passwd", "unlisted.bin"])
def test_a_compiled_part_outside_the_listed_files_is_refused(external: Path, location: str) -> None:
    node = helper.make_node(
        *("EPContext", ["x"], ["y"]),
        domain="com.microsoft",
        embed_mode=0,
        main_context=1,
        ep_cache_context=location,
        source="Qnn",
    )
    graph = helper.make_graph([node], "compiled", [], [])
    proto = helper.make_model(graph)
    (external / "model" / "unlisted.bin").write_bytes(b"compiled")

    def change(record: dict[str, Any]) -> None:
        for part in ("winner", "exact"):
            record[part]["engine"] = {"type": "qnn"}

    forge(external, change, {"model/model.onnx": proto.SerializeToString()})
    manifest = read(external)
    with pytest.raises(IntegrityError) as error:
        artifact_of(external, manifest.winner, manifest, ())
    assert str(error.value) == (
        f"{external}/model/model.onnx: it refers to weights or compiled parts in {location!r}, "
        "which isn't one of the bundle's files for this model"
    )


def test_the_files_of_compiled_parts_are_found_and_other_texts_are_none() -> None:
    compiled = helper.make_node("EPContext", [], [], ep_cache_context="a.bin", notes="b.bin")
    shared = helper.make_node("EPContext", [], [], ep_cache_context="", main_context=0)
    plain = helper.make_node("Other", [], [], notes="ep_cache_context")
    inner = helper.make_graph([compiled], "inner", [], [])
    branch = helper.make_node("If", ["c"], [], then_branch=inner)
    for nodes, found in (
        ([compiled, shared, plain], {"a.bin"}),
        ([branch], {"a.bin"}),
        ([plain], set()),
    ):
        model = helper.make_model(helper.make_graph(nodes, "g", [], []))
        assert external_locations(model.SerializeToString()) == found


def test_a_bundle_whose_functions_double_without_end_is_refused(tmp_path: Path) -> None:
    path = models.built(tmp_path / "m", _GATHERS).path
    part = built(tmp_path, path, OnnxRuntime(threads=1))
    write(tmp_path / "model.hasten", stated(part, part), {})
    file = tmp_path / "model.hasten" / "model" / "model.onnx"
    proto = onnx.load(file)
    sets = [*proto.opset_import, helper.make_opsetid("f", 1)]
    for number in range(25):
        kind, domain = ("Identity", "") if number == 24 else (f"F{number + 1}", "f")
        nodes = [helper.make_node(kind, *way, domain=domain) for way in (("a", "c"), ("c", "b"))]
        proto.functions.append(helper.make_function("f", f"F{number}", ["a"], ["b"], nodes, sets))
    proto.opset_import.append(sets[-1])
    proto.graph.node[0].output[0] = "z"
    proto.graph.node.append(helper.make_node("F0", ["z"], ["y"], domain="f"))
    forge(tmp_path / "model.hasten", files={"model/model.onnx": proto.SerializeToString()})
    with pytest.raises(IntegrityError) as error:
        load(tmp_path / "model.hasten", cache=False)
    assert str(error.value) == (
        f"{tmp_path}/model.hasten/model/model.onnx: its functions and their calls make more than 262,144 nodes of it"
    )


def test_a_file_nested_without_end_is_refused_at_once() -> None:
    data = onnx.StringStringEntryProto(key="location", value="x").SerializeToString()
    for _ in range(60):
        graph = onnx.GraphProto()
        attribute = onnx.AttributeProto(name="location", type=onnx.AttributeProto.GRAPH)
        node = onnx.NodeProto(name="location").SerializeToString()
        inside = _field(6, data) + attribute.SerializeToString()
        data = _field(1, node + _field(5, inside)) + graph.SerializeToString()
    with pytest.raises(IntegrityError) as error:
        external_locations(_field(7, data))
    assert str(error.value) == "messages are nested more than 100 levels deep"


def _field(number: int, data: bytes) -> bytes:
    size, length = len(data), b""
    while size > 127:
        length, size = length + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data


# -- files that change while they serve


def _bundle(folder: Path, engine: Engine) -> Path:
    external = isinstance(engine, OnnxRuntime)
    model = models.built(folder / "m", _GATHERS, external=external)
    part = built(folder, model.path, engine)
    write(folder / "model.hasten", stated(part, part), {})
    return folder / "model.hasten"


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("engine", [OnnxRuntime(threads=1), OpenVino(threads=1), LiteRt(threads=1)])
def test_answers_stay_where_files_are_overwritten_or_cut_short(
    tmp_path: Path, engine: Engine, cached: bool
) -> None:
    bundle = _bundle(tmp_path, engine)
    cache = tmp_path / "cache" if cached else False
    if cached:
        load(bundle, cache=cache).close()
    with load(bundle, cache=cache, sessions=2) as loaded:
        before = loaded(_PLACE)["y"]
        for file in (bundle / "model").iterdir():
            with file.open("r+b") as opened:
                opened.write(bytes(file.stat().st_size))
        np.testing.assert_array_equal(loaded(_PLACE)["y"], before)
        for file in (bundle / "model").iterdir():
            os.truncate(file, 0)
        np.testing.assert_array_equal(loaded(_PLACE)["y"], before)


@pytest.mark.parametrize("engine", [OnnxRuntime(threads=1), OpenVino(threads=1), LiteRt(threads=1)])
def test_a_bundle_is_measured_from_the_files_that_were_checked(
    tmp_path: Path, engine: Engine
) -> None:
    """Bench, certify, profile and scenarios open bundles in other processes."""
    bundle = _bundle(tmp_path, engine)
    manifest = read(bundle)
    artifact = artifact_of(bundle, manifest.winner, manifest, ())
    bench = Bench(tmp_path / "work", Target.host().with_threads(1))
    bench.folder.mkdir()
    samples = write_spool(ArrayDataset({"x": _PLACE}), tmp_path / "samples")
    opened = bench.open_built(engine, artifact, fresh=False)
    try:
        (before,) = (part["y"] for part in bench.predict(opened, samples))
        assert before.any()
        for file in (bundle / "model").iterdir():
            with file.open("r+b") as changed:
                changed.write(bytes(file.stat().st_size))
        (after,) = (part["y"] for part in bench.predict(opened, samples))
        np.testing.assert_array_equal(after, before)
    finally:
        opened.worker.kill()
    with pytest.raises(InputError) as error:
        bench.open_built(engine, artifact, fresh=False)
    assert str(error.value) == f"{artifact.path} was changed after it was written"


def test_a_later_session_is_not_opened_from_changed_files(external: Path) -> None:
    with load(external, cache=False, sessions=2) as loaded:
        y = np.empty((1, 1, _SIZE), np.float32)
        data = external / "model" / "model.data"
        data.write_bytes(bytes(data.stat().st_size))
        with pytest.raises(IntegrityError) as error:
            loaded.bind({"x": _PLACE}, {"y": y})
        assert str(error.value) == f"{data} was changed after it was written"
        assert loaded(_PLACE)["y"].any()


def test_external_weights_of_a_packed_bundle_are_read(external: Path) -> None:
    with load(external, cache=False) as one, load(pack(external).path, cache=False) as other:
        np.testing.assert_array_equal(one(_PLACE)["y"], other(_PLACE)["y"])
        assert other(_PLACE)["y"].any()


HELD = """
import gc, json, sys
from hasten.bundle import load
from hasten.core.memory_folder import SealedFile
with load(sys.argv[1], cache=False) as one, load(sys.argv[1], cache=False) as two:
    gc.collect()
    maps = [line.split() for line in open("/proc/self/maps")]
    held = {line[4] for line in maps if line[5:] and line[5].startswith("/memfd:hasten")}
    print(json.dumps([len(SealedFile._all), len(held)]))
"""


@pytest.mark.parametrize(
    ("engine", "held"),
    [(OpenVino(threads=1), [2, 1]), (LiteRt(threads=1), [1, 1])],
)
def test_a_copy_is_held_once_and_only_where_it_is_mapped(
    tmp_path: Path, engine: Engine, held: list[int]
) -> None:
    bundle = _bundle(tmp_path, engine)
    done = subprocess.run(
        [sys.executable, "-c", HELD, str(bundle)], check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == held


SEALED = """
import fcntl, json, os, sys
from hasten.bundle import load
with load(sys.argv[1], cache=False):
    paths = {n: f"/proc/self/fd/{n}" for n in range(3, 256)}
    links = {n: os.readlink(path) for n, path in paths.items() if os.path.islink(path)}
    ours = [n for n, link in links.items() if link.startswith("/memfd:hasten")]
    print(json.dumps(sorted({fcntl.fcntl(n, fcntl.F_GET_SEALS) for n in ours})))
"""


@pytest.mark.parametrize("packed", [False, True])
def test_what_engines_open_is_sealed(tmp_path: Path, packed: bool) -> None:
    bundle = _bundle(tmp_path, OpenVino(threads=1))
    command = [sys.executable, "-c", SEALED, str(pack(bundle).path if packed else bundle)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [15]


def test_no_copy_stays_of_what_the_runtime_has_read(external: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELD, str(external)], check=True, capture_output=True, text=True
    )
    sealed, mapped = json.loads(done.stdout.splitlines()[-1])
    copies = hasattr(SessionOptions, "add_external_initializers_from_files_in_memory")
    assert sealed == 0
    assert mapped == 0 or not copies  # versions before 1.24 map external data
