"""Voice detectors on the compiled engine, whose branch on the sampling rate is settled by the data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from click.testing import CliRunner
from tests.support import models
from tests.support.quick import quick_runs
from tests.support.servers import ServerThread, place_of
from tritonclient.utils import InferenceServerException

import hasten
from hasten.bundle import Loaded
from hasten.cli import main
from hasten.core.tensors import Array
from hasten.errors import InputError

COUNT, STEPS = 120, 5
REFUSED = (
    "input 'rate' must be 16000, as in all of the data that the model was optimized with: got 8000; for "
    "other values, optimize the model with data that has them"
)
NOTE = (
    "the model that ships takes the input rate as a constant, 16000 as in all of the data: it refuses other "
    "values"
)
LINE = "constant:     rate is 16000: the model refuses other values\n"


def speech(rate: int = 16_000) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {
        "audio": rng.standard_normal((COUNT, 256), np.float32),
        "state": rng.standard_normal((COUNT, 8), np.float32),
        "rate": np.full(COUNT, rate),
    }


def result_of(model: Path, data: dict[str, Array], **options: Any) -> hasten.Result:
    with quick_runs(races=False):
        return hasten.optimize(
            model,
            data,
            out=model.with_suffix(".hasten"),
            max_drop=0.3,
            metric="agreement:speech",
            engines=["compiled"],
            **options,
        )


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> hasten.Result:
    """A detector that answers each request by itself; its bundle keeps no requests."""
    model = models.voice_detector(tmp_path_factory.mktemp("detector"))
    return result_of(model, speech(), keep_requests=False)


@pytest.fixture(scope="module")
def carrying(tmp_path_factory: pytest.TempPathFactory) -> hasten.Result:
    """A detector with an LSTM, whose states a session carries."""
    model = models.recurrent_detector(tmp_path_factory.mktemp("recurrent"))
    rng = np.random.default_rng(0)
    data = {
        "audio": rng.standard_normal((COUNT, STEPS, 256), np.float32),
        "rate": np.full(COUNT, 16_000),
    }
    return result_of(model, data, states={"h": "hn", "c": "cn"})


@pytest.fixture(scope="module")
def server(result: hasten.Result, carrying: hasten.Result) -> Iterator[ServerThread]:
    places = place_of(result.bundle, "detector"), place_of(carrying.bundle, "recurrent")
    with ServerThread(*places, grpc=True) as running:
        yield running


@pytest.fixture
def loaded(result: hasten.Result) -> Iterator[Loaded]:
    with hasten.load(result.bundle) as opened:
        yield opened


def request(rate: int = 16_000) -> dict[str, Array]:
    return {name: rows[:1] for name, rows in speech().items()} | {"rate": np.array(rate)}


def tensors(module: Any, given: dict[str, Array]) -> list[Any]:
    found = []
    for name, array in given.items():
        datatype = "INT64" if name == "rate" else "FP32"
        found.append(module.InferInput(name, list(array.shape), datatype))
        found[-1].set_data_from_numpy(array)
    return found


@pytest.mark.seconds
def test_people_see_it_in_the_result_and_in_the_bundle(
    result: hasten.Result, carrying: hasten.Result
) -> None:
    for one in (result, carrying):
        assert NOTE in one.notes
        assert NOTE in (one.bundle / "report.html").read_text()
        assert LINE in CliRunner().invoke(main, ["inspect", str(one.bundle)]).output


def test_its_answers_are_the_models(loaded: Loaded, result: hasten.Result) -> None:
    reference = onnxruntime.InferenceSession(result.bundle.with_suffix(".onnx"))
    wanted = dict(zip(("speech", "next"), reference.run(None, request()), strict=True))
    for name, array in loaded(request()).items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-5, atol=1e-6)


def test_another_rate_is_refused_in_python(loaded: Loaded) -> None:
    with pytest.raises(InputError) as caught:
        loaded(request(8_000))
    assert str(caught.value) == REFUSED


def test_another_rate_is_a_bad_request_over_http(server: ServerThread) -> None:
    inputs = [
        {
            "name": name,
            "datatype": "INT64" if name == "rate" else "FP32",
            "shape": list(array.shape),
            "data": array.ravel().tolist(),
        }
        for name, array in request(8_000).items()
    ]
    asked = Request(
        f"http://{server.host}/v2/models/detector/infer", json.dumps({"inputs": inputs}).encode()
    )
    with pytest.raises(HTTPError) as caught:
        urlopen(asked)
    assert caught.value.code == 400
    assert json.loads(caught.value.read()) == {"error": REFUSED}


def test_another_rate_is_an_invalid_argument_over_grpc(server: ServerThread) -> None:
    with triton_grpc.InferenceServerClient(server.grpc_url) as client:
        with pytest.raises(InferenceServerException) as caught:
            client.infer("detector", tensors(triton_grpc, request(8_000)))
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
        assert caught.value.message() == REFUSED
        answer = client.infer("detector", tensors(triton_grpc, request()))
        assert answer.as_numpy("speech").shape == (1, 2)


def test_a_session_carries_the_states_and_another_rate_changes_none(
    carrying: hasten.Result,
) -> None:
    reference = onnxruntime.InferenceSession(carrying.bundle.with_suffix(".onnx"))
    steps = np.random.default_rng(5).standard_normal((4, 1, 256)).astype(np.float32)
    rate, other = np.array(16_000), np.array(8_000)
    h = c = np.zeros((1, 1, 8), np.float32)
    with hasten.load(carrying.bundle) as opened:
        session = opened.session()
        for audio in steps:
            wanted, h, c = reference.run(None, {"audio": audio, "rate": rate, "h": h, "c": c})
            with pytest.raises(InputError) as caught:
                session(audio=audio, rate=other)
            assert str(caught.value) == REFUSED
            answer = session(audio=audio, rate=rate)["speech"]
            np.testing.assert_allclose(answer, wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(session.states["h"], h, rtol=1e-5, atol=1e-6)
        assert session.steps == 4


def test_a_served_sequence_refuses_another_rate_and_goes_on(
    server: ServerThread, carrying: hasten.Result
) -> None:
    steps = np.random.default_rng(6).standard_normal((3, 1, 256)).astype(np.float32)
    with (
        hasten.load(carrying.bundle) as opened,
        triton.InferenceServerClient(server.host) as client,
    ):
        session = opened.session()
        for place, audio in enumerate(steps):
            right = {"audio": audio, "rate": np.array(16_000)}
            named = {"sequence_id": 3, "sequence_start": place == 0}
            answer = client.infer("recurrent", tensors(triton, right), **named)
            np.testing.assert_array_equal(answer.as_numpy("speech"), session(right)["speech"])
            wrong = {**right, "rate": np.array(8_000)}
            with pytest.raises(InferenceServerException) as caught:
                client.infer("recurrent", tensors(triton, wrong), sequence_id=3)
            assert caught.value.status() == "400"
            assert caught.value.message() == REFUSED


def test_new_data_with_another_rate_is_refused_by_name(result: hasten.Result) -> None:
    with pytest.raises(InputError) as caught, quick_runs(races=False):
        hasten.bench(result.bundle, data=speech(8_000), rounds=4)
    assert REFUSED in str(caught.value)
