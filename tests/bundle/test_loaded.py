"""An open bundle: its answers, its inputs, and what loading brings with it."""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.bundles import built, forge, stated

from hasten.bundle import (
    Part,
    load,
    part,
    write,
)
from hasten.core.target import Target
from hasten.engines.base import Engine
from hasten.engines.litert.engine import LiteRt
from hasten.engines.null import Null
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import InputError, IntegrityError
from hasten.inputs.models.onnx import load as load_onnx
from hasten.testing import models

ENGINE = OnnxRuntime(threads=1)
X = np.arange(16, dtype=np.float32).reshape(1, 16)


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


def test_a_bundle_without_its_exact_model_says_so(tmp_path: Path, winner: Part) -> None:
    write(tmp_path / "b", stated(winner, None), {})
    with pytest.raises(InputError) as error:
        load(tmp_path / "b", which="exact")
    assert (
        str(error.value)
        == f"{tmp_path / 'b'} was made with keep_exact=False: it contains no exact model"
    )


def test_an_engine_by_import_path_is_not_imported_from_a_bundle(bundle: Path) -> None:
    forge(bundle, lambda record: record["winner"]["engine"].update(type="os:system"))
    with pytest.raises(IntegrityError) as error:
        load(bundle)
    assert str(error.value) == (
        "the engine 'os:system' isn't installed: it's no engine of hasten's own; there are: "
        f"{', '.join(Engine.registry)}"
    )


def test_operator_libraries_must_be_those_of_the_making(bundle: Path, tmp_path: Path) -> None:
    library = tmp_path / "ops.so"
    library.write_bytes(b"RegisterCustomOps")
    with pytest.raises(InputError) as error:
        load(bundle, custom_ops=[library])
    assert str(error.value) == (
        "this model needs no operator library; got 1: leave out custom_ops="
    )


# -- inputs


@pytest.fixture
def two(tmp_path: Path) -> Path:
    winner = built(tmp_path, models.two_inputs(tmp_path), ENGINE)
    write(tmp_path / "two", stated(winner, None), {})
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
            "input 'ids' is given twice, by position and by name",
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
    assert str(error.value).startswith("input 'features' is not an array: ")


def test_an_input_without_axes_keeps_none(tmp_path: Path) -> None:
    from onnx import parser, save

    text = '<ir_version: 10, opset_import: ["": 17]> g (float s) => (float y) { y = Neg(s) }'
    save(parser.parse_model(text), tmp_path / "scalar.onnx")
    model = load_onnx(tmp_path / "scalar.onnx").settled_by({"s": np.array(1, np.float32)})
    (tmp_path / "built").mkdir()
    artifact = ENGINE.build(model, Target.host(), tmp_path / "built")
    write(tmp_path / "b", stated(part("s", (), ENGINE, artifact), None), {})
    with load(tmp_path / "b") as loaded:
        assert loaded(np.array(2.0, np.float32))["y"] == -2
        assert loaded(s=np.float32(3))["y"] == -3


def test_an_input_called_self_comes_by_name(tmp_path: Path) -> None:
    from onnx import parser, save

    text = """<ir_version: 10, opset_import: ["": 17]>
    g (float[b, 2] self, float[b, 2] arrays) => (float[b, 2] y) { y = Sub(self, arrays) }"""
    save(parser.parse_model(text), tmp_path / "self.onnx")
    write(tmp_path / "b", stated(built(tmp_path, tmp_path / "self.onnx", ENGINE), None), {})
    given = {"self": np.full((1, 2), 3, np.float32), "arrays": np.ones((1, 2), np.float32)}
    answers = np.empty((1, 2), np.float32)
    with load(tmp_path / "b") as loaded:
        assert (loaded(**given)["y"] == 2).all()
        assert (asyncio.run(loaded.answer(**given))["y"] == 2).all()
        loaded.bind(**given, y=answers)()
    assert (answers == 2).all()


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
    ("engine", "brought"),
    [
        (Null(), ""),
        (ENGINE, "hasten.engines.onnxruntime.engine,onnxruntime"),
        (LiteRt(), "ai_edge_litert,hasten.engines.litert.engine"),
    ],
)
def test_loading_brings_no_search_no_pass_and_no_other_engine(
    tmp_path: Path, engine: Engine, brought: str
) -> None:
    winner = built(tmp_path, models.linear_classifier(tmp_path), engine)
    write(tmp_path / "b", stated(winner, None), {})
    watched = [
        *("onnx", "nncf", "scipy", "openvino", "torch", "onnxruntime", "rich", "click"),
        *(
            "hasten.optimization.search",
            "hasten.passes",
            "hasten.passes.base",
            "hasten.inputs.models",
        ),
        *(
            "hasten.certificate",
            "hasten.inputs.data",
            "hasten.core.workers",
            "hasten.measure.candidate",
        ),
        *(
            "hasten.engines.openvino.engine",
            "hasten.engines.onnxruntime.engine",
            "hasten.optimization.optimize",
        ),
        *("hasten.engines.litert.engine", "hasten.engines.litert.tflite.conversion"),
        *("ai_edge_litert", "ai_edge_quantizer"),
        *("hasten.engines.layers", "hasten.engines.estimates", "hasten.engines.weights"),
        *("hasten.engines.onnxruntime.layers", "hasten.bundle.signatures", "hasten.bundle.rows"),
        *("hasten.inputs.pipeline.rows", "hasten.core.c_compiler"),
    ]
    command = [sys.executable, "-W", "error", "-c", IMPORTS, str(tmp_path / "b"), ",".join(watched)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == f"x\n{brought}\n"


def test_an_input_is_checked_after_another_was_good_too(bundle: Path) -> None:
    good = np.ones((1, 16), np.float32)
    with load(bundle) as loaded:
        expected = loaded(good)["logits"]
        for other in (good.astype(np.float64), good[0], np.ones((1, 17), np.float32)):
            with pytest.raises(InputError, match=r"^input 'x': "):
                loaded(other)
            np.testing.assert_array_equal(loaded(good)["logits"], expected)
        strided = np.ones((1, 32), np.float32)[:, ::2]
        np.testing.assert_array_equal(loaded(strided)["logits"], expected)


def test_a_long_address_is_no_file_name() -> None:
    """An address that a storage service signed can be longer than any path."""
    with pytest.raises(InputError, match=r"127\.0\.0\.1"):
        load(f"http://127.0.0.1:1/model.hastenz?signed={'0' * 5000}")
