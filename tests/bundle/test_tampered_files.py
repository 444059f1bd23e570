"""Files of an unsigned bundle that were changed: each is refused where it is used, and none reaches an answer."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.support import chains, models
from tests.support.bundles import built, stated

import hasten
from hasten.bundle import MANIFEST, read, write
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import InputError, IntegrityError
from hasten.serving.models.opening import ModelSettings, open_bundle
from hasten.testing import models as real

ROW = np.array([[1, 2, 3, 4]], np.float32)
ANSWER = ROW.tolist()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle that answers with its inputs, with each kind of file that one may have."""
    parts = []
    for name in ("w", "e"):
        (tmp_path / name).mkdir()
        parts.append(built(tmp_path / name, models.solid(tmp_path), OnnxRuntime(threads=1)))
    path = tmp_path / "model.hasten"
    evidence = {"trials.json": [1], "curve.json": []}
    write(path, stated(*parts), evidence, {"report.html": b"<p>"}, [{"x": ROW}])
    return path


def winner(bundle: Path, cache: Path) -> list[list[float]]:
    with hasten.load(bundle, cache=cache) as opened:
        found: list[list[float]] = opened(ROW)["y"].tolist()
        return found


def exact(bundle: Path, cache: Path) -> list[list[float]]:
    with hasten.load(bundle, which="exact", cache=cache) as opened:
        found: list[list[float]] = opened(ROW)["y"].tolist()
        return found


def kept(bundle: Path, cache: Path) -> list[list[float]]:
    with hasten.load(bundle, cache=cache) as opened:
        found: list[list[float]] = opened.requests[0]["x"].tolist()
        return found


def served(bundle: Path, cache: Path) -> list[list[float]]:
    opened = open_bundle(bundle, ModelSettings(compiled=str(cache), most_rows=1))
    try:
        (request,) = opened.requests
        (answer,) = (one.run(request)["y"].tolist() for one in opened.sessions)
        assert opened.standby is not None
        assert opened.standby.run(request)["y"].tolist() == answer
        found: list[list[float]] = answer
        return found
    finally:
        opened.close()


USES: dict[Callable[[Path, Path], list[list[float]]], set[str]] = {
    winner: {"model/solid.onnx"},
    exact: {"exact/solid.onnx"},
    kept: {"model/solid.onnx", "requests.raw"},
    served: {"model/solid.onnx", "exact/solid.onnx", "requests.raw", "evidence/curve.json"},
}
"""Ways to use a bundle, with the files that each of them reads."""


@pytest.mark.parametrize("use", USES, ids=["winner", "exact", "kept", "served"])
def test_whoever_reads_a_changed_file_is_told_and_the_others_answer_as_before(
    bundle: Path, tmp_path: Path, use: Callable[[Path, Path], list[list[float]]]
) -> None:
    cache = tmp_path / "cache"
    assert use(bundle, cache) == ANSWER  # and fills the cache
    names = [p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()]
    assert len(names) == 7
    assert USES[use] < {*names}
    for name in names:
        file = bundle / name
        data = file.read_bytes()
        file.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
        if name in {MANIFEST, *USES[use]}:
            with pytest.raises(IntegrityError) as error:
                use(bundle, cache)
            assert name == MANIFEST or Path(name).name in str(error.value)
        else:
            assert use(bundle, cache) == ANSWER
        with pytest.raises(IntegrityError):
            read(bundle)  # as `hasten inspect` does
        file.write_bytes(data)
    assert use(bundle, cache) == ANSWER


@pytest.mark.parametrize("engine", [OnnxRuntime(threads=1), OpenVino(threads=1), CompiledC()])
def test_a_file_that_is_changed_after_the_opening_changes_no_later_session(
    tmp_path: Path, engine: OnnxRuntime | OpenVino | CompiledC
) -> None:
    part = built(tmp_path, real.small_cnn(tmp_path), engine)
    path, cache = tmp_path / "b", tmp_path / "cache"
    write(path, stated(part, None), {})
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
    for _ in range(2):  # the second time from the cache
        with hasten.load(path, sessions=2, cache=cache) as opened:
            expected = opened(x)["logits"]
            artifact = opened.manifest.winner.artifact
            files = [path / name for name in (artifact.path, *artifact.files)]
            before = [file.read_bytes() for file in files]
            for file, data in zip(files, before, strict=True):
                file.write_bytes(bytes(len(data)))
            y = np.zeros_like(expected)
            with contextlib.suppress(IntegrityError):  # bound calls may take a session of their own
                opened.bind({"x": x}, {"logits": y})()
                np.testing.assert_array_equal(y, expected)
            np.testing.assert_array_equal(opened(x)["logits"], expected)
        with pytest.raises(IntegrityError, match="was changed after it was written"):
            hasten.load(path, cache=cache)
        for file, data in zip(files, before, strict=True):
            file.write_bytes(data)


def test_a_bundle_of_a_chain_answers_from_no_changed_file(tmp_path: Path) -> None:
    detector, classifier = chains.detector(tmp_path), chains.classifier(tmp_path)
    line = f"{detector}+crop+{classifier}"
    hasten.chain(line).close()
    artifact = read(classifier).winner.artifact
    for name in (artifact.path, *artifact.files):
        file = classifier / name
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(InputError, match=r"colour: .* was changed after it was written"):
            hasten.chain(line)
        file.write_bytes(data)
    record = json.loads((classifier / MANIFEST).read_bytes())
    record["why"] += "!"
    (classifier / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"^colour: "):
        hasten.chain(line)
