"""The generator over gRPC, against a real server with another implementation's messages."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.support.load_options import grouped

from hasten.errors import InputError
from hasten.evaluation.loadtest import LoadTestResult, run

grpc = pytest.importorskip("grpc")
pb = pytest.importorskip("tritonclient.grpc.service_pb2")

Infer = Callable[[Any, Any], Any]


class SmallServer:
    """Answers one model's metadata, and inference as it is told to."""

    def __init__(self, infer: Infer) -> None:
        self.asked: list[Any] = []
        self.fields: list[dict[str, str]] = []
        self._infer = infer
        self._server = grpc.server(ThreadPoolExecutor(4))
        handlers = {
            "ModelMetadata": grpc.unary_unary_rpc_method_handler(
                self._metadata,
                request_deserializer=pb.ModelMetadataRequest.FromString,
                response_serializer=pb.ModelMetadataResponse.SerializeToString,
            ),
            "ModelInfer": grpc.unary_unary_rpc_method_handler(
                self._answer,
                request_deserializer=pb.ModelInferRequest.FromString,
                response_serializer=pb.ModelInferResponse.SerializeToString,
            ),
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),)
        )
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.url = f"grpc://127.0.0.1:{port}"
        self._server.start()

    def _metadata(self, request: Any, context: Any) -> Any:
        if request.name != "m":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.name!r} here")
        tensor = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name="m",
            inputs=[tensor(name="x", datatype="FP32", shape=[-1, 2])],
            outputs=[tensor(name="y", datatype="FP32", shape=[-1, 3])],
        )

    def _answer(self, request: Any, context: Any) -> Any:
        self.asked.append(request)
        self.fields.append(dict(context.invocation_metadata()))
        return self._infer(request, context)

    def stop(self) -> None:
        self._server.stop(None).wait()


def right(size_bytes: int = 12) -> Any:
    tensor = {"name": "y", "datatype": "FP32", "shape": [1, 3]}
    return pb.ModelInferResponse(outputs=[tensor], raw_output_contents=[bytes(size_bytes)])


@pytest.fixture
def serve() -> Iterator[Callable[[Infer], SmallServer]]:
    servers = []

    def start(infer: Infer) -> SmallServer:
        servers.append(SmallServer(infer))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def load(server: SmallServer, rate_per_s: float = 50.0, **options: Any) -> LoadTestResult:
    given: dict[str, Any] = {"warmup_s": 0.0, "grace_s": 30.0, "arrivals": "constant", **options}
    return run(server.url, "m", rate_per_s, 0.2, **grouped(given))


def kinds(found: LoadTestResult) -> dict[tuple[str, str], int]:
    return {(one.kind, one.status): one.count for one in found.outcomes}


def test_calls_are_made_and_their_answers_checked(serve: Any, tmp_path: Any) -> None:
    (tmp_path / "token").write_text("s3cret")
    server = serve(lambda request, context: right())
    found = load(server, deadline_s=600.0, token_file=tmp_path / "token", version="2")
    assert kinds(found) == {("ok", "OK"): 10}
    assert found.offered.encoding == "gRPC"
    assert found.goodput_per_s == 50.0
    asked = server.asked[0]
    assert (asked.model_version, asked.parameters["timeout"].int64_param) == ("2", 600_000_000)
    assert len(asked.raw_input_contents[0]) == 8
    assert server.fields[0]["authorization"] == "Bearer s3cret"


def test_a_server_that_stalls_shows_it_over_grpc_too(serve: Any) -> None:
    def slow(request: Any, context: Any) -> Any:
        time.sleep(0.05)
        return right()

    # 50 requests of 0.05 s on four threads come to 0.6 s, and are due within 0.2 s.
    found = load(serve(slow), 250.0)
    assert kinds(found) == {("ok", "OK"): 50}
    assert max(found.latency_ns) > 0.3e9


def test_refusals_deadlines_and_errors_are_told_apart(serve: Any) -> None:
    codes = ["RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "INVALID_ARGUMENT"]
    count = 0

    def refusing(request: Any, context: Any) -> Any:
        nonlocal count
        code = codes[count % 4]
        count += 1
        context.abort(grpc.StatusCode[code], f"as {code}")

    found = load(serve(refusing), 40.0, connections=1)
    assert {key: one.message for key, one in zip(kinds(found), found.outcomes, strict=True)} == {
        ("late", "DEADLINE_EXCEEDED"): "as DEADLINE_EXCEEDED",
        ("refused", "RESOURCE_EXHAUSTED"): "as RESOURCE_EXHAUSTED",
        ("refused", "UNAVAILABLE"): "as UNAVAILABLE",
        ("error", "INVALID_ARGUMENT"): "as INVALID_ARGUMENT",
    }
    assert set(kinds(found).values()) == {2}


def test_a_short_answer_is_a_wrong_one(serve: Any) -> None:
    found = load(serve(lambda request, context: right(8)))
    assert kinds(found) == {("broken", "OK"): 10}
    assert found.outcomes[0].message == "output 'y': [1, 3] of FP32 are 12 bytes, but 8 came"


def test_what_is_never_answered_over_grpc_is_unanswered(serve: Any) -> None:
    over = threading.Event()

    def silent(request: Any, context: Any) -> Any:
        over.wait(300)
        return right()

    try:
        assert kinds(load(serve(silent), 20.0, grace_s=0.1)) == {("unanswered", ""): 4}
    finally:
        over.set()


def test_a_grpc_server_that_goes_away_loses_requests(serve: Any) -> None:
    def leaving(request: Any, context: Any) -> Any:
        if len(server.asked) == 3:
            server.stop()
        return right()

    server = serve(leaving)
    found = load(server, connections=1)  # so that the third comes alone
    assert found.count("connection") >= 5
    assert found.count("refused") == 0


def test_a_grpc_server_that_isnt_there_is_one_clear_line() -> None:
    with pytest.raises(
        InputError, match=r"^can't reach grpc://127.0.0.1:1: .+; does a server run there"
    ):
        run("grpc://127.0.0.1:1", "m", 10.0, 1.0)


def test_a_wrong_model_is_said_with_the_grpc_servers_message(serve: Any) -> None:
    server = serve(lambda request, context: right())
    with pytest.raises(InputError) as raised:
        run(server.url, "n", 10.0, 1.0)
    assert str(raised.value) == (
        f"{server.url} answers NOT_FOUND to the model 'n': no model 'n' here"
    )
