"""Who may do what: tokens with scopes, over real sockets, by HTTP and gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import queue
import resource
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from tests.support.models import solid
from tests.support.servers import ServerThread, bundle_of, place_of
from tests.support.waiting import PATIENCE_S, until

from hasten.cli import main
from hasten.errors import InputError
from hasten.serving import server as server_module
from hasten.serving.changing_files import ChangingFiles
from hasten.serving.grpc.methods import SCOPES
from hasten.serving.observation import metrics
from hasten.serving.protocol.messages import METHODS, SERVICE
from hasten.serving.protocol.rights import Client, Rights, Scope, digest_of
from hasten.serving.protocol.tokens import read_clients

TOKENS = {scope: f"the-token-to-{scope}-with" for scope in ("infer", "read", "control")}
CLIENTS = f"""
[asker]
scopes = ["infer"]
token = "{TOKENS["infer"]}"

[prometheus]
scopes = ["read"]
sha256 = "{hashlib.sha256(TOKENS["read"].encode()).hexdigest()}"

["the operator"]
scopes = ["control"]
token = "{TOKENS["control"]}"
"""
NAMES = {"infer": "asker", "read": "prometheus", "control": "the operator"}
MISSING = "this server requires a token: send Authorization: Bearer TOKEN"
MODEL, VERSION = "/v2/models/{name}", "/v2/models/{name}/versions/{version}"
ROUTES = {
    "read": {
        *("GET /", "GET /live.json", "GET /metrics", "GET /openapi.json", "GET /v2"),
        *("GET /v2/health/live", "GET /v2/health/ready", "GET /v2/models/stats"),
        *(f"GET {MODEL}", f"GET {MODEL}/ready", f"GET {MODEL}/config", f"GET {MODEL}/stats"),
        *(f"GET {VERSION}", f"GET {VERSION}/ready", f"GET {VERSION}/config"),
        *(f"GET {VERSION}/stats", f"GET {VERSION}/monitor", f"GET {MODEL}/monitor"),
        *("GET /v2/trace/setting", f"GET {MODEL}/trace/setting", "GET /v2/logging"),
        "POST /v2/repository/index",
        "GET /v2/systemsharedmemory/status",
        "GET /v2/systemsharedmemory/region/{region}/status",
        "GET /v2/cudasharedmemory/status",
        "GET /v2/cudasharedmemory/region/{region}/status",
    },
    "infer": {f"POST {MODEL}/labels", f"POST {VERSION}/labels"},
    "control": {
        *(f"POST {VERSION}/monitor", "POST /v2/logging"),
        *("POST /v2/trace/setting", f"POST {MODEL}/trace/setting"),
        *("POST /v2/repository/models/{name}/load", "POST /v2/repository/models/{name}/unload"),
        "POST /v2/systemsharedmemory/region/{region}/register",
        "POST /v2/systemsharedmemory/region/{region}/unregister",
        "POST /v2/systemsharedmemory/unregister",
        "POST /v2/cudasharedmemory/region/{region}/register",
        "POST /v2/cudasharedmemory/region/{region}/unregister",
        "POST /v2/cudasharedmemory/unregister",
    },
}
"""Every route and the scope that it needs: a new route belongs here, too."""
INFERENCES = {f"POST {MODEL}/infer", f"POST {VERSION}/infer"}
METHOD_SCOPES = {
    "read": {
        *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata"),
        *("ModelConfig", "ModelStatistics", "RepositoryIndex"),
        *("SystemSharedMemoryStatus", "CudaSharedMemoryStatus"),
    },
    "infer": {"ModelInfer", "ModelStreamInfer"},
    "control": {
        *("RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"),
        *("SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"),
        *("CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"),
    },
}
OPEN = {"GET /", "GET /v2/health/live", "GET /v2/health/ready"}


def tokens_file(folder: Path, text: str = CLIENTS, mode: int = 0o600) -> Path:
    file = folder / "tokens.toml"
    file.write_text(text)
    file.chmod(mode)
    return file


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rights")
    return bundle_of(folder, solid(folder))


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    """Serves `solid` to three clients, each with one scope."""
    file = tokens_file(tmp_path_factory.mktemp("tokens"))
    with ServerThread(place_of(bundle), grpc=True, tokens=file) as one:
        yield one


def ask(
    server: ServerThread, route: str, token: str = "", body: bytes | None = None
) -> tuple[int, str]:
    """Send a request to "METHOD path"; its status, and the error in its answer."""
    method, _, path = route.partition(" ")
    for part, value in (("name", "solid"), ("version", "1"), ("region", "there")):
        path = path.replace(f"{{{part}}}", value)
    headers = {"Host": "here", **({"Authorization": f"Bearer {token}"} if token else {})}
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, PATIENCE_S)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
    with contextlib.suppress(ValueError, AttributeError):
        return answer.status, json.loads(text).get("error", "")
    return answer.status, ""


def lacking(scope: str, has: str) -> str:
    return f"this needs the scope {scope}, but {NAMES[has]!r} has only {has}"


# -- over HTTP


def test_every_route_has_exactly_one_scope(server: ServerThread) -> None:
    found = {
        f"{method} /{'/'.join(route.path)}": route.scope.value
        for method, table in server.server.routes._tables.items()
        for route in table
    }
    assert found == {route: scope for scope, routes in ROUTES.items() for route in routes}


@pytest.mark.parametrize("scope", TOKENS)
def test_a_route_is_answered_to_who_has_its_scope(server: ServerThread, scope: str) -> None:
    routes = {**ROUTES, "infer": ROUTES["infer"] | INFERENCES}
    for route, wanted in [(route, wanted) for wanted, some in routes.items() for route in some]:
        status, error = ask(server, route, TOKENS[scope])
        if wanted == scope or route in OPEN:
            assert status != 401, route
            assert "scope" not in error, route
        else:
            assert (status, error) == (403, lacking(wanted, scope)), route


def test_without_a_known_token_nothing_is_answered_but_health_and_the_empty_page(
    server: ServerThread,
) -> None:
    every = set().union(*ROUTES.values(), INFERENCES, {"GET /nothing", "PUT /v2", "GET /v2//"})
    for token in ("", TOKENS["read"] + "x", NAMES["read"]):
        for route in every - OPEN:
            assert ask(server, route, token) == (401, MISSING), route
        for route in OPEN:
            assert ask(server, route, token)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v2/repository/models/solid/%6coad",
        "//v2//repository/models/solid/load/",
        "/%762/repository/models/solid/load?x=/v2/models/solid/infer",
        "/v2/models/solid/../../repository/models/solid/load",
        "/v2/models/solid/infer/../../../repository/models/solid/load",
    ],
)
@pytest.mark.parametrize("scope", ["infer", "read"])
def test_another_spelling_of_a_path_has_the_same_scope(
    server: ServerThread, scope: str, path: str
) -> None:
    """Paths with ".." lead nowhere: they are names like any other."""
    status, error = ask(server, f"POST {path}", TOKENS[scope])
    expected = 404 if ".." in path else 403
    assert status == expected
    assert error == lacking("control", scope) or expected == 404


def test_head_needs_the_scope_of_get(server: ServerThread) -> None:
    assert ask(server, "HEAD /metrics", TOKENS["infer"])[0] == 403
    assert ask(server, "HEAD /metrics", TOKENS["read"])[0] == 200


def test_no_body_is_taken_from_who_lacks_the_scope(server: ServerThread) -> None:
    for path in ("/v2/models/solid/infer", "/v2/health/live", "/"):
        for size in ("Content-Length: 1048576", "Transfer-Encoding: chunked"):
            with socket.create_connection(("127.0.0.1", server.http_port), PATIENCE_S) as client:
                token = TOKENS["control"]
                client.sendall(
                    f"POST {path} HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {token}\r\n"
                    f"{size}\r\nExpect: 100-continue\r\n\r\n".encode()
                )
                begun = client.makefile("rb").readline()
            # Nothing takes a POST there, so that no scope is needed for the error.
            assert begun.split()[1] == (b"403" if "infer" in path else b"100")


# -- the file


def test_the_only_token_of_a_server_has_all_scopes(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKENS["read"])
    with ServerThread(place_of(bundle), token_file=file) as server:
        for route in set().union(*ROUTES.values(), INFERENCES):
            status, error = ask(server, route, TOKENS["read"])
            assert status != 401, route
            assert "scope" not in error, route


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "{file} must state 1 to 1,024 clients, with a table [NAME] for each; got 0"),
        ("".join(f"[c{n}]\n" for n in range(1025)), "{file} must state 1 to 1,024 clients, with "
        "a table [NAME] for each; got 1,025"),
        ("#" * ((1 << 20) + 1), "{file} has over 1,048,576 bytes, too many for tokens"),
        ("secret-of-many-letters", "{file} isn't TOML: see its end of document"),
        ("[a]\ntoken = secret-of-many-letters", "{file} isn't TOML: see its line 2, column 9"),
        ("[a]\nx = '\udcff'", "{file} isn't TOML: it isn't UTF-8, or is nested too deeply"),
        ("x = " + "[" * 100_000, "{file} isn't TOML: it isn't UTF-8, or is nested too deeply"),
        ("token = 'secret-of-many-letters'", "{file} has a line outside of a table: write [NAME] above each client's lines"),
        ("[a]\ntokn = 'secret-of-many-letters'", "{file}: [a] can't have 'tokn': it takes "
        "scopes, and one of token, sha256, certificate"),
        ("[a]\ntoken = 'secret-of-many-letters'", "{file}: [a] needs scopes, a list of any of infer, read, control, such as scopes = [\"infer\"]"),
        ("[a]\nscopes = ['infer', 'write']", "{file}: [a] needs scopes, a list of any of infer, read, control, such as scopes = [\"infer\"]"),
        ("[a]\nscopes = [['infer']]", "{file}: [a] needs scopes, a list of any of infer, read, control, such as scopes = [\"infer\"]"),
        ("[a]\nscopes = []", "{file}: [a] needs scopes, a list of any of infer, read, control, such as scopes = [\"infer\"]"),
        ("[a]\nscopes = 'read'", "{file}: [a] needs scopes, a list of any of infer, read, control, such as scopes = [\"infer\"]"),
        ("[a]\nscopes = ['read']", "{file}: [a] needs one of token, sha256, certificate; got none"),
        ("[a]\nscopes = ['read']\ntoken = 'x'\ncertificate = 'a'", "{file}: [a] needs one of token, sha256, certificate; got token and certificate"),
        ("[a]\nscopes = ['read']\ntoken = 'fifteen-letters'", "{file}: [a]: token must be one word of 16 to 16,384 ASCII characters"),
        ("[a]\nscopes = ['read']\ntoken = 'sixteen  letters'", "{file}: [a]: token must be one word of 16 to 16,384 ASCII characters"),
        ("[a]\nscopes = ['read']\ntoken = 1234567890123456", "{file}: [a]: token must be one word of 16 to 16,384 ASCII characters"),
        ("[a]\nscopes = ['read']\nsha256 = 'abc'", "{file}: [a]: sha256 must be the SHA-256 of a token, in 64 hexadecimal digits"),
        ("[a]\nscopes = ['read']\ncertificate = ' '", "{file}: [a]: certificate must be a name in the client's certificate, as text"),
        ("[a]\nscopes = ['read']\ntoken = 'secret-of-many-letters'\n[b]\nscopes = ['infer']\ntoken = 'secret-of-many-letters'", "{file}: 'a' and 'b' have the same token: give each its own"),
        ("[a]\nscopes = ['read']\ncertificate = 'Door'\n[b]\nscopes = ['infer']\ncertificate = 'door'", "{file}: 'a' and 'b' have the same certificate: give each its own"),
    ],
)  # fmt: skip
def test_a_file_that_states_no_clients_is_one_line_without_its_tokens(
    tmp_path: Path, text: str, error: str
) -> None:
    file = tmp_path / "tokens.toml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    file.chmod(0o600)
    with pytest.raises(InputError) as caught:
        read_clients(file)
    assert str(caught.value) == error.replace("{file}", str(file))
    assert "secret" not in str(caught.value)


def calls_in(work: Callable[[], Any]) -> int:
    """How many functions are called, of Python and C."""
    count = 0

    def seen(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("known", [True, False])
def test_a_token_is_found_by_the_same_steps_among_a_thousand_clients(known: bool) -> None:
    def steps(clients: int) -> int:
        read = frozenset((Scope.READ,))
        rights = Rights(Client(f"{n}", read, digest_of(b"token-of-%d" % n)) for n in range(clients))
        token = b"token-of-1" if known else b"token-of-none"
        assert (rights._bearer(b"Bearer " + token) is not None) == known
        return calls_in(lambda: rights._bearer(b"Bearer " + token))

    assert steps(2) == steps(1024)


@pytest.mark.parametrize("mode", [0o604, 0o660, 0o602, 0o610])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = tokens_file(tmp_path, mode=mode)
    with pytest.raises(InputError) as caught:
        read_clients(file)
    assert str(caught.value) == f"others may read {file}, whose mode is {mode:o}: chmod 600 it"
    file.chmod(0o400)
    assert {one.name: one.scopes for one in read_clients(file)} == {
        NAMES[scope.value]: {scope} for scope in Scope
    }


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to somebody else")
def test_a_file_of_another_user_is_refused_and_one_of_root_may_be_read_by_a_group(
    tmp_path: Path,
) -> None:
    file = tokens_file(tmp_path, mode=0o640)
    assert len(read_clients(file)) == 3
    file.chmod(0o600)
    os.chown(file, 54321, 0)
    with pytest.raises(InputError) as caught:
        read_clients(file)
    assert (
        str(caught.value) == f"{file} belongs to another user, who may change its tokens: chown it"
    )


def test_there_are_tokens_or_one_token_or_none(bundle: Path, tmp_path: Path) -> None:
    file = tokens_file(tmp_path)
    image = "a token doesn't belong in an image: leave out --tokens, and let KServe's gateway "
    for more, said in (
        (
            ["--token-file", str(file)],
            "--token-file and --tokens can't be combined: leave one of them out",
        ),
        (["--no-token"], "--tokens and --no-token can't be combined: leave one of them out"),
        (["--write-kserve", str(tmp_path / "kserve")], f"{image}authenticate clients"),
    ):
        refused = CliRunner().invoke(
            main, ["serve", str(bundle), "--tokens", str(file), *more], prog_name="hasten"
        )
        assert refused.stderr == f"hasten: {said}\n"
        assert refused.exit_code == 2


def test_on_ray_clients_are_known_by_tokens_alone(bundle: Path, tmp_path: Path) -> None:
    file = tokens_file(tmp_path, "[a]\nscopes = ['read']\ncertificate = 'a.example'\n")
    said = f"{file}: on Ray clients are known by tokens alone; got a certificate for 'a'"
    words = ["serve", str(bundle), "--on", "ray", "--tokens", str(file)]
    refused = CliRunner().invoke(main, words, prog_name="hasten")
    assert (refused.stderr, refused.exit_code) == (f"hasten: {said}\n", 2)
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    key.touch()
    certificate.touch()
    words += ["--tls-cert", str(certificate), "--tls-key", str(key)]
    refused = CliRunner().invoke(main, [*words, "--tls-client-ca", str(key)], prog_name="hasten")
    said = "the ingress to Ray doesn't ask clients for certificates: leave out --tls-client-ca, and give "
    assert (refused.stderr, refused.exit_code) == (f"hasten: {said}clients tokens by --tokens\n", 2)


# -- over gRPC


def call(server: ServerThread, method: str, token: str = "") -> tuple[str, str]:
    """Call a method with an empty message; the status and its details."""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.insecure_channel(server.grpc_url) as channel:
        if METHODS[method].streaming:
            asking = channel.stream_stream(f"/{SERVICE}/{method}")
        else:
            asking = channel.stream_unary(f"/{SERVICE}/{method}")
        try:
            answer = asking(iter([b""]), timeout=PATIENCE_S, metadata=metadata)
            return "OK", str(list(answer)) if METHODS[method].streaming else ""
        except grpc.RpcError as error:
            return error.code().name, error.details()


def test_every_method_has_exactly_one_scope() -> None:
    assert set(SCOPES) == set(METHODS)
    assert {name: scope.value for name, scope in SCOPES.items()} == {
        method: scope for scope, methods in METHOD_SCOPES.items() for method in methods
    }


@pytest.mark.parametrize("scope", TOKENS)
def test_a_method_is_answered_to_who_has_its_scope(server: ServerThread, scope: str) -> None:
    for wanted, methods in METHOD_SCOPES.items():
        for method in methods:
            status, error = call(server, method, TOKENS[scope])
            if wanted == scope or method in ("ServerLive", "ServerReady"):
                assert status != "UNAUTHENTICATED", method
                assert "scope" not in error, method
            else:
                assert (status, error) == ("PERMISSION_DENIED", lacking(wanted, scope)), method


def test_without_a_known_token_no_method_is_answered_but_health(server: ServerThread) -> None:
    for token in ("", TOKENS["read"] + "x"):
        answers = {method: call(server, method, token) for method in METHODS}
        assert answers.pop("ServerLive")[0] == answers.pop("ServerReady")[0] == "OK"
        assert set(answers.values()) == {
            ("UNAUTHENTICATED", MISSING.replace("Authoriz", "authoriz"))
        }


# -- a file that changes


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has servers look at their files more often than people need."""
    monkeypatch.setattr(server_module, "_LOOK_S", 0.01)


@pytest.mark.usefixtures("looking")
def test_a_new_file_holds_from_the_next_request_on_and_a_damaged_one_doesnt(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def errors() -> list[str]:
        ours = [each for each in caplog.records if each.name == "hasten.serving"]
        return [each.getMessage() for each in ours if each.levelname == "ERROR"]

    def answers(token: str) -> tuple[int, str]:
        return ask(running, "GET /v2", token)[0], call(running, "ServerMetadata", token)[0]

    file, new = tokens_file(tmp_path), "a-token-that-is-new"
    with ServerThread(place_of(bundle), grpc=True, tokens=file) as running:
        with http_connection(running) as kept:
            assert status_of(kept, TOKENS["read"]) == 200
            written_anew(file, f'[other]\nscopes = ["read"]\ntoken = "{new}"')
            until(lambda: answers(new) == (200, "OK"))
            assert answers(TOKENS["read"]) == (401, "UNAUTHENTICATED")
            assert status_of(kept, TOKENS["read"]) == 401

        keeps = f"the previous tokens stay in use: {file}"
        file.write_text("")
        until(lambda: len(errors()) == 1)
        assert errors()[0].startswith(f"{keeps} must state 1 to 1,024 clients")
        assert answers(new) == (200, "OK")
        file.unlink()
        gone = (
            f"the previous tokens stay in use: can't read the tokens in {file}: No such file or "
            "directory"
        )
        until(lambda: errors()[-1] == gone)  # a look amid the removal still finds the empty file
        told = len(errors())
        for _ in range(3):
            running.server._rights.look()
        assert len(errors()) == told
        assert answers(new) == (200, "OK")
        tokens_file(tmp_path, mode=0o644)
        # A look amid the writing may find, and tell, a file without clients first.
        until(lambda: "others may read" in errors()[-1])
        file.chmod(0o600)
        until(lambda: answers(TOKENS["read"]) == (200, "OK"))
        assert answers(new) == (401, "UNAUTHENTICATED")
    assert not any(token in line for line in caplog.messages for token in (new, *TOKENS.values()))


def test_a_file_that_cannot_be_read_for_a_moment_is_read_once_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tokens_file(tmp_path)
    tokens = ChangingFiles("tokens", [file], lambda: read_clients(file))
    written_anew(file, '[other]\nscopes = ["read"]\ntoken = "a-token-that-is-new"')
    with no_descriptor_left():
        tokens.look()
        tokens.look()
    assert caplog.messages == [
        f"the previous tokens stay in use: can't read the tokens in {file}: Too many open files"
    ]
    tokens.look()
    assert [client.name for client in tokens.value] == ["other"]


def test_a_pipe_in_the_place_of_a_file_keeps_no_later_file_from_being_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tokens_file(tmp_path)
    tokens = ChangingFiles("tokens", [file], lambda: read_clients(file))
    file.unlink()
    os.mkfifo(file, 0o600)
    looking = threading.Thread(target=tokens.look, daemon=True)
    looking.start()
    until(lambda: caplog.messages != [], 20)
    assert caplog.messages == [
        f"the previous tokens stay in use: {file} isn't a plain file any more: put one in its place"
    ]
    file.unlink()
    written_anew(file, '[other]\nscopes = ["read"]\ntoken = "a-token-that-is-new"')
    tokens.look()
    assert [client.name for client in tokens.value] == ["other"]


def test_an_error_that_nobody_expected_is_tried_again_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def read() -> str:
        if failing:
            raise failing[0]
        return file.read_text()

    file, failing = tmp_path / "file", list[Exception]()
    file.write_text("old")
    value = ChangingFiles("words", [file], read)
    file.write_text("newer")
    failing.append(RuntimeError("can't start new thread"))
    value.look()
    value.look()
    assert caplog.messages == ["the previous words stay in use: can't start new thread"]
    failing.clear()
    value.look()
    assert value.value == "newer"


@pytest.mark.usefixtures("looking")
def test_a_stream_ends_once_its_client_may_not_ask_any_more(bundle: Path, tmp_path: Path) -> None:
    file, questions = tokens_file(tmp_path), queue.Queue[bytes]()
    with (
        ServerThread(place_of(bundle), grpc=True, tokens=file) as server,
        grpc.insecure_channel(server.grpc_url) as channel,
    ):
        answers = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(
            iter(questions.get, b"over"),
            timeout=PATIENCE_S,
            metadata=(("authorization", f"Bearer {TOKENS['infer']}"),),
        )
        questions.put(b"")
        assert b"unknown model" in next(answers)
        tokens_file(tmp_path, CLIENTS.replace('["infer"]', '["read"]'))
        until(lambda: call(server, "ModelInfer", TOKENS["infer"])[0] == "PERMISSION_DENIED")
        questions.put(b"")
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        questions.put(b"over")
    assert caught.value.code().name == "PERMISSION_DENIED"
    assert caught.value.details() == "this needs the scope infer, but 'asker' has only read"


@pytest.mark.usefixtures("looking")
def test_the_only_token_is_read_again_too(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("the-first-of-two-tokens")
    with ServerThread(place_of(bundle), token_file=file) as server:
        assert ask(server, "GET /v2", "the-first-of-two-tokens")[0] == 200
        file.write_text("the-other-of-two-tokens")
        until(lambda: ask(server, "GET /v2", "the-other-of-two-tokens")[0] == 200)
        assert ask(server, "GET /v2", "the-first-of-two-tokens")[0] == 401


@pytest.mark.usefixtures("looking")
def test_a_token_is_removed_while_all_threads_for_other_work_are_busy(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By scrapes whose text isn't written, and by anything else on the loop's own threads."""
    file, go, written = tmp_path / "token", threading.Event(), metrics.written

    def held(*given: Any) -> tuple[bytes, str]:
        go.wait(PATIENCE_S)
        return written(*given)

    def fill() -> None:
        for _ in range(64):
            asyncio.get_running_loop().run_in_executor(None, go.wait, PATIENCE_S)

    monkeypatch.setattr(metrics, "written", held)
    file.write_text("the-first-of-two-tokens")
    with ServerThread(place_of(bundle), token_file=file) as server, contextlib.ExitStack() as stack:
        stack.callback(go.set)
        server.call(fill)
        for _ in range(64):
            one = stack.enter_context(http_connection(server))
            one.request(
                "GET", "/metrics", headers={"Authorization": "Bearer the-first-of-two-tokens"}
            )
        file.write_text("the-other-of-two-tokens")
        until(lambda: ask(server, "GET /v2", "the-first-of-two-tokens")[0] == 401)


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Let this process open no file: as where a flood of clients holds all descriptors."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def written_anew(file: Path, text: str) -> None:
    """Put a file with a new text in the place of one."""
    beside = file.with_name("beside")
    beside.write_text(text)
    beside.chmod(0o600)
    beside.replace(file)


def http_connection(server: ServerThread) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, PATIENCE_S)
    return contextlib.closing(connection)


def status_of(connection: http.client.HTTPConnection, token: str) -> int:
    connection.request("GET", "/v2", headers={"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    answer.read()
    return answer.status


def test_the_pages_example_is_a_file_of_clients(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "access.md"
    example = page.read_text().partition("```toml\n")[2].partition("```")[0]
    found = read_clients(tokens_file(tmp_path, example))
    assert [one.name for one in found] == ["prometheus", "the shop", "gateway"]
    assert found[2].certificate == "gateway.example.com"
