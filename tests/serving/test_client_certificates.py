"""Certificates of clients, and certificates of the server that change, over real sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from click.testing import CliRunner
from tests.support.certificates import certified
from tests.support.models import solid
from tests.support.servers import ServerProcess, ServerThread, bundle_of, place_of
from tests.support.waiting import PATIENCE_S, until

from hasten.cli import main
from hasten.serving.protocol.errors import ProtocolError
from hasten.serving.protocol.messages import SERVICE
from hasten.serving.protocol.rights import Rights, Scope
from hasten.serving.protocol.tokens import read_clients

TOKEN = "a-token-that-may-control"
CLIENTS = f"""
[prometheus]
scopes = ["read"]
certificate = "prometheus.example"

[gateway]
scopes = ["infer"]
certificate = "Gateway.Example"

[tester]
scopes = ["infer", "read"]
certificate = "tester.example"

[operator]
scopes = ["control"]
token = "{TOKEN}"
"""
LOAD = "POST /v2/repository/models/solid/load"
INFER = "POST /v2/models/solid/infer"
READ = "GET /v2/models/stats"


def tokens_file(folder: Path, text: str = CLIENTS) -> Path:
    file = folder / "tokens.toml"
    file.touch(0o600)
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates: of a server, of an authority, of clients by it and by another, and a bundle."""
    folder = tmp_path_factory.mktemp("certificates")
    certified(folder, "server")
    authority, other = certified(folder, "authority"), certified(folder, "other")
    certified(folder, "reader", cn="prometheus.example", by=authority)
    certified(folder, "tester", cn="tester.example", by=authority)
    certified(folder, "asker", "DNS:elsewhere.example", "DNS:gateway.example", by=authority)
    certified(
        folder,
        *("nobody", "URI:gateway.example", "email:prometheus.example@example"),
        cn="stranger",
        by=authority,
    )
    certified(folder, "forged", "DNS:gateway.example", cn="prometheus.example", by=other)
    bundle_of(folder, solid(folder))
    return folder


@pytest.fixture(scope="module")
def server(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerThread]:
    """Serves `solid` to clients with a certificate by the authority."""
    with ServerThread(
        place_of(made / "solid.hasten"),
        grpc=True,
        tokens=tokens_file(tmp_path_factory.mktemp("tokens")),
        certificate=made / "server.pem",
        key=made / "server.key",
        client_ca=made / "authority.pem",
    ) as one:
        yield one


def https(
    port: int, made: Path, client: str = "", trusted: str = "server"
) -> http.client.HTTPSConnection:
    context = ssl.create_default_context(cafile=str(made / f"{trusted}.pem"))
    if client:
        context.load_cert_chain(made / f"{client}.pem", made / f"{client}.key")
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE_S, context=context)


def ask(
    server: ServerThread, made: Path, client: str, route: str, **headers: str
) -> tuple[int, str]:
    """Send a request; its status, and the error in its answer."""
    method, _, path = route.partition(" ")
    with contextlib.closing(https(server.http_port, made, client)) as connection:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        text = answer.read()
    found = json.loads(text) if text else {}
    return answer.status, found.get("error", "")


def channel_of(port: int, made: Path, client: str = "", trusted: str = "server") -> grpc.Channel:
    own = [(made / f"{client}.{kind}").read_bytes() for kind in ("key", "pem")] if client else ()
    credentials = grpc.ssl_channel_credentials((made / f"{trusted}.pem").read_bytes(), *own)
    return grpc.secure_channel(f"127.0.0.1:{port}", credentials)


def call(
    port: int,
    made: Path,
    client: str,
    method: str,
    token: str = "",
    trusted: str = "server",
    **more: str,
) -> tuple[str, str]:
    """Call a method of gRPC with an empty message and more metadata; the status and its details."""
    given = {**more, **({"authorization": f"Bearer {token}"} if token else {})}
    metadata = [(name.replace("_", "-"), value) for name, value in given.items()]
    with channel_of(port, made, client, trusted) as channel:
        try:
            channel.unary_unary(f"/{SERVICE}/{method}")(b"", timeout=PATIENCE_S, metadata=metadata)
        except grpc.RpcError as error:
            return error.code().name, error.details()
    return "OK", ""


def lacking(scope: str, name: str, has: str) -> str:
    return f"this needs the scope {scope}, but {name!r} has only {has}"


# -- certificates of clients


def test_the_names_in_a_certificate_have_the_scopes_of_the_file(
    server: ServerThread, made: Path
) -> None:
    assert ask(server, made, "reader", READ) == (200, "")
    assert ask(server, made, "reader", INFER) == (403, lacking("infer", "prometheus", "read"))
    assert ask(server, made, "asker", READ) == (403, lacking("read", "gateway", "infer"))
    assert ask(server, made, "asker", INFER)[0] == 400  # a body is missing
    assert ask(server, made, "asker", LOAD) == (403, lacking("control", "gateway", "infer"))

    port = server.grpc_port
    assert call(port, made, "reader", "ModelStatistics") == ("OK", "")
    assert call(port, made, "reader", "RepositoryModelLoad") == (
        "PERMISSION_DENIED",
        lacking("control", "prometheus", "read"),
    )
    assert call(port, made, "asker", "ModelStatistics") == (
        "PERMISSION_DENIED",
        lacking("read", "gateway", "infer"),
    )
    assert call(port, made, "asker", "ModelInfer")[0] == "NOT_FOUND"


def test_tritons_client_infers_with_a_certificate(server: ServerThread, made: Path) -> None:
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 4), np.float32))
    with triton.InferenceServerClient(
        server.grpc_url,
        ssl=True,
        root_certificates=str(made / "server.pem"),
        private_key=str(made / "asker.key"),
        certificate_chain=str(made / "asker.pem"),
    ) as client:
        assert client.infer("solid", [tensor]).get_response().outputs[0].name == "y"


def test_a_load_test_presents_its_certificate_on_both_ports(
    server: ServerThread, made: Path
) -> None:
    own = ("--client-cert", made / "tester.pem", "--client-key", made / "tester.key")
    for url in (f"https://127.0.0.1:{server.http_port}", f"grpcs://127.0.0.1:{server.grpc_port}"):
        words = (
            "loadtest",
            url,
            "--model",
            "solid",
            "--rate",
            20,
            "--for",
            "0.3s",
            "--warmup",
            "0s",
        )
        told = [*map(str, (*words, "--ca", made / "server.pem"))]
        found = CliRunner().invoke(main, [*told, *map(str, own)])
        assert found.exit_code == 0, found.output
        assert " ok" in found.output
        without = CliRunner().invoke(main, told)
        assert without.exit_code == 2, without.output
        half = CliRunner().invoke(main, [*told, *map(str, own[:2])])
        assert half.exit_code == 2
        assert "give both --client-cert and --client-key" in half.output
        wrong = CliRunner().invoke(main, [*told, *map(str, (*own[:3], made / "reader.key"))])
        assert wrong.exit_code == 2
        assert "can't read the client's certificate" in wrong.output


def test_a_certificate_that_no_client_of_the_file_has_may_do_nothing(
    server: ServerThread, made: Path
) -> None:
    """Neither an address nor a URI in it is a name."""
    error = "this server knows no client with this certificate: got 'stranger'"
    assert ask(server, made, "nobody", READ) == (403, error)
    assert ask(server, made, "nobody", "GET /v2/health/ready") == (200, "")
    assert call(server.grpc_port, made, "nobody", "ModelStatistics") == ("PERMISSION_DENIED", error)
    assert call(server.grpc_port, made, "nobody", "ServerReady") == ("OK", "")


def test_a_name_with_a_letter_that_only_looks_like_another_is_another(tmp_path: Path) -> None:
    kelvin = "\N{KELVIN SIGN}"
    assert kelvin.lower() == "k"
    text = '[one]\nscopes = ["read"]\ncertificate = "Desk.Example"\n'
    rights = Rights(read_clients(tokens_file(tmp_path, text)))
    rights.check(Scope.READ, b"", ["DESK.example"])
    with pytest.raises(ProtocolError, match="knows no client with this certificate"):
        rights.check(Scope.READ, b"", [f"des{kelvin}.example"])
    other = Rights(read_clients(tokens_file(tmp_path, text.replace("k", kelvin))))
    with pytest.raises(ProtocolError, match="knows no client with this certificate"):
        other.check(Scope.READ, b"", ["desk.example"])
    other.check(Scope.READ, b"", [f"des{kelvin}.example"])


def test_a_request_with_a_token_has_its_rights_instead(server: ServerThread, made: Path) -> None:
    for client in ("reader", "nobody"):
        status, error = ask(server, made, client, LOAD, Authorization=f"Bearer {TOKEN}")
        assert (status, error.partition(":")[0]) == (
            403,
            "clients may not load and unload models",
        )
        assert ask(server, made, client, READ, Authorization=f"Bearer {TOKEN}")[0] == 403
        assert ask(server, made, client, READ, Authorization="Bearer wrong")[0] == 401
        assert call(server.grpc_port, made, client, "TraceSetting", TOKEN) == ("OK", "")
        assert call(server.grpc_port, made, client, "ModelStatistics", "x")[0] == "UNAUTHENTICATED"


@pytest.mark.parametrize("client", ["", "forged"])
def test_who_has_no_certificate_of_the_authority_gets_no_connection(
    server: ServerThread, made: Path, client: str
) -> None:
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
        ask(server, made, client, "GET /v2/health/live", Authorization=f"Bearer {TOKEN}")
    assert call(server.grpc_port, made, client, "ServerLive", TOKEN)[0] == "UNAVAILABLE"


def test_a_foreign_page_gets_nothing_by_its_visitors_certificate(
    server: ServerThread, made: Path
) -> None:
    """A browser sends a certificate along with what any page asks for, unlike a token."""
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://foreign.example"}):
        status, error = ask(server, made, "reader", READ, **headers)
        assert status == 403
        assert error.startswith("a web page of ")
    for metadata in ({"sec_fetch_site": "cross-site"}, {"origin": "https://foreign.example"}):
        code, error = call(server.grpc_port, made, "reader", "ServerMetadata", **metadata)
        assert code == "PERMISSION_DENIED"
        assert error.startswith("a web page of ")
    assert call(server.grpc_port, made, "reader", "ServerMetadata")[0] == "OK"
    assert ask(server, made, "reader", READ, **{"Sec-Fetch-Site": "same-origin"})[0] == 200


# -- certificates that change


@pytest.mark.seconds
def test_new_certificates_are_for_new_connections_and_no_connection_is_lost(
    made: Path, tmp_path: Path
) -> None:
    for name in ("server", "reader", "asker", "forged", "other"):
        for kind in ("pem", "key"):
            shutil.copy(made / f"{name}.{kind}", tmp_path)
    shutil.copy(made / "authority.pem", tmp_path / "ca.pem")
    shutil.copy(certified(tmp_path, "renewed"), tmp_path / "used.pem")
    for name in ("used.pem", "used.key"):
        shutil.copy(tmp_path / name.replace("used", "server"), tmp_path / name)
    kept = f"the previous certificates stay in use: can't use the certificate {tmp_path}/used.pem"

    def status(connection: http.client.HTTPConnection) -> int:
        connection.request("GET", READ.partition(" ")[2])
        answer = connection.getresponse()
        answer.read()
        return answer.status

    def is_new() -> bool:
        with contextlib.closing(https(running.http_port, tmp_path, "forged", "renewed")) as one:
            with contextlib.suppress(OSError):
                return status(one) == 200
        return False

    with (
        ServerProcess(
            *(made / "solid.hasten", "--grpc", "0", "--tokens", tokens_file(tmp_path)),
            *("--tls-cert", tmp_path / "used.pem", "--tls-key", tmp_path / "used.key"),
            *("--tls-client-ca", tmp_path / "ca.pem"),
        ) as running,
        contextlib.closing(https(running.http_port, tmp_path, "reader")) as before,
        channel_of(running.grpc_port, tmp_path, "reader") as channel,
    ):
        statistics = channel.unary_unary(f"/{SERVICE}/ModelStatistics")
        assert status(before) == 200
        statistics(b"", timeout=PATIENCE_S)

        shutil.copy(tmp_path / "renewed.key", tmp_path / "used.key")  # without its certificate
        until(lambda: kept in running.errors)
        assert call(running.grpc_port, tmp_path, "reader", "ModelStatistics") == ("OK", "")
        with contextlib.closing(https(running.http_port, tmp_path, "reader")) as one:
            assert status(one) == 200

        shutil.copy(tmp_path / "other.pem", tmp_path / "ca.pem")
        shutil.copy(tmp_path / "renewed.pem", tmp_path / "used.pem")
        until(is_new)
        with (
            pytest.raises(OSError, match=r"."),
            contextlib.closing(https(running.http_port, tmp_path, "reader", "renewed")) as one,
        ):
            status(one)
        port = running.grpc_port
        assert call(port, tmp_path, "forged", "ModelStatistics", trusted="renewed") == ("OK", "")
        assert call(port, tmp_path, "reader", "ServerLive", trusted="renewed")[0] == "UNAVAILABLE"
        assert call(port, tmp_path, "forged", "ServerLive")[0] == "UNAVAILABLE"

        # The same connections as before: what they began with holds for them.
        socket_of = before.sock
        assert status(before) == 200
        assert before.sock is socket_of
        statistics(b"", timeout=PATIENCE_S)


# -- options


def test_certificates_of_clients_need_the_rest(made: Path, tmp_path: Path) -> None:
    solid, tokens = str(made / "solid.hasten"), str(tokens_file(tmp_path))
    pair = ["--tls-cert", str(made / "server.pem"), "--tls-key", str(made / "server.key")]
    locked = tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "ec", "-aes128", "-passout", "pass:secret", "-in", made / "server.key", "-out", locked],
        check=True,
        capture_output=True,
    )  # fmt: skip
    needs = (
        "--tls-client-ca needs --tls-cert and --tls-key, and --tokens, which says what the names in "
        "clients' certificates may do"
    )
    for words, error in (
        ([*pair, "--tls-client-ca", "x.pem"], needs),
        (["--tokens", tokens, "--tls-client-ca", "x.pem"], needs),
        (
            [*pair, "--tokens", tokens, "--tls-client-ca", "x.pem"],
            "can't use the certificates in x.pem for clients: No such file or directory",
        ),
        (
            [*pair, "--tokens", tokens, "--tls-client-ca", tokens],
            f"can't use the certificates in {tokens} for clients: no certificate or crl found",
        ),
        (
            [*pair[:2], "--tls-key", str(locked)],
            f"the key {locked} needs a passphrase: give a key that is stored without a passphrase",
        ),
    ):
        refused = CliRunner().invoke(main, ["serve", solid, *words], prog_name="hasten")
        assert (refused.stderr, refused.exit_code) == (f"hasten: {error}\n", 2)
