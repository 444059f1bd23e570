"""Requests of several lengths at once: each gets the answer that it gets alone."""

from __future__ import annotations

import concurrent.futures
import json
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import pytest
from tests.support import ragged
from tests.support.bundles import forge, stated
from tests.support.servers import ServerThread, place_of

from hasten.bundle import NotCertifiedHere, load, part, read, write
from hasten.core.shapes import extents
from hasten.core.target import Target
from hasten.core.tensors import Array
from hasten.engines.base import Engine
from hasten.engines.buckets import Buckets
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.engines.padding import Axis, Bucket, Dimension
from hasten.errors import InputError, IntegrityError
from hasten.inputs.models import onnx
from hasten.serving.models import batching
from hasten.serving.models.scheduling import BatchRun

ORT = OnnxRuntime(threads=1, spinning=False)
LENGTH = Dimension((Axis("ids", 1), Axis("mask", 1)), (Axis("states", 1),))
PADDED = Buckets(ORT, ORT, (LENGTH,), (Bucket((8,)), Bucket((16,))))
SAMPLES = ragged.sentences(60, most=20)


def request(place: int) -> dict[str, Array]:
    return {name: rows[place][None] for name, rows in SAMPLES.items()}


def bundle(folder: Path, engine: Engine, lengths: int = 60) -> Path:
    """Write a bundle of the encoder, from data of so many lengths, that keeps requests of several."""
    model = onnx.load(ragged.encoder(folder)).settled_by({n: a[0] for n, a in request(0).items()})
    (folder / "built").mkdir()
    winner = part("a label", (), engine, engine.build(model, Target.host(), folder / "built"))
    shapes = [{name: a[0].shape for name, a in request(n).items()} for n in range(lengths)]
    manifest = stated(winner, winner, status="exact", shapes=extents(model.inputs, shapes))
    write(
        folder / "encoder.hasten",
        manifest,
        {},
        requests=[request(n) for n in range(min(4, lengths))],
    )
    return folder / "encoder.hasten"


def asked(url: str, given: dict[str, Array], name: str = "encoder") -> dict[str, Array]:
    types = {"int64": "INT64", "float32": "FP32"}
    inputs = [
        {"name": n, "datatype": types[str(a.dtype)], "shape": a.shape, "data": a.ravel().tolist()}
        for n, a in given.items()
    ]
    body = json.dumps({"inputs": inputs}).encode()
    with urllib.request.urlopen(f"{url}/v2/models/{name}/infer", body, timeout=60) as answer:
        said = json.load(answer)
    return {
        one["name"]: np.array(one["data"], np.float32).reshape(one["shape"])
        for one in said["outputs"]
    }


@pytest.mark.parametrize("engine", [ORT, PADDED], ids=["open", "buckets"])
def test_each_length_is_answered_as_alone(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: list[set[int]] = []
    run = batching._Thread.run

    def noted(self: batching._Thread, run_: BatchRun[batching.ServerTask]) -> object:
        shared.append({item.inputs["ids"].shape[1] for item in run_.items})
        return run(self, run_)

    monkeypatch.setattr(batching._Thread, "run", noted)
    path = bundle(tmp_path, engine)
    with load(path) as loaded:
        alone = [loaded(request(place)) for place in range(60)]
        assert {r["ids"].shape[1] for r in loaded.requests} == {
            request(n)["ids"].shape[1] for n in range(4)
        }
    with ServerThread(place_of(path)) as server, concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda place: asked(server.http_url, request(place)), range(60)))
    for got, own in zip(answers, alone, strict=True):
        for name, array in own.items():
            assert got[name].shape == array.shape
            np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-5)
    together = [lengths for lengths in shared if len(lengths) > 1]
    if engine is ORT:
        assert together == []  # requests of unlike shapes never share a batch
    assert all(max(one) <= 8 or min(one) > 8 for one in together)  # and of unlike buckets neither


def test_a_height_that_never_varied_is_answered_beside_those_of_a_bucket(tmp_path: Path) -> None:
    width = Dimension((Axis("x", 3),), (Axis("y", 3),))
    padded = Buckets(ORT, ORT, (width,), (Bucket((16,)), Bucket((24,))), least=(10,))
    rng = np.random.default_rng(0)
    sizes = [(16, 24), (16, 20), (20, 20), (20, 24), (16, 18), (16, 9), (20, 9)] * 3
    given = [{"x": rng.standard_normal((1, 3, h, w), np.float32)} for h, w in sizes]
    model = onnx.load(ragged.convolutional(tmp_path)).settled_by({"x": given[0]["x"][0]})
    for name in ("built", "open"):
        (tmp_path / name).mkdir()
    own = part("a label", (), padded, padded.build(model, Target.host(), tmp_path / "built"))
    plain = ORT.build(model, Target.host(), tmp_path / "open")
    shapes = extents(model.inputs, [{"x": (3, 16, w)} for w in range(10, 25)])
    manifest = stated(own, own, status="exact", shapes=shapes)
    path = tmp_path / "convolutional.hasten"
    write(path, manifest, {}, requests=given[:2])
    with ORT.open(plain, Target.host()) as session:
        alone = [session.run(one)["y"] for one in given]
    with ServerThread(place_of(path)) as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
        url = server.http_url
        answers = list(pool.map(lambda one: asked(url, one, "convolutional"), given))
    for got, wanted in zip(answers, alone, strict=True):
        np.testing.assert_allclose(got["y"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("engine", "lengths"), [(ORT, 60), (ORT, 1), (OpenVino(), 1)], ids=["many", "one", "openvino"]
)
def test_a_mask_of_another_length_is_refused_in_one_line(
    engine: Engine, lengths: int, tmp_path: Path
) -> None:
    path = bundle(tmp_path, engine, lengths)
    odd = {
        "ids": np.ones((1, 5), np.int64),
        "mask": np.ones((1, 1), np.int64),
    }  # it could be broadcast
    why = "input 'mask': 'length' is 1 here, and 5 in 'ids': give them the same length"
    with load(path) as loaded:
        with pytest.raises(InputError) as error:
            loaded(odd)
        assert str(error.value) == why
        batch = {"ids": np.ones((2, 5), np.int64), "mask": np.ones((1, 5), np.int64)}
        with pytest.raises(
            InputError, match="is 1 here, and 2 in 'ids': give them the same length"
        ):
            loaded(batch)
    with (
        ServerThread(place_of(path)) as server,
        pytest.raises(urllib.error.HTTPError) as refused,
    ):
        asked(server.http_url, odd)
    assert refused.value.code == 400
    assert json.load(refused.value)["error"] == why


def test_a_certificate_covers_the_sizes_of_the_data_and_says_so_of_others(tmp_path: Path) -> None:
    path = bundle(tmp_path, ORT)
    forge(path, lambda record: record.update(status="certified"))
    longer = {name: np.ones((1, 40), np.int64) for name in ("ids", "mask")}
    with warnings.catch_warnings(), load(path) as loaded:
        warnings.simplefilter("error")
        for place in range(10):
            loaded(request(place))
        with pytest.raises(NotCertifiedHere) as warned:
            loaded(longer)
    assert str(warned.value) == (
        "not certified here: dimension 1 of ids from 3 to 20 there, 40 here"
    )


def test_kept_requests_whose_shapes_dont_fit_are_refused(tmp_path: Path) -> None:
    path = bundle(tmp_path, ORT)
    forge(path, lambda record: record["request_shapes"].pop())
    with pytest.raises(IntegrityError, match="it states 4 requests, and shapes for 3"):
        read(path)
    forge(path, lambda record: record["request_shapes"].append([[1, 2, 3], [1, 2]]))
    with pytest.raises(IntegrityError, match="isn't one of its inputs"):
        read(path)


class Waiting(batching.ServerTask):
    """A request that keeps its answer."""

    __slots__ = ("got",)

    def __init__(self, place: int) -> None:
        self.inputs, self.rows = request(place), 1


def test_unlike_lengths_of_a_bucket_share_a_batch(tmp_path: Path) -> None:
    places = [n for n in range(60) if len(SAMPLES["ids"][n]) <= 8][:5]
    items = [Waiting(place) for place in places]
    assert len({item.inputs["ids"].shape for item in items}) > 1
    with load(bundle(tmp_path, PADDED)) as loaded:
        padder = loaded.padder
        assert padder is not None
        inputs, number = batching._padded(items, padder)
        assert inputs["ids"].shape == (5, 8)
        answers = loaded.run(inputs)
        padder.check(answers, number)
        for row, place in enumerate(places):
            rows = {name: array[row : row + 1] for name, array in answers.items()}
            got = padder.cut(rows, (len(SAMPLES["ids"][place]),))
            for name, array in loaded(request(place)).items():
                np.testing.assert_allclose(got[name], array, rtol=1e-4, atol=1e-5)
