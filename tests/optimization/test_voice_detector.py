"""A voice detector with a branch on its sampling rate, which made-up requests can't take: all of it works."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from click.testing import CliRunner
from tests.support import models
from tests.support.quick import quick_runs
from tests.support.servers import ServerThread, place_of

import hasten
from hasten.bundle import read
from hasten.cli import main
from hasten.core.tensors import Array
from hasten.errors import HastenError
from hasten.evaluation.loadtest.metadata import Described
from hasten.evaluation.loadtest.payloads import payloads
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.requests import MADE_UP
from hasten.inputs.data.samples import tensors_hash
from hasten.inputs.data.splits import split

COUNT = 120


def speech() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        "audio": rng.standard_normal((COUNT, 256), np.float32),
        "state": rng.standard_normal((COUNT, 8), np.float32),
        "rate": np.full(COUNT, 16_000),
    }


def optimized(folder: Path, engine: str, **options: Any) -> Path:
    out = folder / "vad.hasten"
    with quick_runs(races=False):
        hasten.optimize(
            models.voice_detector(folder),
            speech(),
            out=out,
            max_drop=0.2,
            metric="agreement:speech",
            engines=[engine],
            **options,
        )
    return out


@pytest.fixture(scope="module", params=["onnxruntime", "openvino", "compiled"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return optimized(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return optimized(tmp_path_factory.mktemp("private"), "onnxruntime", keep_requests=False)


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with quick_runs(races=False):
        yield


def asked_over_http(server: ServerThread, request: Mapping[str, Array]) -> Array:
    client = triton.InferenceServerClient(server.host)
    tensors = []
    for name, datatype in (("audio", "FP32"), ("state", "FP32"), ("rate", "INT64")):
        tensor = triton.InferInput(name, list(request[name].shape), datatype)
        tensor.set_data_from_numpy(request[name])
        tensors.append(tensor)
    answer: Array = client.infer("vad", tensors).as_numpy("speech")
    client.close()
    return answer


def test_its_requests_are_samples_that_the_search_saw(bundle: Path) -> None:
    data = ArrayDataset(speech())
    searched = split(data, calibration=300, seed=0).search
    seen = {searched.content_hash(i) for i in range(len(searched))}
    with hasten.load(bundle) as loaded:
        kept = [
            {"audio": one["audio"][0], "state": one["state"][0], "rate": one["rate"]}
            for one in loaded.requests
        ]
    hashes = {tensors_hash(one) for one in kept}
    assert len(hashes) == 4
    assert hashes <= seen


def test_its_ranges_are_of_what_calibrated_and_what_the_search_saw(
    bundle: Path, private: Path
) -> None:
    data = ArrayDataset(speech())
    parts = split(data, calibration=300, seed=0)
    seen = np.concatenate(
        [one.inputs(range(len(one)))["audio"] for one in (parts.calibration, parts.search)]
    )
    found = {one.input: one for one in read(bundle).ranges}
    assert found.keys() == {"audio", "state", "rate"}
    lows, highs = np.array(found["audio"].low), np.array(found["audio"].high)
    assert (lows.min(), highs.max()) == (seen.min(), seen.max())
    assert not found["audio"].leaves(seen)
    assert read(private).ranges == ()


def test_it_is_served_warm(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with hasten.load(bundle) as loaded, ServerThread(place_of(bundle)) as server:
        request = loaded.requests[0]
        np.testing.assert_allclose(
            asked_over_http(server, request), loaded(request)["speech"], rtol=1e-5
        )
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


@pytest.mark.seconds
def test_bench_profile_and_scenarios_ask_what_it_keeps(bundle: Path, tmp_path: Path) -> None:
    for against in (None, models.voice_detector(tmp_path)):
        assert hasten.bench(bundle, against=against, rounds=4).requests == "4 kept in the bundle"
    (only,) = hasten.profile(bundle, requests=2)
    assert (only.failed, only.requests) == ("", "4 kept in the bundle")
    assert hasten.load_test(bundle, "single-stream", duration_s=0.05).requests == only.requests


def test_a_load_test_may_take_its_requests(bundle: Path) -> None:
    inputs = [
        Described("audio", "FP32", (1, 256)),
        Described("state", "FP32", (1, 8)),
        Described("rate", "INT64", ()),
    ]
    sent = payloads(inputs, data=bundle)
    with hasten.load(bundle) as loaded:
        for one, kept in zip(sent, loaded.requests, strict=True):
            for name, array in kept.items():
                np.testing.assert_array_equal(one[name], array)


def test_people_see_that_samples_are_in_it(bundle: Path, private: Path) -> None:
    for path, said in (
        (bundle, "4 of the data are in the bundle, to warm up with"),
        (private, "none of the data is in the bundle"),
    ):
        assert f"samples:      {said}\n" in CliRunner().invoke(main, ["inspect", str(path)]).output
        assert said in (path / "report.html").read_text()


def test_without_its_requests_it_is_served_unwarmed(
    private: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with hasten.load(private) as loaded, ServerThread(place_of(private)) as server:
        assert loaded.requests == ()
        request = {name: rows[:1] for name, rows in speech().items()}
        request["rate"] = np.array(16_000)
        np.testing.assert_allclose(
            asked_over_http(server, request), loaded(request)["speech"], rtol=1e-5
        )
    warnings = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "served without a warm-up: the bundle keeps no requests, and a random one failed: ONNX "
    )


def test_without_its_requests_a_failure_says_that_they_were_made_up(private: Path) -> None:
    for run in (
        lambda: hasten.bench(private, rounds=4),
        lambda: hasten.profile(private, requests=2),
        lambda: hasten.load_test(private, "single-stream", duration_s=0.05),
    ):
        with pytest.raises(HastenError) as error:
            run()
        assert str(error.value).endswith(f"; the requests were {MADE_UP}")


def test_data_is_asked_in_the_place_of_what_is_kept(bundle: Path) -> None:
    result = hasten.bench(bundle, data=speech(), rounds=4)
    assert result.requests == "samples of the data"
