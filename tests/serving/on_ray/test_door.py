"""What reaches replicas through their door, and what holds it: a real HAProxy before real servers."""

from __future__ import annotations

import contextlib
import http.client
import re
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from tests.support.certificates import certified
from tests.support.models import identity
from tests.support.servers import ServerThread, bundle_of, place_of
from tests.support.waiting import PATIENCE_S, until

from hasten.errors import InputError
from hasten.serving.cluster.federation import Federation
from hasten.serving.cluster.ingress import Ingress, ReplicaEntry, binary
from hasten.serving.cluster.replica import behind_door
from hasten.serving.protocol.messages import SERVICE
from hasten.serving.settings import ServerSettings
from hasten.serving.state import Limits


class Door(NamedTuple):
    """Ports of a door, and the replica behind it."""

    http: int
    grpc: int
    replica: ServerThread


@contextlib.contextmanager
def opened(tmp_path: Path, tokens: Path | None = None, **limits: Any) -> Iterator[Door]:
    """A door, before a replica that asks for a secret, that goes by the name door.example.

    With tokens, the replica takes those, too, and clients send them.
    """
    try:
        binary()
    except InputError:
        pytest.skip("needs HAProxy, which comes with Ray Serve")
    names = ("door.example",)
    settings = ServerSettings(
        (), http=0, grpc=0, hosts=names, limits=Limits(**limits), tokens=tokens
    )
    inner = behind_door(settings, tmp_path)
    replica = place_of(bundle_of(tmp_path, identity(tmp_path)))
    folder = tmp_path / "door"
    folder.mkdir()
    with (
        ServerThread(
            replica,
            hosts=(*settings.hosts, *settings.own_names()),
            token_file=inner.token_file,
            tokens=tokens,
            behind_door=inner.behind_door,
            grpc=True,
        ) as one,
        Federation(
            lambda: {"one": ("127.0.0.1", one.http_port)},
            origins=settings.origins() if inner.behind_door else None,
            rights=settings.rights,
            secret=inner.token() or b"",
        ) as all_,
    ):
        sent = inner.token() if inner.behind_door else None
        ingress = Ingress(settings, folder, 1, all_.port, sent)
        try:
            ingress.start()
            ingress.update({"one": ReplicaEntry("127.0.0.1", one.http_port, one.grpc_port)})
            assert ingress.http is not None
            assert ingress.grpc is not None
            port = ingress.http
            until(lambda: is_open(port, inner.token() or b""))
            yield Door(port, ingress.grpc, one)
        finally:
            ingress.close()


@pytest.fixture
def whole(tmp_path: Path) -> Iterator[Door]:
    with opened(tmp_path) as door:
        yield door


@pytest.fixture
def door(whole: Door) -> int:
    """The door's port of HTTP."""
    return whole.http


def is_open(port: int, secret: bytes) -> bool:
    """Whether the door answers for its replica by now."""
    with contextlib.suppress(OSError, IndexError):
        sent = f"Authorization: Bearer {secret.decode()}"
        return asked(port, "/v2", "Host: door.example", sent) == 200
    return False


def asked(port: int, path: str, *lines: str, version: str = "1.1") -> int:
    """Ask the door with these headers; the status."""
    with socket.create_connection(("127.0.0.1", port), 60) as connection:
        head = "\r\n".join([f"GET {path} HTTP/{version}", *lines, "Connection: close", "", ""])
        connection.sendall(head.encode())
        return int(connection.makefile("rb").readline().split()[1])


def test_a_door_that_was_too_busy_to_be_told_of_a_replica_is_told_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ingress = Ingress(ServerSettings((), http=0, grpc=None), tmp_path, 2)
    admin, aside = tmp_path / "admin", tmp_path / "aside"
    served = place_of(bundle_of(tmp_path, identity(tmp_path)))
    with ServerThread(served) as one, contextlib.closing(ingress):
        assert ingress.http is not None
        port, entry = ingress.http, ReplicaEntry("127.0.0.1", one.http_port)
        ingress.start()
        admin.rename(aside)  # from now on no order reaches it
        ingress.update({"one": entry})
        ingress.look_after()
        assert asked(port, "/v2", "Host: localhost") == 503
        assert sum("isn't listening" in line for line in caplog.messages) == 1
        aside.rename(admin)
        ingress.look_after()
        until(lambda: asked(port, "/v2", "Host: localhost") == 200)
        admin.rename(aside)
        ingress.update({})
        aside.rename(admin)
        ingress.look_after()
        assert asked(port, "/v2", "Host: localhost") == 503


@pytest.mark.parametrize("path", ["/", "/v2", "/metrics", "/v2/models/stats"])
def test_the_door_tells_foreign_pages_from_its_own(door: int, path: str) -> None:
    for host in (
        "door.example",
        "DOOR.example:80",
        "localhost:1",
        "127.0.0.1",
        socket.gethostname(),
    ):
        assert asked(door, path, f"Host: {host}") == 200
    assert asked(door, path, "Host: rebound.example") == 403
    assert asked(door, path, "Host: door.example", "Origin: http://foreign.example") == 403
    assert asked(door, path, "Host: door.example", "Sec-Fetch-Site: cross-site") == 403
    assert asked(door, path, "Host: door.example", "Host: rebound.example") == 400
    assert asked(door, path) == 400


@pytest.mark.parametrize(
    "body", [b"GARBAGE-", b"GET /metrics HTTP/1.1\r\nHost: rebound.example\r\nX-A: "]
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_a_body_for_the_metrics_is_no_part_of_anothers_request(
    door: int, method: str, body: bytes
) -> None:
    """The door's connections to the page of metrics would be shared, and the page reads no bodies."""
    lines = (f"{method} /metrics HTTP/1.1", HOST, f"Content-Length: {len(body)}", "", "")
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", door), 60) as attacker:
            attacker.sendall("\r\n".join(lines).encode() + body)
            attacker.recv(1 << 16)
            assert asked(door, "/metrics", HOST) == 200
        assert asked(door, "/metrics", HOST) == 200


def test_a_probe_without_host_reaches_the_replicas(door: int) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2"):
        assert asked(door, path, version="1.0") == 200


def test_clients_need_no_token_at_the_door_and_the_replica_asks_for_its_secret(whole: Door) -> None:
    host = "Host: door.example"
    for path in ("/v2", "/metrics", "/v2/models/stats"):
        assert asked(whole.http, path, host) == 200
        assert asked(whole.http, path, host, "Authorization: Bearer guessed") == 200
        assert asked(whole.replica.http_port, path, host) == 401
    assert asked(whole.replica.http_port, "/v2", "Host: rebound.example") == 403
    for port, status in ((whole.grpc, None), (whole.replica.grpc_port, "UNAUTHENTICATED")):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(f"/{SERVICE}/ServerMetadata")
            try:
                call(b"", timeout=60)
                found = None
            except grpc.RpcError as error:
                found = error.code().name
        assert found == status


CLIENTS = """
[reader]
scopes = ["read"]
token = "a-word-for-readers"
[caller]
scopes = ["infer"]
token = "a-word-for-callers"
"""


def test_clients_have_their_own_rights_at_the_door(tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(CLIENTS)
    file.chmod(0o600)
    with opened(tmp_path, tokens=file) as door:
        statuses = {"a-word-for-readers": 200, "a-word-for-callers": 403, "guessed": 401}
        for word, status in statuses.items():
            for path in ("/v2", "/metrics", "/v2/models/stats"):
                found = asked(door.http, path, HOST, f"Authorization: Bearer {word}")
                assert found == status, (word, path)
        assert asked(door.http, "/metrics", HOST) == 401
        assert asked(door.http, "/v2/health/ready", HOST) == 200
        with grpc.insecure_channel(f"127.0.0.1:{door.grpc}") as channel:
            call, sent = channel.unary_unary(f"/{SERVICE}/ServerMetadata"), "authorization"
            call(b"", timeout=60, metadata=((sent, "Bearer a-word-for-readers"),))
            with pytest.raises(grpc.RpcError) as error:
                call(b"", timeout=60, metadata=((sent, "Bearer a-word-for-callers"),))
            assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED


HOST = "Host: door.example"


@contextlib.contextmanager
def connected(door: Door, address: str) -> Iterator[socket.socket | None]:
    """A connection from an address of this machine; None where the door closes it at once."""
    try:
        one = socket.create_connection(("127.0.0.1", door.http), 60, (address, 0))
    except ConnectionError:
        yield None
        return
    with one:
        yield one


def told(connection: socket.socket | None) -> bytes:
    """Ask on a connection that stays open; b"" where it is closed instead."""
    if connection is None:
        return b""
    try:
        connection.sendall(f"GET /v2 HTTP/1.1\r\n{HOST}\r\n\r\n".encode())
        return connection.recv(1 << 16)[:12]
    except ConnectionError:
        return b""


def fresh(door: Door, address: str) -> bytes:
    with connected(door, address) as one:
        return told(one)


def test_one_address_leaves_places_at_the_door_to_others(tmp_path: Path) -> None:
    with opened(tmp_path, connections=16) as door:
        with contextlib.ExitStack() as stack:
            crowd = [stack.enter_context(connected(door, "127.0.0.2")) for _ in range(40)]
            answers = [told(one) for one in crowd]
            assert answers.count(b"HTTP/1.1 200") == 12  # three quarters of 16
            assert set(answers) == {b"HTTP/1.1 200", b""}
            assert fresh(door, "127.0.0.3") == b"HTTP/1.1 200"
        until(lambda: fresh(door, "127.0.0.2") == b"HTTP/1.1 200")


def test_where_clients_share_no_places_one_may_take_all(tmp_path: Path) -> None:
    with opened(tmp_path, connections=16, fair=False) as door, contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(connected(door, "127.0.0.2")) for _ in range(15)]
        assert {told(one) for one in crowd} == {b"HTTP/1.1 200"}


def test_half_a_head_holds_no_place_at_the_door_for_long(tmp_path: Path) -> None:
    with (
        opened(tmp_path, receive_ns=300_000_000) as door,
        socket.create_connection(("127.0.0.1", door.http), 60) as one,
    ):
        one.sendall(b"GET /v2 HTTP/1.1\r\nHost: ")
        assert one.recv(1 << 16)[:12] == b"HTTP/1.1 408"


# -- certificates that change


def encrypted(port: int, trusted: Path) -> ssl.SSLSocket:
    """A connection to the door of one who trusts this certificate alone.

    Raises:
        ssl.SSLError: the door has another one.
    """
    context = ssl.create_default_context(cafile=str(trusted))
    context.set_alpn_protocols(["h2", "http/1.1"])
    plain = socket.create_connection(("127.0.0.1", port), 60)
    try:
        return context.wrap_socket(plain, server_hostname="127.0.0.1")
    except ssl.SSLError:
        plain.close()
        raise


@contextlib.contextmanager
def door_of(settings: ServerSettings, folder: Path) -> Iterator[Ingress]:
    """A started ingress before no replica."""
    try:
        binary()
    except InputError:
        pytest.skip("needs HAProxy, which comes with Ray Serve")
    ingress = Ingress(settings, folder, 1)
    try:
        ingress.start()
        yield ingress
    finally:
        ingress.close()


def lives(connection: ssl.SSLSocket) -> bool:
    """Whether the door answers on this connection."""
    connection.sendall(f"GET /v2/health/live HTTP/1.1\r\n{HOST}\r\n\r\n".encode())
    return connection.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_a_renewed_certificate_is_used_at_the_door_and_no_connection_is_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer, newest = (certified(tmp_path, name) for name in ("older", "newer", "newest"))
    used, key = tmp_path / "used.pem", tmp_path / "used.key"

    def put(certificate: Path) -> None:
        # As some authorities send it: with empty lines, which end an order for HAProxy.
        used.write_text(f"\n{certificate.read_text()}\n\n")
        shutil.copy(certificate.with_suffix(".key"), key)

    put(older)
    folder = tmp_path / "the door's; folder"
    folder.mkdir()
    settings = ServerSettings((), http=0, grpc=0, certificate=used, key=key)
    with door_of(settings, folder) as ingress:
        ports = [port for port in (ingress.http, ingress.grpc) if port is not None]
        assert len(ports) == 2
        with encrypted(ports[0], older) as kept:
            assert lives(kept)
            put(newer)
            ingress.look_after()
            assert "the previous certificates stay in use" not in caplog.text
            assert lives(kept)  # on a connection that began with the older one
            for port in ports:
                encrypted(port, newer).close()
                with pytest.raises(ssl.SSLError):
                    encrypted(port, older)
            shutil.copy(newest, used)  # the key doesn't fit yet
            ingress.look_after()
            assert "the previous certificates stay in use: can't use the certificate" in caplog.text
            encrypted(ports[0], newer).close()
            assert lives(kept)
        assert ingress._process is not None
        ingress._process.kill()
        ingress._process.wait()
        put(newest)
        ingress.look_after()  # HAProxy isn't there: its next start reads the file
        with encrypted(ports[0], newest) as fresh_one:
            assert lives(fresh_one)
    assert {each.stat().st_mode & 0o077 for each in folder.glob("*.pem")} == {0}
    assert [each.name for each in folder.glob("*.pem")] == ["tls.pem"]


def test_a_renewal_that_fails_is_told_once_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = (certified(tmp_path, name) for name in ("older", "newer"))
    used, key = tmp_path / "used.pem", tmp_path / "used.key"

    def put(certificate: Path) -> None:
        shutil.copy(certificate, used)
        shutil.copy(certificate.with_suffix(".key"), key)

    put(older)
    (tmp_path / "door").mkdir()
    admin, away = tmp_path / "door" / "admin", tmp_path / "door" / "away"
    with door_of(ServerSettings((), http=0, certificate=used, key=key), admin.parent) as ingress:
        assert ingress.http is not None
        admin.rename(away)  # HAProxy can't be told anything now
        put(newer)
        for _ in range(2):
            ingress.look_after()
        told = [one.getMessage() for one in caplog.records if "stay in use" in one.getMessage()]
        assert told == ["the previous certificates stay in use: HAProxy says nothing"]
        encrypted(ingress.http, older).close()
        away.rename(admin)
        ingress.look_after()
        encrypted(ingress.http, newer).close()


@contextlib.contextmanager
def replica_that_takes(go_on: threading.Event) -> Iterator[int]:
    """A server in the place of a replica, whose port is returned: it is ready, and answers POST once an event is set."""

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            assert go_on.wait(PATIENCE_S)
            self.do_GET()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield int(server.server_address[1])
    finally:
        go_on.set()
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def asked_for_long(
    tmp_path: Path, port: int, limits: Limits | None = None
) -> Iterator[http.client.HTTPConnection]:
    """A connection to a door before one replica, on which a request is under way."""
    with door_of(ServerSettings((), http=0, limits=limits or Limits()), tmp_path) as ingress:
        ingress.update({"one": ReplicaEntry("127.0.0.1", port)})
        assert ingress.http is not None
        at_door = ingress.http
        until(lambda: asked(at_door, "/v2", HOST) == 200)
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", at_door, PATIENCE_S)
        ) as one:
            one.request("POST", "/v2/models/m/infer", b"{}")
            yield one


def test_the_door_asks_again_and_again_whether_a_replica_that_computes_is_still_there(
    tmp_path: Path,
) -> None:
    """By TCP, whose timer on the door's connection is then that of keepalive."""
    go_on = threading.Event()
    with replica_that_takes(go_on) as port, asked_for_long(tmp_path, port) as one:

        def timers() -> set[str]:
            rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            there = [row for row in rows if row[2].endswith(f":{port:04X}") and row[3] == "01"]
            return {row[5].partition(":")[0] for row in there}

        until(lambda: timers() == {"02"})
        go_on.set()
        assert one.getresponse().status == 200


@pytest.mark.seconds
def test_an_answer_may_take_longer_than_a_minute(tmp_path: Path) -> None:
    """The limits that a client has passed while it waits; HAProxy itself tells of the replica's."""
    go_on, limits = threading.Event(), Limits(send_ns=int(1e9), receive_ns=int(1e9))
    with replica_that_takes(go_on) as port, asked_for_long(tmp_path, port, limits) as one:
        assert not go_on.wait(3.0)
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(str(tmp_path / "admin"))
            channel.sendall(b"show sess\n")
            (under_way,) = (line for line in channel.makefile() if " be=http " in line)
        client, replica = re.findall(r"rex=(\w*),wex=(\w*)\]", under_way)[-2:]
        assert client == ("", "")  # never
        assert re.fullmatch(r"(1h|5\dm\d*s?)", replica[0]), under_way
        go_on.set()
        assert one.getresponse().status == 200
