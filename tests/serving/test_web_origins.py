"""What a web page can make a browser send to a server on the same machine, against real servers."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from tests.support.models import solid
from tests.support.servers import ServerProcess, ServerThread, bundle_of, place_of

from hasten.cli.serve import serve
from hasten.errors import InputError
from hasten.serving.cluster.federation import Federation
from hasten.serving.options import Access
from hasten.serving.protocol.messages import SERVICE, message
from hasten.serving.run import settings_of
from hasten.serving.settings import ServerSettings

TOKEN = "a-token-of-more-than-sixteen"
UNLOAD = "/v2/repository/models/solid/unload"
REGISTER = "/v2/systemsharedmemory/region/mine/register"
INFER = "/v2/models/solid/infer"
REQUEST = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
).encode()
REBOUND = "'rebound.example:80' isn't a name of this server: use localhost or its IP address, or start it with --allow-host NAME"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("origins")
    return bundle_of(folder, solid(folder))


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[ServerThread]:
    """A server that lets its clients do all that there is, without a token."""
    with ServerThread(place_of(bundle), control=True, shared_memory=".*", hosts=()) as one:
        yield one


def answered(
    server: ServerThread | ServerProcess, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, str]:
    """Send a request with these headers; the status and the error."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        said = answer.read()
    finally:
        connection.close()
    return answer.status, json.loads(said)["error"] if answer.status >= 400 else ""


def raw(server: ServerThread, data: bytes) -> bytes:
    """Send bytes; the first that come back."""
    with socket.create_connection(("127.0.0.1", server.http_port), 60) as connection:
        connection.sendall(data)
        return connection.recv(4096)


FOREIGN: dict[str, dict[str, str]] = {
    "cross-site": {"Origin": "http://foreign.example", "Sec_Fetch_Site": "cross-site"},
    "another port": {"Origin": "http://127.0.0.1:3000", "Sec_Fetch_Site": "same-site"},
    "no Sec-Fetch-Site": {"Origin": "http://foreign.example"},
    "another port, no Sec-Fetch-Site": {"Origin": "http://127.0.0.1:3000"},
    "another scheme": {
        "Host": "localhost",
        "Origin": "https://localhost",
        "Sec_Fetch_Site": "cross-site",
    },
    "no page's origin": {"Origin": "null"},
    "no Origin": {"Sec_Fetch_Site": "cross-site"},
    "an image": {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "image"},
}


@pytest.mark.parametrize("headers", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize(
    ("path", "body"),
    [(UNLOAD, b""), (REGISTER, b'{"key": "/x", "byte_size": 8}'), (INFER, REQUEST)],
)
def test_a_page_of_another_site_changes_nothing(
    server: ServerThread, path: str, body: bytes, headers: dict[str, str]
) -> None:
    status, error = answered(server, "POST", path, body, Content_Type="text/plain", **headers)
    whose = f"{headers['Origin']!r}" if "Origin" in headers else "another site"
    assert (status, error) == (
        403,
        f"a web page of {whose} may not use this server: start it with --allow-host NAME, where "
        "NAME is the page's host",
    )
    assert answered(server, "GET", "/v2/models/solid/ready")[0] == 200
    assert server.call(lambda: server.server.state.memory.status("")) == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", UNLOAD),
        ("POST", INFER),
        ("GET", "/"),
        ("GET", "/live.json"),
        ("GET", "/metrics"),
        ("GET", "/v2/models/solid"),
    ],
)
def test_a_name_that_was_bound_to_this_machine_reads_and_changes_nothing(
    server: ServerThread, method: str, path: str
) -> None:
    own = {"Host": "rebound.example:80", "Origin": "http://rebound.example:80"}
    for headers in (own, {**own, "Sec_Fetch_Site": "same-origin"}, {"Host": "rebound.example:80"}):
        assert answered(server, method, path, REQUEST, **headers) == (403, REBOUND)
    assert answered(server, "GET", "/v2/models/solid/ready")[0] == 200


@pytest.mark.parametrize("site", [(), (("sec-fetch-site", "cross-site"),)], ids=str)
@pytest.mark.parametrize("method", ["RepositoryModelUnload", "ModelInfer", "ModelStreamInfer"])
def test_a_page_of_another_site_calls_nothing(
    bundle: Path, method: str, site: tuple[tuple[str, str], ...]
) -> None:
    """As Firefox lets a page call over TLS: the library doesn't look at the content type."""
    foreign = (("origin", "https://foreign.example"), *site)
    unload = message("RepositoryModelUnloadRequest")(model_name="solid").SerializeToString()
    with (
        ServerThread(place_of(bundle), grpc=True, control=True, hosts=("pages.example",)) as server,
        grpc.insecure_channel(server.grpc_url) as channel,
    ):
        ask = channel.stream_stream(f"/{SERVICE}/{method}")
        with pytest.raises(grpc.RpcError) as caught:
            list(ask(iter([unload]), metadata=foreign))
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert caught.value.details() == (
            "a web page of 'https://foreign.example' may not use this server: start it with "
            "--allow-host NAME, where NAME is the page's host"
        )
        with pytest.raises(grpc.RpcError, match="a web page of 'null' may not use this server"):
            list(ask(iter([unload]), metadata=(("origin", "null"), *site)))
        ready = channel.unary_unary(f"/{SERVICE}/ModelReady")
        asked = message("ModelReadyRequest")(name="solid").SerializeToString()
        for own in ((), (("origin", "https://pages.example"),), (("sec-fetch-site", "none"),)):
            answer = ready(asked, metadata=own)
            assert message("ModelReadyResponse").FromString(answer).ready
        live = channel.unary_unary(f"/{SERVICE}/ServerLive")
        assert message("ServerLiveResponse").FromString(live(b"", metadata=foreign)).live


def test_a_connection_that_asked_rightly_is_checked_again(server: ServerThread) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)

    def status(**headers: str) -> int:
        connection.request(
            "GET", "/v2/models/solid/ready", headers={"Host": "localhost", **headers}
        )
        answer = connection.getresponse()
        answer.read()
        if answer.will_close:
            connection.close()
        return answer.status

    assert [status(), status(), status(Origin="http://foreign.example")] == [200, 200, 403]
    assert [status(), status(), status(Host="rebound.example")] == [200, 200, 403]
    assert [status(), status(**{"Sec-Fetch-Site": "cross-site"}), status()] == [200, 403, 200]
    connection.close()


@pytest.mark.parametrize(
    "host",
    [
        "localhost.rebound.example",
        "127.0.0.1.rebound.example",
        "rebound.example.",
        "[::1].rebound.example",
        "localhost@rebound.example",
        "rebound.example/localhost",
        "localhost, rebound.example",
        "xlocalhost",
        "*.localhost.example",
        "*",
        "",
    ],
)
def test_a_name_that_only_looks_like_this_machines_is_refused(
    server: ServerThread, host: str
) -> None:
    assert answered(server, "GET", "/v2", Host=host)[0] == 403


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "LOCALHOST.:1",
        "hasten.localhost",
        "127.0.0.1:80",
        "0.0.0.0",
        "10.1.2.3:8000",
        "[::1]:8000",
        "[fe80::1]",
        socket.gethostname(),
        f"{socket.gethostname().upper()}:8000",
    ],
)
def test_names_that_nobody_else_can_own_are_answered(server: ServerThread, host: str) -> None:
    assert answered(server, "POST", INFER, REQUEST, Host=host) == (200, "")


def test_the_servers_own_page_and_links_to_it_work(server: ServerThread) -> None:
    own = f"http://127.0.0.1:{server.http_port}"
    for headers in (
        {"Sec_Fetch_Site": "same-origin"},
        {"Sec_Fetch_Site": "none", "Sec_Fetch_Dest": "document"},
        {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "document"},
        {"Origin": own},
    ):
        assert answered(server, "GET", "/", b"", **headers) == (200, "")
    assert answered(server, "POST", INFER, REQUEST, Origin=own) == (200, "")
    form = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Dest": "document"}
    assert (
        answered(server, "POST", UNLOAD, b"", **form)[0] == 403
    )  # a form on a page leads here, too


@pytest.mark.parametrize("path", [b"/", b"/v2/health/live", b"/v2", INFER.encode()])
def test_a_request_has_one_host(server: ServerThread, path: bytes) -> None:
    for hosts in (
        b"",
        b"Host: localhost\r\nHost: localhost\r\n",
        b"host: rebound.example\r\nHOST: localhost\r\n",
    ):
        said = raw(server, b"POST %b HTTP/1.1\r\n%bContent-Length: 0\r\n\r\n" % (path, hosts))
        assert said.startswith(b"HTTP/1.1 400 "), said
        assert b"a request has one Host header: send it once" in said


@pytest.mark.parametrize("name", ["Authorization", "Origin", "Sec-Fetch-Site"])
def test_a_request_has_one_header_that_gives_rights(server: ServerThread, name: str) -> None:
    """A proxy in front may look at the first of two, where the server looked at the last."""
    twice = f"Host: localhost\r\n{name}: a\r\n{name.lower()}: b\r\n".encode()
    said = raw(server, b"GET /v2 HTTP/1.1\r\n%b\r\n" % twice)
    assert said.startswith(b"HTTP/1.1 400 "), said
    assert f"a request has one {name} header: send it once".encode() in said


def test_probes_need_no_name_of_the_server(server: ServerThread) -> None:
    """HAProxy's checks are HTTP/1.0 without Host; a load balancer's have a name of its own."""
    for path in (b"/v2/health/live", b"/v2/health/ready", b"/v2"):
        assert raw(server, b"GET %b HTTP/1.0\r\n\r\n" % path).startswith(b"HTTP/1.1 200 ")
    assert raw(server, b"GET /v2 HTTP/1.0\r\nHost: a.example\r\n\r\n").startswith(b"HTTP/1.1 403 ")
    for probe in ("/v2/health/live", "/v2/health/ready"):
        assert answered(server, "GET", probe, Host="balancer.example") == (200, "")


def test_a_server_goes_by_the_names_it_is_given(bundle: Path) -> None:
    """As behind a proxy that passes the outer name on, or one that puts its own in its place."""
    names = ("models.example", "*.svc.cluster.local")
    with ServerThread(place_of(bundle), control=True, hosts=names) as server:
        for host in ("models.example", "Models.Example:443", "m.ns.svc.cluster.local:8000"):
            assert answered(server, "POST", INFER, REQUEST, Host=host) == (200, "")
        for host in ("a.models.example", "svc.cluster.local", "evilsvc.cluster.local"):
            assert answered(server, "POST", INFER, REQUEST, Host=host)[0] == 403
        page = {"Origin": "https://models.example", "Sec_Fetch_Site": "same-site"}
        assert answered(server, "POST", INFER, REQUEST, **page) == (200, "")
        page = {"Origin": "http://models.example"}
        assert answered(server, "POST", INFER, REQUEST, **page) == (200, "")
        for origin in ("http://models.example:3000", "http://other.example", "null"):
            assert answered(server, "POST", UNLOAD, Origin=origin)[0] == 403


def test_any_name_lets_no_foreign_page_in(bundle: Path) -> None:
    with ServerThread(place_of(bundle), control=True, hosts=("*",)) as server:
        assert answered(server, "POST", INFER, REQUEST, Host="any.example") == (200, "")
        foreign = {"Host": "any.example", "Origin": "http://foreign.example"}
        assert answered(server, "POST", UNLOAD, b"", **foreign)[0] == 403


def test_with_a_token_any_name_and_page_will_do(bundle: Path, tmp_path: Path) -> None:
    """A page can't know the token, and can't send one to another site without being allowed to."""
    file = tmp_path / "token"
    file.write_text(TOKEN)
    headers = {"Host": "models.example", "Origin": "https://ui.example"}
    with ServerThread(place_of(bundle), token_file=file, hosts=()) as server:
        assert answered(server, "POST", INFER, REQUEST, **headers)[0] == 401
        headers["Authorization"] = f"Bearer {TOKEN}"
        assert answered(server, "POST", INFER, REQUEST, **headers) == (200, "")


def test_with_tls_browsers_check_the_name(tmp_path: Path) -> None:
    """A page at a name that isn't in the certificate isn't shown, so that any Host will do."""
    plain = ServerSettings((), host="listens.example", hosts=("given.example",))
    encrypted = ServerSettings((), certificate=tmp_path, key=tmp_path)
    for settings, host, told in (
        (plain, b"listens.example", True),
        (plain, b"given.example", True),
        (plain, b"other.example", False),
        (encrypted, b"other.example", True),
    ):
        refusal = settings.origins().refusal(b"GET", {b"host": host})
        assert (refusal is None) == told, host
    foreign = {b"host": b"a.example", b"origin": b"https://foreign.example"}
    assert encrypted.origins().refusal(b"POST", foreign) is not None


@pytest.mark.parametrize("hosts", [0, 2])
def test_metrics_at_the_door_of_replicas_are_no_foreign_pages(
    server: ServerThread, hosts: int
) -> None:
    place = {"one": ("127.0.0.1", server.http_port)}
    origins = ServerSettings((), host="door.example").origins()
    with Federation(lambda: place, origins=origins) as door:

        def asked(*headers: tuple[str, str]) -> int:
            connection = http.client.HTTPConnection("127.0.0.1", door.port, timeout=60)
            connection.putrequest("GET", "/metrics", skip_host=True)
            for name, value in headers:
                connection.putheader(name, value)
            connection.endheaders()
            status = connection.getresponse().status
            connection.close()
            return status

        assert asked(("Host", "door.example:8000")) == 200
        assert asked(("Host", "rebound.example")) == 403
        assert asked(("Host", "localhost"), ("Origin", "http://foreign.example")) == 403
        assert asked(*[("Host", "localhost")] * hosts) == 400


def test_other_machines_are_served_without_a_token_only_where_it_is_said(
    bundle: Path, tmp_path: Path
) -> None:
    for host in ("127.0.0.1", "127.0.0.7", "localhost", "::1"):
        assert settings_of([bundle], host=host).host == host
    for host in ("0.0.0.0", "::", "", "10.0.0.1", "models.example", "localhost.example"):
        with pytest.raises(InputError) as told:
            settings_of([bundle], host=host)
        assert str(told.value) == (
            f"host={host!r} accepts connections from other machines, which may then do "
            "everything that clients may: give token_file= or tokens=, or no_token=True to serve "
            "all of them"
        )
        assert settings_of([bundle], host=host, access=Access(no_token=True)).host == host
        for access in (Access(token_file=tmp_path), Access(tokens=tmp_path)):
            assert settings_of([bundle], host=host, access=access).host == host
    with pytest.raises(InputError) as told:
        Access(no_token=True, token_file=tmp_path)
    assert str(told.value) == (
        "token_file= and no_token=True can't be combined: leave one of them out"
    )


def test_the_command_serves_other_machines_only_where_asked_twice(bundle: Path) -> None:
    refused = CliRunner().invoke(serve, [str(bundle), "--host", "0.0.0.0"])
    assert (refused.exit_code, refused.stderr) == (
        2,
        "hasten: --host 0.0.0.0 accepts connections from other machines, which may then do "
        "everything that clients may: give --token-file or --tokens, or --no-token to serve all of them\n",
    )
    names = ("--allow-host", "models.example", "--allow-host", "*.below.example")
    with ServerProcess(bundle, "--host", "0.0.0.0", "--no-token", *names) as server:
        for host, status in (
            ("models.example", 200),
            ("m.below.example", 200),
            (f"127.0.0.1:{server.http_port}", 200),
            ("rebound.example", 403),
        ):
            assert answered(server, "POST", INFER, REQUEST, Host=host)[0] == status


@pytest.mark.parametrize("name", ["", "http://a.example", "a.example:80", "a*", "**", "*.", "::1"])
def test_a_name_of_the_server_is_a_hosts(name: str) -> None:
    with pytest.raises(InputError) as told:
        Access(allow_host=["a.example", name])
    assert str(told.value) == (
        f"allow_host= takes a host's name, such as example.com or *.example.com, or *; got {name!r}"
    )
