import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hasten.bundle import Manifest, NotCertifiedHere, Part, differences, load, part, read, write
from hasten.engines.base import Engine
from hasten.engines.null import Null
from hasten.engines.onnxruntime import OnnxRuntime
from hasten.errors import InputError, IntegrityError
from hasten.frontends.onnx import load as load_onnx
from hasten.measure.environment import environment
from hasten.metrics.top_k import Top1
from hasten.records import digest, to_record
from hasten.target import Target
from hasten.testing import models

ENGINE = OnnxRuntime(threads=1)
X = np.arange(16, dtype=np.float32).reshape(1, 16)


def made(folder: Path, model: Path, engine: Engine) -> Part:
    loaded = load_onnx(model)
    fill = {s.name: np.zeros([int(n) for n in s.shape[1:]], s.dtype) for s in loaded.inputs}
    built = folder / f"built-{model.stem}"
    built.mkdir()
    artifact = engine.build(loaded.settled_by(fill), Target.host(), built)
    return part("a label", (), engine, artifact)


def manifest(winner: Part, exact: Part | None, **fields: Any) -> Manifest:
    host = Target.host()
    stated = {
        "status": "certified",
        "why": "sure enough",
        "metric": to_record(Top1()),
        "certificate": None,
        "source_sha256": "0" * 64,
        "sealed": {"samples": 0},
        "target": host,
        "environment": environment(host),
        "pipeline": None,
        "created": "2026-01-01T00:00:00+00:00",
    }
    return Manifest(winner=winner, exact=exact, **{**stated, **fields})


@pytest.fixture
def winner(tmp_path: Path) -> Part:
    return made(tmp_path, models.linear_classifier(tmp_path), ENGINE)


@pytest.fixture
def bundle(tmp_path: Path, winner: Part) -> Path:
    path = tmp_path / "model.hasten"
    write(path, manifest(winner, winner), {"trials.json": [1, 2]}, {"report.html": b"<p>"})
    return path


def forged(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and make its digest fit again, as whoever tampers would."""
    record = json.loads((bundle / "manifest.json").read_bytes())
    del record["digest"]
    change(record)
    (bundle / "manifest.json").write_text(json.dumps({**record, "digest": digest(record)}))


def refused(bundle: Path, kind: type[InputError] = IntegrityError) -> str:
    with pytest.raises(InputError) as error:
        read(bundle)
    assert type(error.value) is kind
    return str(error.value)


# -- write, read, load


def test_a_bundle_comes_back_as_it_was_written(tmp_path: Path, winner: Part) -> None:
    path = tmp_path / "deep" / "model.hasten"
    written = write(path, manifest(winner, winner), {"trials.json": {"a": 1}})
    assert read(path) == written
    assert sorted(written.files) == ["evidence/trials.json", "model/linear_classifier.onnx"]
    assert written.winner.artifact.path == Path("model/linear_classifier.onnx")
    assert [p.name for p in path.parent.iterdir()] == ["model.hasten"]


def test_an_exact_model_of_its_own_has_a_folder_of_its_own(tmp_path: Path, winner: Part) -> None:
    exact = made(tmp_path, models.small_cnn(tmp_path), ENGINE)
    written = write(tmp_path / "b", manifest(winner, exact), {})
    assert sorted(written.files) == ["exact/small_cnn.onnx", "model/linear_classifier.onnx"]
    with load(tmp_path / "b", which="exact") as loaded:
        assert loaded(np.zeros((1, 3, 32, 32), np.float32))["logits"].shape == (1, 10)


def test_a_loaded_bundle_answers_as_the_engine_does(bundle: Path, winner: Part) -> None:
    with ENGINE.open(winner.artifact, Target.host()) as session:
        expected = session.run({"x": X})["logits"]
    with load(bundle) as loaded:
        for answer in (loaded(X), loaded(x=X), loaded({"x": X}), loaded(X.T.copy().T)):
            np.testing.assert_array_equal(answer["logits"], expected)
        assert list(loaded(X)) == ["logits"]
        assert loaded.not_certified == ()


def test_a_moved_bundle_still_loads(bundle: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "built-linear_classifier")
    moved = bundle.rename(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(moved)
    with load(tmp_path / "link") as loaded:
        assert loaded(X)["logits"].shape == (1, 4)


def test_an_older_bundle_is_replaced(bundle: Path, winner: Part) -> None:
    write(bundle, manifest(winner, None, why="newer"), {})
    assert read(bundle).why == "newer"
    assert not (bundle / "report.html").exists()
    assert [p for p in bundle.parent.iterdir() if p.name.startswith(".")] == []


def test_what_is_no_bundle_is_never_replaced(tmp_path: Path, winner: Part) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError) as error:
        write(tmp_path / "mine", manifest(winner, None), {})
    path = tmp_path / "mine"
    assert str(error.value) == f"{path} exists and is no bundle; give another --out or remove it"
    assert (path / "thesis.txt").read_text() == "years of work"


def test_a_bundle_without_its_exact_model_says_so(tmp_path: Path, winner: Part) -> None:
    write(tmp_path / "b", manifest(winner, None), {})
    with pytest.raises(InputError) as error:
        load(tmp_path / "b", which="exact")
    assert str(error.value) == f"{tmp_path / 'b'} was made with --no-exact: it holds no exact model"


FULL = """
import resource, signal, sys
from pathlib import Path
from hasten.bundle import read, write
from hasten.errors import InputError
from dataclasses import replace
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
old = read(path)
artifact = old.winner.artifact
inside = replace(artifact, path=path / artifact.path)
winner = replace(old.winner, artifact=inside)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    write(path, replace(old, winner=winner, exact=None), {"big.json": ["x" * 100_000]})
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("most_bytes", [100, 20_000])
def test_a_full_disk_leaves_the_old_bundle_and_nothing_else(bundle: Path, most_bytes: int) -> None:
    before = sorted(bundle.parent.iterdir())
    command = [sys.executable, "-c", FULL, str(bundle), str(most_bytes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == f"can't write {bundle}: File too large\n"
    assert sorted(bundle.parent.iterdir()) == before
    assert read(bundle).why == "sure enough"


# -- damage


def test_no_bundle_at_all_is_the_callers_error(tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert refused(path, InputError) == f"no bundle at {path}: no such file or folder"
    path.mkdir()
    assert refused(path, InputError) == f"{path} is no bundle: it has no manifest.json"
    file = tmp_path / "model.onnx"
    file.touch()
    assert refused(file, InputError) == f"{file} is no bundle: it has no manifest.json"


def test_a_truncated_file_is_named(bundle: Path) -> None:
    file = bundle / "model" / "linear_classifier.onnx"
    size = file.stat().st_size
    os.truncate(file, 10)
    assert refused(bundle) == (
        f"{bundle}: model/linear_classifier.onnx has 10 bytes, {size:,} were written"
    )


def test_a_changed_file_is_named(bundle: Path) -> None:
    file = bundle / "model" / "linear_classifier.onnx"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert refused(bundle) == (
        f"{bundle}: model/linear_classifier.onnx was changed after it was written"
    )


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "report.html").unlink()
    assert refused(bundle) == f"{bundle}: report.html is missing"


def test_a_changed_manifest_is_refused(bundle: Path) -> None:
    file = bundle / "manifest.json"
    file.write_text(file.read_text().replace("sure enough", "very sure!!"))
    assert refused(bundle) == f"{bundle}: the manifest was changed after it was written"


def test_a_truncated_manifest_is_refused(bundle: Path) -> None:
    file = bundle / "manifest.json"
    os.truncate(file, 20)
    assert refused(bundle).startswith(f"{file} can't be read as JSON: ")


@pytest.mark.parametrize("text", ["[]", "{}", '{"schema": "1"}'])
def test_a_manifest_without_a_schema_is_refused(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    assert refused(bundle) == f"{bundle}: the manifest is damaged: it states no schema"


def test_a_manifest_nested_without_end_is_refused(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("[" * 200_000)
    assert refused(bundle).startswith(f"{bundle / 'manifest.json'} can't be read as JSON: ")


def test_a_manifest_too_large_to_read_is_not_read(bundle: Path) -> None:
    os.truncate(bundle / "manifest.json", (16 << 20) + 1)
    assert refused(bundle) == f"{bundle}: the manifest is larger than 16 MiB"


def test_a_bundle_by_a_newer_version_says_what_to_do(bundle: Path) -> None:
    forged(bundle, lambda record: record.update(schema=2, something="new"))
    assert refused(bundle) == (
        f"{bundle} was written by a newer version of hasten (schema 2, this one reads 1); "
        "upgrade hasten"
    )


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "model/../../secret", "a\0b"])
def test_a_path_that_leads_out_is_refused(bundle: Path, name: str) -> None:
    (bundle.parent / "secret").touch()
    forged(bundle, lambda record: record["files"].update({name: ["0", 0]}))
    assert refused(bundle) == f"{bundle}: {name!r} leads out of the bundle"


def test_a_symbolic_link_is_refused_be_it_the_file_or_a_folder_on_the_way(bundle: Path) -> None:
    file = bundle / "model" / "linear_classifier.onnx"
    outside = bundle.parent / "outside"
    shutil.move(bundle / "model", outside)
    (bundle / "model").symlink_to(outside)
    name = "model/linear_classifier.onnx"
    assert refused(bundle) == f"{bundle}: {name!r} leads out of the bundle"
    (bundle / "model").unlink()
    (bundle / "model").mkdir()
    file.symlink_to(outside / file.name)
    assert refused(bundle) == f"{bundle}: {name!r} leads out of the bundle"
    file.unlink()
    file.symlink_to(file)
    assert refused(bundle) == f"{bundle}: {name} is missing"  # a link to itself is no file


def test_a_name_too_long_for_a_file_is_refused(bundle: Path) -> None:
    name = "x" * 5000
    forged(bundle, lambda record: record["files"].update({name: ["0", 0]}))
    assert refused(bundle) == f"{bundle}: {name[:100]} can't be read: File name too long"


def test_a_model_that_is_not_among_the_checked_files_is_refused(bundle: Path) -> None:
    def unlisted(record: dict[str, Any]) -> None:
        record["winner"]["artifact"]["path"] = "../built-linear_classifier/linear_classifier.onnx"

    forged(bundle, unlisted)
    with pytest.raises(IntegrityError) as error:
        load(bundle)
    stray = "../built-linear_classifier/linear_classifier.onnx"
    assert str(error.value) == f"{bundle}: {stray} is not listed in the manifest"


def test_an_engine_by_import_path_is_not_imported_from_a_bundle(bundle: Path) -> None:
    forged(bundle, lambda record: record["winner"]["engine"].update(type="os:system"))
    with pytest.raises(IntegrityError) as error:
        load(bundle)
    assert str(error.value) == (
        f"unknown Engine 'os:system'; this version has: {', '.join(Engine.registry)}"
    )


def test_operator_libraries_must_be_those_of_the_making(bundle: Path, tmp_path: Path) -> None:
    library = tmp_path / "ops.so"
    library.write_bytes(b"RegisterCustomOps")
    with pytest.raises(InputError) as error:
        load(bundle, custom_ops=[library])
    assert str(error.value) == (
        "this model needs 0 operator libraries, the same files as when it was made; got 1"
    )


# -- what is certified here


def test_what_differs_from_the_certified_machine_is_said(tmp_path: Path, winner: Part) -> None:
    host = Target.host()
    there = replace(host, processor="Another CPU", isa=("avx2",), threads=host.threads + 1)
    versions = {**environment(host), "onnxruntime": "0.1"}
    stated = manifest(winner, None, target=there, environment=versions)
    write(tmp_path / "b", stated, {})
    notes = (
        f"processor: Another CPU there, {host.processor} here",
        f"instruction sets: avx2 there, {' '.join(host.isa)} here",
        f"onnxruntime: 0.1 there, {OnnxRuntime.version()} here",
        f"threads: {host.threads + 1} there, {host.threads} here",
    )
    with pytest.warns(NotCertifiedHere) as caught:
        loaded = load(tmp_path / "b")
    with loaded:
        assert loaded.not_certified == notes
        assert loaded(X)["logits"].shape == (1, 4)
    assert [str(w.message) for w in caught] == [f"not certified here: {'; '.join(notes)}"]
    assert caught[0].filename == __file__


def test_more_threads_than_were_certified_are_no_difference(winner: Part) -> None:
    host = Target.host()
    stated = manifest(winner, None, target=replace(host, threads=1))
    assert differences(stated, replace(host, threads=8), environment(host)) == []


@pytest.mark.parametrize(
    ("status", "said"), [("uncertified", ["not certified here: interim"]), ("exact", [])]
)
def test_an_uncertified_bundle_says_so_and_an_exact_one_has_nothing_to_say(
    tmp_path: Path, winner: Part, status: str, said: list[str]
) -> None:
    write(tmp_path / "b", manifest(winner, winner, status=status, why="interim"), {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(tmp_path / "b").close()
        load(tmp_path / "b", which="exact").close()
    assert [str(w.message) for w in caught] == said


def test_requests_of_another_shape_than_the_certified_are_warned_of_once(bundle: Path) -> None:
    note = "x of shape [1, 16] there, [3, 16] here"
    three = np.zeros((3, 16), np.float32)
    for arrays, named in (((three,), {}), ((), {"x": three})):
        with load(bundle) as loaded:
            with pytest.warns(NotCertifiedHere) as caught:
                assert loaded(*arrays, **named)["logits"].shape == (3, 4)
            assert [str(w.message) for w in caught] == [f"not certified here: {note}"]
            assert caught[0].filename == __file__
            assert loaded.not_certified == (note,)
            loaded(np.zeros((5, 16), np.float32))
    with load(bundle, which="exact") as loaded:
        loaded(np.zeros((3, 16), np.float32))


# -- inputs


@pytest.fixture
def two(tmp_path: Path) -> Path:
    winner = made(tmp_path, models.two_inputs(tmp_path), ENGINE)
    write(tmp_path / "two", manifest(winner, None), {})
    return tmp_path / "two"


def test_two_inputs_come_by_place_by_name_or_in_a_mapping(two: Path) -> None:
    features, ids = np.ones((1, 8), np.float32), np.array([[1, 2, 3]])
    with load(two) as loaded:
        expected = loaded(features, ids)
        assert set(expected) == {"score", "same_ids"}
        for answer in (
            loaded(features, ids=ids),
            loaded(ids=ids, features=features),
            loaded({"ids": ids, "features": features}),
            loaded({"ids": ids}, features=features),
            loaded(features, ids.tolist()),
        ):
            for name, array in expected.items():
                np.testing.assert_array_equal(answer[name], array)


FEATURES, IDS = np.ones((1, 8), np.float32), np.ones((1, 3), np.int64)


@pytest.mark.parametrize(
    ("arrays", "named", "said"),
    [
        ((), {}, "the model takes the inputs features, ids; got none"),
        ((FEATURES,), {}, "the model takes the inputs features, ids; got features"),
        ((FEATURES, IDS, IDS), {}, "the model takes 2 inputs; got 3"),
        ((FEATURES,), {"id": IDS}, "the model takes the inputs features, ids; got features, id"),
        (
            (FEATURES, IDS),
            {"ids": IDS},
            "input 'ids' is given twice, by its place and by its name",
        ),
        (
            (FEATURES, IDS.astype(np.int32)),
            {},
            "input 'ids': the model takes ids: int64[batch, 3]; got int32[1, 3]",
        ),
        (
            (FEATURES[0], IDS),
            {},
            "input 'features': the model takes features: float32[batch, 8]; got float32[8]",
        ),
    ],
)
def test_an_input_that_does_not_fit_is_named_with_what_was_expected(
    two: Path, arrays: tuple[Any, ...], named: dict[str, Any], said: str
) -> None:
    with load(two) as loaded, pytest.raises(InputError) as error:
        loaded(*arrays, **named)
    assert str(error.value) == said


def test_what_is_no_array_is_named(two: Path) -> None:
    with load(two) as loaded, pytest.raises(InputError) as error:
        loaded([[1], [2, 3]], IDS)
    assert str(error.value).startswith("input 'features' is no array: ")


def test_an_input_without_axes_keeps_none(tmp_path: Path) -> None:
    from onnx import parser, save

    text = '<ir_version: 10, opset_import: ["": 17]> g (float s) => (float y) { y = Neg(s) }'
    save(parser.parse_model(text), tmp_path / "scalar.onnx")
    model = load_onnx(tmp_path / "scalar.onnx").settled_by({"s": np.array(1, np.float32)})
    (tmp_path / "built").mkdir()
    artifact = ENGINE.build(model, Target.host(), tmp_path / "built")
    write(tmp_path / "b", manifest(part("s", (), ENGINE, artifact), None), {})
    with load(tmp_path / "b") as loaded:
        assert loaded(np.array(2.0, np.float32))["y"] == -2
        assert loaded(s=np.float32(3))["y"] == -3


# -- what loading brings with it

IMPORTS = """
import sys
import hasten
with hasten.load(sys.argv[1]) as loaded:
    for spec in loaded.manifest.winner.artifact.request:
        print(spec.name)
print(*sorted(name for name in sys.modules if name in sys.argv[2].split(",")), sep=",")
"""


@pytest.mark.parametrize(
    ("engine", "brought"), [(Null(), ""), (ENGINE, "hasten.engines.onnxruntime,onnxruntime")]
)
def test_loading_brings_no_search_no_pass_and_no_other_engine(
    tmp_path: Path, engine: Engine, brought: str
) -> None:
    winner = made(tmp_path, models.linear_classifier(tmp_path), engine)
    write(tmp_path / "b", manifest(winner, None), {})
    watched = [
        *("onnx", "nncf", "scipy", "openvino", "torch", "onnxruntime", "rich", "click"),
        *("hasten.search", "hasten.passes", "hasten.passes.base", "hasten.frontends"),
        *("hasten.certificate", "hasten.data", "hasten.measure.process", "hasten.candidate"),
        *("hasten.engines.openvino", "hasten.engines.onnxruntime", "hasten.optimization"),
    ]
    command = [sys.executable, "-W", "error", "-c", IMPORTS, str(tmp_path / "b"), ",".join(watched)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == f"x\n{brought}\n"
