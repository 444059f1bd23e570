"""Lists of revoked certificates: who is on one gets no connection, from the moment the file changes."""

from __future__ import annotations

import contextlib
import http.client
import ssl
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.support.certificates import certified, revoking
from tests.support.models import solid
from tests.support.servers import ServerProcess, bundle_of
from tests.support.waiting import PATIENCE_S, until

from hasten.cli import main

pytestmark = pytest.mark.seconds

CLIENTS = '[one]\nscopes = ["read"]\ncertificate = "one"\n[other]\nscopes = ["read"]\ncertificate = "other"\n'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("revoked")
    certified(folder, "server")
    authority, second = certified(folder, "authority"), certified(folder, "second")
    for name, by in (("one", authority), ("other", authority), ("foreign", second)):
        certified(folder, name, by=by)
    both = authority.read_bytes() + second.read_bytes()
    (folder / "both.pem").write_bytes(both)
    tokens = folder / "tokens.toml"
    tokens.touch(0o600)
    tokens.write_text(CLIENTS)
    bundle_of(folder, solid(folder))
    return folder


def serving(made: Path, revoked: Path, ca: str = "authority") -> ServerProcess:
    return ServerProcess(
        *(made / "solid.hasten", "--tokens", made / "tokens.toml"),
        *("--tls-cert", made / "server.pem", "--tls-key", made / "server.key"),
        *("--tls-client-ca", made / f"{ca}.pem", "--tls-crl", revoked),
    )


def connection(server: ServerProcess, made: Path, client: str) -> http.client.HTTPSConnection:
    context = ssl.create_default_context(cafile=str(made / "server.pem"))
    context.load_cert_chain(made / f"{client}.pem", made / f"{client}.key")
    return http.client.HTTPSConnection(
        "127.0.0.1", server.http_port, timeout=PATIENCE_S, context=context
    )


def status(one: http.client.HTTPConnection) -> int:
    one.request("GET", "/v2/models/solid")
    answer = one.getresponse()
    answer.read()
    return answer.status


def enters(server: ServerProcess, made: Path, client: str) -> bool:
    with contextlib.closing(connection(server, made, client)) as one:
        try:
            return status(one) == 200
        except (OSError, http.client.RemoteDisconnected):
            return False


def test_a_revoked_certificate_gets_no_connection_once_the_list_says_so(
    made: Path, tmp_path: Path
) -> None:
    file = tmp_path / "revoked.pem"
    file.write_bytes(revoking(made / "authority.pem"))
    with (
        serving(made, file) as server,
        contextlib.closing(connection(server, made, "one")) as before,
    ):
        assert status(before) == 200
        assert enters(server, made, "other")
        (tmp_path / "next").write_bytes(revoking(made / "authority.pem", made / "one.pem"))
        (tmp_path / "next").rename(file)
        until(lambda: not enters(server, made, "one"))
        assert enters(server, made, "other")
        assert status(before) == 200  # it began before

        file.write_bytes(b"no list")
        until(lambda: "the previous certificates stay in use" in server.errors)
        assert not enters(server, made, "one")
        assert enters(server, made, "other")


def test_whose_authority_has_no_list_gets_no_connection(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "revoked.pem"
    file.write_bytes(revoking(made / "authority.pem"))
    with serving(made, file, "both") as server:
        assert enters(server, made, "other")
        assert not enters(server, made, "foreign")


def test_lists_need_certificates_of_clients_and_no_grpc(made: Path, tmp_path: Path) -> None:
    file, mixed = tmp_path / "revoked.pem", tmp_path / "mixed.pem"
    file.write_bytes(revoking(made / "authority.pem"))
    mixed.write_bytes(file.read_bytes() + (made / "second.pem").read_bytes())
    pair = ["--tls-cert", str(made / "server.pem"), "--tls-key", str(made / "server.key")]
    asked = [*pair, "--tokens", str(made / "tokens.toml")]
    asked += ["--tls-client-ca", str(made / "authority.pem")]
    for words, error in (
        (
            ["--tls-crl", str(file)],
            "--tls-crl is about clients' certificates: give --tls-client-ca, too",
        ),
        (
            [*asked, "--tls-crl", str(file), "--grpc", "0"],
            "--tls-crl doesn't work with --grpc: gRPC's library reads no lists of revoked certificates, so "
            "clients with revoked ones would get in; leave out --grpc, or remove their names from the file of "
            "--tokens",
        ),
        (
            [*asked, "--tls-crl", str(made / "second.pem")],
            f"{made}/second.pem must hold lists of revoked certificates, as PEM, and nothing else: got 0 lists "
            "and 1 certificates",
        ),
        (
            [*asked, "--tls-crl", str(mixed)],
            f"{mixed} must hold lists of revoked certificates, as PEM, and nothing else: got 1 lists and 1 "
            "certificates",
        ),
        (
            [*asked, "--tls-crl", "x.pem"],
            "can't use the lists of revoked certificates in x.pem: No such file or directory",
        ),
    ):
        refused = CliRunner().invoke(
            main, ["serve", str(made / "solid.hasten"), *words], prog_name="hasten"
        )
        assert (refused.stderr, refused.exit_code) == (f"hasten: {error}\n", 2)
