"""Sequences whose states the server keeps, asked by Triton's own clients over HTTP and gRPC."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tests.support import models, recurrent
from tests.support.servers import ONE_THREAD, ServerThread, bundle_of, place_of
from tests.support.waiting import until
from tritonclient.utils import InferenceServerException

from hasten.core.sequences import Sequences
from hasten.core.tensors import Array
from hasten.engines.base import Engine
from hasten.engines.compiled.engine import CompiledC
from hasten.errors import CandidateError
from hasten.serving.models import batching
from hasten.serving.models.sequences import StepTicket
from hasten.serving.models.served import Ticket
from hasten.serving.protocol.errors import ProtocolError
from hasten.serving.protocol.requests import Answer, Query, SequenceStep
from hasten.serving.state import Limits

CARRIED = Sequences((("h", "h_out"),))
ENGINES = {"onnxruntime": ONE_THREAD, "compiled": CompiledC()}
Ask = Callable[..., Any]
Unrolled = Callable[..., tuple[Array, Array]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sequences")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return recurrent.gru(folder)


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return ENGINES[request.param]


@pytest.fixture(scope="module")
def bundle(folder: Path, model: Path, engine: Engine) -> Path:
    return bundle_of(folder, model, engine=engine, sequences=CARRIED)


@pytest.fixture
def unrolled(model: Path, engine: Engine) -> Unrolled:
    """The engine's own loop over steps."""
    return partial(recurrent.unrolled, model, engine=engine)


@pytest.fixture(scope="module")
def server(folder: Path, bundle: Path) -> Iterator[ServerThread]:
    with ServerThread(
        place_of(bundle, most_wait_ns=60 * 10**9),
        place_of(bundle, "brief", deadline_ns=1_000_000),
        place_of(bundle, "impatient", most_wait_ns=1_000),
        place_of(bundle, "few", most_sequences=2),
        place_of(bundle, "fleeting", sequence_idle_ns=1),
        place_of(bundle, "none", most_sequences=0),
        place_of(bundle_of(folder, models.slow(folder, 20)), "stateless"),
        grpc=True,
        control=True,
    ) as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def ask(request: pytest.FixtureRequest, server: ServerThread) -> Iterator[Ask]:
    module: Any = triton if request.param == "http" else triton_grpc
    url = server.host if request.param == "http" else server.grpc_url
    with module.InferenceServerClient(url) as client:

        def asked(x: Array, name: str = "gru", **place: Any) -> Any:
            tensor = module.InferInput("x", [1, recurrent.WIDE], "FP32")
            tensor.set_data_from_numpy(x.reshape(1, -1))
            return client.infer(name, [tensor], **place)

        yield asked


def refusal(ask: Callable[[], Any]) -> str:
    with pytest.raises(InferenceServerException) as caught:
        ask()
    return str(caught.value.message())


def test_two_sequences_at_once_answer_as_a_loop_does(ask: Ask, unrolled: Unrolled) -> None:
    steps = recurrent.sequences(2, 6, seed=1)
    got: dict[Any, list[Array]] = {11: [], "eleven": []}
    for t in range(6):
        for number, id_ in enumerate(got):
            answer = ask(
                steps[number, t], sequence_id=id_, sequence_start=t == 0, sequence_end=t == 5
            )
            assert answer.as_numpy("h_out") is None
            got[id_].append(answer.as_numpy("scores")[0])
    for number, id_ in enumerate(got):
        np.testing.assert_array_equal(got[id_], unrolled(steps[number])[0])


def test_a_start_begins_the_sequence_anew(ask: Ask, unrolled: Unrolled) -> None:
    steps = recurrent.sequences(1, 4, seed=2)[0]
    for t in range(2):
        ask(steps[t], sequence_id=21, sequence_start=t == 0)
    again = [
        ask(x, sequence_id=21, sequence_start=t == 0, sequence_end=t == 3).as_numpy("scores")[0]
        for t, x in enumerate(steps)
    ]
    np.testing.assert_array_equal(again, unrolled(steps)[0])


@pytest.mark.parametrize("module", [triton, triton_grpc])
@pytest.mark.parametrize("fair", [True, False])
def test_no_client_goes_on_with_anothers_sequence(
    bundle: Path, tmp_path: Path, module: Any, fair: bool
) -> None:
    tokens = {"one": "the-token-of-the-one", "other": "the-token-of-the-other"}
    file = tmp_path / "tokens"
    file.write_text(
        "".join(f'[{n}]\nscopes = ["infer"]\ntoken = "{t}"\n' for n, t in tokens.items())
    )
    file.chmod(0o600)
    limits = Limits(fair=fair)
    with ServerThread(place_of(bundle), grpc=True, tokens=file, limits=limits) as server:
        url = server.host if module is triton else server.grpc_url
        with module.InferenceServerClient(url) as client:

            def ask(name: str, x: Array, **place: Any) -> Any:
                tensor = module.InferInput("x", [1, recurrent.WIDE], "FP32")
                tensor.set_data_from_numpy(x.reshape(1, -1))
                key = "Authorization" if module is triton else "authorization"
                headers = {key: f"Bearer {tokens[name]}"}
                return client.infer("gru", [tensor], sequence_id=7, headers=headers, **place)

            x = recurrent.sequences(1, 1)[0, 0]
            ask("one", x, sequence_start=True)
            assert refusal(partial(ask, "other", x)).startswith(
                "there is no sequence 7: it was not started"
            )
            ask("other", x, sequence_start=True, sequence_end=True)
            ask("one", x, sequence_end=True)


def test_a_sequence_that_has_not_begun_or_has_ended_is_refused(ask: Ask) -> None:
    x = recurrent.sequences(1, 1)[0, 0]
    assert refusal(partial(ask, x, sequence_id="never")) == (
        "there is no sequence 'never': it was not started here; start it with a request that "
        "sets sequence_start"
    )
    ask(x, sequence_id=31, sequence_start=True, sequence_end=True)
    assert refusal(partial(ask, x, sequence_id=31)) == (
        "there is no sequence 31: it has ended; start it with a request that sets sequence_start"
    )


def test_who_comes_after_the_idle_time_is_told_so(ask: Ask) -> None:
    x = recurrent.sequences(1, 1)[0, 0]
    ask(x, "fleeting", sequence_id=41, sequence_start=True)
    assert refusal(partial(ask, x, "fleeting", sequence_id=41)) == (
        "there is no sequence 41: it had no request for 1e-09 s, so its state is gone; start it "
        "with a request that sets sequence_start"
    )


def test_no_more_sequences_than_allowed_are_kept(ask: Ask) -> None:
    name, most = "few", 2
    x = recurrent.sequences(1, 1)[0, 0]
    for id_ in range(1, most + 1):
        ask(x, name, sequence_id=id_, sequence_start=True)
    assert refusal(partial(ask, x, name, sequence_id=99, sequence_start=True)) == (
        f"{most} sequences are open, which is the limit: end some with sequence_end, or retry later"
    )
    for id_ in range(1, most + 1):
        ask(x, name, sequence_id=id_, sequence_end=True)
    ask(x, name, sequence_id=99, sequence_start=True, sequence_end=True)


def test_one_of_several_servers_refuses_to_keep_sequences(ask: Ask) -> None:
    x = recurrent.sequences(1, 1)[0, 0]
    assert refusal(partial(ask, x, "none", sequence_id=51, sequence_start=True)) == (
        "'none' keeps no sequences here, because there are several servers, and none of them "
        "knows which one has a state: send the states as inputs (h)"
    )


def sent(server: ServerThread, *names: str, **place: Any) -> Any:
    client = triton.InferenceServerClient(server.host)
    arrays = {
        "x": recurrent.sequences(1, 1, seed=3)[0],
        "h": np.full((1, recurrent.HIDDEN), 0.5, np.float32),
    }
    tensors = []
    for name in names:
        tensor = triton.InferInput(name, list(arrays[name].shape), "FP32")
        tensor.set_data_from_numpy(arrays[name])
        tensors.append(tensor)
    try:
        return client.infer("gru", tensors, **place)
    finally:
        client.close()


def test_without_a_sequence_the_states_are_inputs_and_outputs(
    server: ServerThread, unrolled: Unrolled
) -> None:
    want, state = unrolled(
        recurrent.sequences(1, 1, seed=3)[0],
        np.full((1, recurrent.HIDDEN), 0.5, np.float32),
    )
    answer = sent(server, "x", "h")
    np.testing.assert_array_equal(answer.as_numpy("scores"), want)
    np.testing.assert_array_equal(answer.as_numpy("h_out"), state)


def test_a_state_that_is_sent_in_a_sequence_is_refused(server: ServerThread) -> None:
    said = refusal(lambda: sent(server, "x", "h", sequence_id=61, sequence_start=True))
    assert said == (
        "the server carries the state 'h' of a sequence: leave it out, or leave out sequence_id"
    )


def test_a_state_is_sent_where_it_is_asked_for(server: ServerThread) -> None:
    wanted = [triton.InferRequestedOutput("h_out")]
    answer = sent(
        server, "x", outputs=wanted, sequence_id=62, sequence_start=True, sequence_end=True
    )
    assert answer.as_numpy("h_out").shape == (1, recurrent.HIDDEN)
    assert answer.as_numpy("scores") is None
    parameters = answer.get_response()["parameters"]
    assert parameters == {"sequence_id": 62, "sequence_start": True, "sequence_end": True}


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (
            {"sequence_id": -1},
            "the parameter 'sequence_id' must be a whole number below 2^64, or a text of at most 128 "
            "characters; got -1",
        ),
        (
            {"sequence_id": 1, "sequence_start": 1},
            "the parameter 'sequence_start' must be true or false; got 1",
        ),
        (
            {"sequence_start": True},
            "sequence_start and sequence_end need a sequence_id other than 0 and the empty text",
        ),
    ],
)
def test_parameters_of_another_form_are_refused(
    server: ServerThread, parameters: dict[str, Any], said: str
) -> None:
    body = {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 12], "data": [0] * 12}],
        "parameters": parameters,
    }
    with pytest.raises(HTTPError) as caught:
        urlopen(f"{server.http_url}/v2/models/gru/infer", json.dumps(body).encode())
    assert (caught.value.code, json.load(caught.value)) == (400, {"error": said})


def test_ids_of_64_bits_are_whole(server: ServerThread) -> None:
    place = {"sequence_id": 2**64 - 1, "sequence_start": True, "sequence_end": True}
    answer = sent(server, "x", **place)
    assert answer.get_response()["parameters"]["sequence_id"] == 2**64 - 1


def test_many_threads_with_sequences_of_their_own_never_mix(
    server: ServerThread, unrolled: Unrolled
) -> None:
    steps = recurrent.sequences(8, 12, seed=4)

    def one(number: int) -> Array:
        client = triton.InferenceServerClient(server.host)
        found = []
        for t, x in enumerate(steps[number]):
            tensor = triton.InferInput("x", [1, recurrent.WIDE], "FP32")
            tensor.set_data_from_numpy(x[np.newaxis])
            answer = client.infer(
                "gru",
                [tensor],
                sequence_id=1000 + number,
                sequence_start=t == 0,
                sequence_end=t == 11,
            )
            found.append(answer.as_numpy("scores")[0])
        client.close()
        return np.stack(found)

    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(one, range(8)))
    for number in range(8):
        want = unrolled(steps[number])[0]
        np.testing.assert_allclose(got[number], want, rtol=1e-5, atol=1e-6)
    assert server.call(lambda: served(server)._batching.scheduler.idle)


def served(server: ServerThread, name: str = "gru") -> Any:
    return server.server.state.repository.find(name)


def queued(
    server: ServerThread,
    steps: Array,
    id_: int,
    *,
    bad: int = -1,
    end: bool = False,
) -> list[Answer | ProtocolError]:
    """Send all steps of a sequence at once, without waiting for answers; step `bad` doesn't fit."""

    async def run() -> list[Answer | ProtocolError]:
        model, futures = served(server), []
        for t, x in enumerate(steps):
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            width = recurrent.WIDE - (t == bad)
            place = SequenceStep(id_, start=t == 0, end=end and t == len(steps) - 1)
            query = Query("gru", "", str(t), {"x": x[np.newaxis, :width]}, sequence=place)
            query.arrived_ns = query.parsed_ns = model._clock_ns()
            try:
                model.accept(query, future.set_result)
            except ProtocolError as failure:
                future.set_result(failure)
            futures.append(future)
        answers: list[Answer | ProtocolError] = await asyncio.gather(*futures)
        return answers

    return server.call(run)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every step run on an engine's thread, so that those behind it wait in line."""
    monkeypatch.setattr(batching, "INLINE_NS", -1)
    monkeypatch.setattr(batching, "_LONE_NS", -1)


@pytest.mark.usefixtures("waiting")
def test_steps_behind_a_first_one_that_fails_are_refused(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(inputs: Any) -> Any:
        raise CandidateError("the engine broke")

    (thread,) = served(server)._batching._threads
    with monkeypatch.context() as patched:
        patched.setattr(thread, "_model", broken)
        answers = queued(server, recurrent.sequences(1, 3, seed=7)[0], 76)
    assert [str(answer) for answer in answers] == [
        "the engine broke",
        *[
            "there is no sequence 76: its first request failed; start it with a request that "
            "sets sequence_start"
        ]
        * 2,
    ]


@pytest.mark.usefixtures("waiting")
def test_requests_that_wait_run_in_the_order_of_arrival(
    server: ServerThread, unrolled: Unrolled
) -> None:
    steps = recurrent.sequences(1, 200, seed=5)[0]
    answers = queued(server, steps, 71, end=True)
    got = [answer.outputs["scores"][0] for answer in answers if isinstance(answer, Answer)]
    np.testing.assert_array_equal(got, unrolled(steps)[0])
    assert server.call(lambda: ("", 71) not in served(server).sequences._records)
    assert server.call(lambda: served(server).idle)


def test_a_step_that_fails_changes_no_state(server: ServerThread, unrolled: Unrolled) -> None:
    steps = recurrent.sequences(1, 5, seed=6)[0]
    answers = queued(server, steps, 72, bad=2, end=True)
    assert [isinstance(answer, Answer) for answer in answers] == [True, True, False, True, True]
    got = [answer.outputs["scores"][0] for answer in answers if isinstance(answer, Answer)]
    want = unrolled(np.delete(steps, 2, axis=0))[0]
    np.testing.assert_array_equal(got, want)


def test_after_a_first_request_that_fails_there_is_no_sequence(server: ServerThread) -> None:
    answers = queued(server, recurrent.sequences(1, 3, seed=7)[0], 73, bad=0)
    assert "takes FP32[batch, 12]; got FP32[1, 11]" in str(answers[0])
    assert str(answers[1]) == (
        "there is no sequence 73: its first request failed; start it with a request that sets "
        "sequence_start"
    )
    assert server.call(lambda: ("", 73) not in served(server).sequences._records)


def arrange(
    server: ServerThread,
    steps: Sequence[Array] | Array,
    places: list[SequenceStep],
    late: int = -1,
    leaves: int = -1,
) -> list[str]:
    """Send steps at once, of which one has no time left, and the client of another leaves; return what each gets."""

    async def run() -> list[str]:
        model, said, tickets = served(server), [""] * len(places), []
        for t, place in enumerate(places):
            query = Query("gru", "", "", {"x": steps[t][np.newaxis]}, sequence=place)
            query.arrived_ns = query.parsed_ns = model._clock_ns()
            query.timeout_ns = int(t == late)

            def done(answer: Answer | ProtocolError, t: int = t) -> None:
                said[t] = str(answer) if isinstance(answer, ProtocolError) else "answered"

            tickets.append(model.accept(query, done))
            if t == leaves:
                tickets[t].cancel()
        while not all(ticket.over for ticket in tickets):
            await asyncio.sleep(0)
        return said

    return server.call(run)


@pytest.mark.usefixtures("waiting")
def test_a_failed_end_leaves_the_sequence_open(server: ServerThread, unrolled: Unrolled) -> None:
    steps = recurrent.sequences(1, 3, seed=10)[0]
    assert arrange(server, steps, [SequenceStep(81, start=True)]) == ["answered"]
    end = SequenceStep(81, end=True)
    assert arrange(server, steps, [end], 0) == ["the deadline had passed when the request arrived"]
    kept = server.call(lambda: served(server).sequences._records["", 81].carrier.states["h"])
    np.testing.assert_array_equal(kept, unrolled(steps[:1])[1])
    assert arrange(server, steps, [SequenceStep(81), end, SequenceStep(81)]) == [
        "answered",
        "answered",
        "there is no sequence 81: it has ended; start it with a request that sets sequence_start",
    ]
    assert server.call(lambda: ("", 81) not in served(server).sequences._records)


@pytest.mark.usefixtures("waiting")
def test_an_end_whose_client_leaves_leaves_the_sequence_open(server: ServerThread) -> None:
    steps = recurrent.sequences(1, 3, seed=11)[0]
    places = [SequenceStep(82, start=True), SequenceStep(82, end=True), SequenceStep(82)]
    assert arrange(server, steps, places, leaves=1) == ["answered", "", "answered"]
    assert arrange(server, steps, [SequenceStep(82, end=True)], leaves=0) == [""]
    assert arrange(server, steps, [SequenceStep(82, end=True)]) == ["answered"]


ANEW = "the sequence {} didn't begin anew, since the request with sequence_start failed: send that again before this one"


@pytest.mark.parametrize("refused_at_once", [True, False])
def test_after_a_failed_start_no_step_goes_on_with_the_older_sequence(
    server: ServerThread, unrolled: Unrolled, refused_at_once: bool
) -> None:
    steps = recurrent.sequences(1, 3, seed=12)[0]
    start, step = SequenceStep(83, start=True), SequenceStep(83)
    assert arrange(server, steps, [start, step]) == ["answered"] * 2
    if refused_at_once:
        assert arrange(server, steps, [start], 0) == [
            "the deadline had passed when the request arrived"
        ]
    else:
        broken = steps.copy()
        broken[0, 3] = np.nan
        assert "would have NaN or Inf after step 0" in arrange(server, broken, [start])[0]
    assert arrange(server, steps, [step, SequenceStep(83, end=True)]) == [ANEW.format(83)] * 2
    scores = []
    for answer in queued(server, steps, 83):
        assert isinstance(answer, Answer)
        scores.append(answer.outputs["scores"])
    np.testing.assert_array_equal(np.concatenate(scores), unrolled(steps)[0])


@pytest.mark.usefixtures("waiting")
def test_steps_behind_a_start_that_fails_never_go_on_with_the_older_sequence(
    server: ServerThread,
) -> None:
    steps = recurrent.sequences(1, 5, seed=13)[0]
    start, step = SequenceStep(84, start=True), SequenceStep(84)
    unlike = [*steps[:2], steps[2, :-1], *steps[3:]]
    told = arrange(server, unlike, [start, step, start, step, step], leaves=3)
    anew = ANEW.format(84)
    assert told == [
        "answered",
        "answered",
        "input 'x': the model takes FP32[batch, 12]; got FP32[1, 11]",
        "",
        anew,
    ]
    assert arrange(server, steps, [step, SequenceStep(84, end=True)]) == [anew] * 2


@pytest.mark.usefixtures("waiting")
def test_after_a_start_that_fails_while_an_earlier_one_runs_steps_are_refused(
    server: ServerThread,
) -> None:
    steps = recurrent.sequences(1, 4, seed=15)[0]
    start, step = SequenceStep(85, start=True), SequenceStep(85)
    told = arrange(server, steps, [start, start, step, SequenceStep(85, end=True)], late=1)
    late = "the deadline passed while earlier requests of the sequence ran"
    assert told == ["answered", late, ANEW.format(85), ANEW.format(85)]


@pytest.mark.usefixtures("waiting")
@pytest.mark.parametrize(
    ("name", "timeout_ns", "said"),
    [
        ("gru", 1_000_000, "the deadline passed while earlier requests of the sequence ran"),
        ("brief", 0, "the deadline passed while earlier requests of the sequence ran"),
        (
            "impatient",
            0,
            "overloaded: earlier requests of the sequence took all the time; retry later",
        ),
    ],
)
def test_a_step_waits_for_its_turn_no_longer_than_it_may(
    server: ServerThread, monkeypatch: pytest.MonkeyPatch, name: str, timeout_ns: int, said: str
) -> None:
    """The step before it runs all the while: it ends only when the one that waits has its answer."""
    (thread,) = served(server, name)._batching._threads
    released, run = threading.Event(), thread._model

    def held(inputs: Any) -> Any:
        released.wait(60)
        return run(inputs)

    monkeypatch.setattr(thread, "_model", held)

    async def ask() -> list[str]:
        model, told, futures = served(server, name), [], []
        for t, x in enumerate(recurrent.sequences(1, 3, seed=14)[0]):
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            place = SequenceStep(91, start=t == 0)
            query = Query("gru", "", "", {"x": x[np.newaxis]}, sequence=place)
            query.arrived_ns = query.parsed_ns = model._clock_ns()
            query.timeout_ns = (0 if name == "gru" else 10**12, timeout_ns, 10**12)[t]

            def done(answer: Answer | ProtocolError, t: int = t, future: Any = future) -> None:
                told.append(f"{t}: {answer if isinstance(answer, ProtocolError) else 'answered'}")
                future.set_result(None)

            model.accept(query, done)
            futures.append(future)
        await futures[1]
        released.set()
        await asyncio.gather(*futures)
        return told

    told = server.call(ask)
    if name == "impatient":  # all that wait there are refused
        assert sorted(told[:2]) == [f"1: {said}", f"2: {said}"]
        assert told[2:] == ["0: answered"]
    else:
        assert told == [f"1: {said}", "0: answered", "2: answered"]
    assert server.call(lambda: served(server, name).idle)


def counts(server: ServerThread) -> Counter[str]:
    """Return how many requests to the model were answered, and failed."""
    found = served(server).statistics
    return server.call(
        lambda: Counter(answered=found.totals["success"].count, failed=found.fail.count)
    )


def test_a_step_with_nan_is_refused_and_the_sequence_goes_on(
    server: ServerThread, unrolled: Unrolled
) -> None:
    steps = recurrent.sequences(1, 4, seed=8)[0]
    broken = steps.copy()
    broken[1, 3] = np.nan
    before = counts(server)
    answers = queued(server, broken, 74, end=True)
    assert str(answers[1]) == (
        "the state 'h' would have NaN or Inf after step 1: the state before it is kept; check that "
        "step's input"
    )
    assert counts(server) - before == Counter(answered=3, failed=1)
    got = [answer.outputs["scores"][0] for answer in answers if isinstance(answer, Answer)]
    want = unrolled(np.delete(steps, 1, axis=0))[0]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("value", [1.0, np.nan], ids=["answered", "refused"])
@pytest.mark.parametrize("where", ["on the loop's thread", "on its own"])
def test_steps_free_their_memory_at_once(
    server: ServerThread, value: float, where: str, request: pytest.FixtureRequest
) -> None:
    """Nothing of a step is part of a cycle: memory isn't held until a collection."""
    if where == "on its own":
        request.getfixturevalue("waiting")
    steps = np.full((50, recurrent.WIDE), value, np.float32)
    steps[0] = 1.0

    def tickets() -> int:
        return sum(type(each) in (Ticket, StepTicket) for each in gc.get_objects())

    queued(server, steps[:1], 76)
    gc.collect()  # what earlier tests left in cycles
    gc.disable()
    try:
        queued(server, steps, 76)
        until(lambda: server.call(tickets) == 0)  # an engine's thread lets go of its last one
    finally:
        gc.enable()


def test_a_client_that_goes_away_leaves_the_sequence_as_it_was(
    server: ServerThread, unrolled: Unrolled
) -> None:
    steps = recurrent.sequences(1, 3, seed=9)[0]

    async def run() -> list[Any]:
        model, futures, tickets = served(server), [], []
        # The engine's threads are busy with nothing, so the second step waits behind the first.
        model.sequences._next, later = lambda record: None, model.sequences._next
        for t, x in enumerate(steps):
            futures.append(asyncio.get_running_loop().create_future())
            query = Query(
                "gru", "", "", {"x": x[np.newaxis]}, sequence=SequenceStep(75, t == 0, t == 2)
            )
            tickets.append(model.accept(query, futures[-1].set_result))
        tickets[1].cancel()
        del model.sequences._next
        later(model.sequences._records["", 75])
        return [await futures[0], await futures[2]]

    answers = server.call(run)
    want = unrolled(steps[[0, 2]])[0]
    np.testing.assert_array_equal([a.outputs["scores"][0] for a in answers], want)


@pytest.mark.usefixtures("waiting")
def test_steps_that_an_unload_refuses_count_once_wherever_they_are(
    folder: Path, model: Path
) -> None:
    """Of one sequence the first step runs, of another it waits in the queue; two wait in the line of each."""
    computed, go_on, answers = threading.Event(), threading.Event(), list[Any]()
    path = bundle_of(folder, model, "unloaded", sequences=CARRIED)
    with ServerThread(place_of(path, "gru", most_rows=1, most_wait_ns=60 * 10**9)) as running:
        repository, gru = running.server.state.repository, served(running)
        (engine,) = gru._batching._threads
        runs = engine._model

        def held(inputs: Any) -> Any:
            outputs = runs(inputs)
            computed.set()
            assert go_on.wait(60.0)
            return outputs

        def ask() -> None:
            engine._model = held
            for id_ in (1, 2):
                for t in range(3):
                    inputs = {"x": np.zeros((1, recurrent.WIDE), np.float32)}
                    query = Query("gru", "", "", inputs, sequence=SequenceStep(id_, start=t == 0))
                    query.arrived_ns = query.parsed_ns = gru._clock_ns()
                    gru.accept(query, answers.append)

        running.call(ask)
        assert computed.wait(60.0)
        running.call(repository.close)
        until(lambda: len(answers) == 5)
        go_on.set()
        until(lambda: len(answers) == 6)
        found = gru.statistics
        counts = running.call(lambda: (found.refusals, found.totals["success"].count))
    assert counts == ({"UNAVAILABLE": 5}, 1)
    assert [isinstance(each, Answer) for each in answers] == [False] * 5 + [True]
    assert {str(each) for each in answers[:5]} == {"the model was unloaded"}
    assert {each.retry_s for each in answers[:5]} == {1.0}


def test_a_model_that_is_replaced_frees_its_sequences(folder: Path, model: Path) -> None:
    path = bundle_of(folder, model, "swapped", sequences=CARRIED)
    with ServerThread(place_of(path), control=True) as server:
        client = triton.InferenceServerClient(server.host)

        def step(**place: Any) -> Any:
            tensor = triton.InferInput("x", [1, recurrent.WIDE], "FP32")
            tensor.set_data_from_numpy(recurrent.sequences(1, 1)[0])
            return client.infer("swapped", [tensor], sequence_id=5, **place)

        step(sequence_start=True)
        old = served(server, "swapped")
        assert len(old.sequences) == 1
        bundle_of(folder, model, "swapped", sequences=CARRIED, extra={"more.json": 1})
        client.load_model("swapped")
        assert refusal(step) == (
            "there is no sequence 5: the model was replaced, and the state belonged to the old "
            "model; "
            "start it with a request that sets sequence_start"
        )
        until(lambda: len(old.sequences) == 0)
        assert 'hasten_sequences{model="swapped"' in metrics_of(server)
        client.unload_model("swapped")
        client.close()


def metrics_of(server: ServerThread) -> str:
    with urlopen(f"{server.http_url}/metrics") as answer:
        return str(answer.read().decode())


def test_the_configuration_names_the_states(server: ServerThread) -> None:
    client = triton.InferenceServerClient(server.host)
    config = client.get_model_config("gru")
    client.close()
    assert config["sequence_batching"] == {
        "max_sequence_idle_microseconds": 60_000_000,
        "state": [{"input_name": "h", "output_name": "h_out"}],
    }
    assert "dynamic_batching" not in config  # the protocol has one or the other
    grpc_client = triton_grpc.InferenceServerClient(server.grpc_url)
    told = grpc_client.get_model_config("gru").config.sequence_batching
    grpc_client.close()
    assert told.max_sequence_idle_microseconds == 60_000_000
    assert [(one.input_name, one.output_name) for one in told.state] == [("h", "h_out")]
