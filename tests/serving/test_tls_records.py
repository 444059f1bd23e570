"""TLS is read record by record: what comes in is what was sent, and floods without data end their connection."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.certificates import certified
from tests.support.models import solid
from tests.support.servers import ServerThread, bundle_of, place_of

from hasten.serving.tls import read_tls

_VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


class Pair:
    """A client and the server's side of one connection, in memory."""

    def __init__(
        self,
        certificate: Path,
        version: ssl.TLSVersion,
        *,
        key: Path | None = None,
        client_ca: Path | None = None,
        own: Path | None = None,
    ) -> None:
        client = ssl.create_default_context(cafile=str(certificate))
        client.maximum_version = version
        if own is not None:
            client.load_cert_chain(own)
        self.to_server, self.to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.sent = ssl.MemoryBIO()
        self.client = client.wrap_bio(self.to_client, self.sent, server_hostname="127.0.0.1")
        key = key or certificate.with_name("key.pem")
        context = read_tls(certificate, key, client_ca).context
        self.server = context.wrap_bio(self.to_server, self.to_client, server_side=True)

    def shake_hands(self, piece: int) -> None:
        """Finish the handshake while the client's bytes arrive `piece` at a time."""
        arriving = b""
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.client.do_handshake()
            arriving += self.sent.read()
            while arriving:
                self.to_server.write(arriving[:piece])
                arriving = arriving[piece:]
                with contextlib.suppress(ssl.SSLWantReadError):
                    return self.server.do_handshake()

    def read(self, most: int, buffered: bool) -> Iterator[bytes]:
        """Yield all that the server can read by now."""
        with contextlib.suppress(ssl.SSLWantReadError):
            while True:
                if buffered:
                    buffer = bytearray(most)
                    size: Any = self.server.read(most, buffer)  # typeshed takes it for bytes
                    yield bytes(buffer[:size])
                else:
                    yield self.server.read(most)


@given(
    pieces=st.lists(st.integers(1, 70_000), min_size=1, max_size=6),
    split=st.sampled_from([1, 3, 5, 1000, 16_413, 1 << 20]),
    most=st.sampled_from([100, 16_384, 1 << 18]),
    version=st.sampled_from(_VERSIONS),
    buffered=st.booleans(),
)
def test_what_the_server_reads_is_what_the_client_sent(
    certificate: Path,
    pieces: list[int],
    split: int,
    most: int,
    version: ssl.TLSVersion,
    buffered: bool,
) -> None:
    pair = Pair(certificate, version)
    pair.shake_hands(max(split, 50))
    sent = [bytes([number + 1]) * size for number, size in enumerate(pieces)]
    for piece in sent:
        pair.client.write(piece)
    arriving, read = pair.sent.read(), b""
    for begin in range(0, len(arriving), max(split, len(arriving) // 500)):
        pair.to_server.write(arriving[begin : begin + max(split, len(arriving) // 500)])
        read += b"".join(pair.read(most, buffered))
    assert read == b"".join(sent)
    assert pair.server.version() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]


@pytest.mark.parametrize("version", _VERSIONS)
def test_a_client_that_says_goodbye_is_heard(certificate: Path, version: ssl.TLSVersion) -> None:
    pair = Pair(certificate, version)
    pair.shake_hands(1 << 20)
    pair.client.write(b"the last words")
    with contextlib.suppress(ssl.SSLWantReadError):
        pair.client.unwrap()
    pair.to_server.write(pair.sent.read())
    assert pair.server.read(1000) == b"the last words"
    assert pair.server.read(1000) == b""


@pytest.mark.parametrize("version", _VERSIONS)
def test_a_servers_goodbye_hears_the_clients(certificate: Path, version: ssl.TLSVersion) -> None:
    pair = Pair(certificate, version)
    pair.shake_hands(1 << 20)
    pair.client.do_handshake()
    with contextlib.suppress(ssl.SSLWantReadError):
        pair.client.unwrap()
    pair.to_server.write(pair.sent.read())
    with contextlib.suppress(ssl.SSLWantReadError):
        pair.server.unwrap()  # it sends its own, and may have to be asked again
    pair.server.unwrap()
    assert not pair.to_server.pending


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff", b"\x80\x2e\x01" + bytes(45)]
)
def test_what_is_no_tls_is_refused_at_once(certificate: Path, data: bytes) -> None:
    pair = Pair(certificate, ssl.TLSVersion.TLSv1_3)
    pair.to_server.write(data)
    with pytest.raises(ssl.SSLError) as caught:
        pair.server.do_handshake()
    assert not isinstance(caught.value, ssl.SSLWantReadError)


def test_a_handshake_of_countless_records_is_ended(certificate: Path) -> None:
    """A client may put each byte of a message into a record of its own; others cost OpenSSL far more."""
    pair = Pair(certificate, ssl.TLSVersion.TLSv1_3)
    message = b"\x01" + (4000).to_bytes(3, "big") + bytes(4000)
    pair.to_server.write(b"".join(b"\x16\x03\x01\x00\x01" + bytes([one]) for one in message))
    with pytest.raises(ssl.SSLError, match="too many records without data"):
        pair.server.do_handshake()


def extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2, "big") + len(content).to_bytes(2, "big") + content


def listed(content: bytes, size_bytes: int = 2) -> bytes:
    return len(content).to_bytes(size_bytes, "big") + content


def hello(groups: int, shares: int) -> bytes:
    """Return a client's first message of TLS 1.3 in records, with that many groups and shares of keys that nobody knows."""
    unknown, x25519 = b"\x99\x99", b"\x00\x1d"
    keys = (unknown + listed(b"k")) * shares + x25519 + listed(os.urandom(32))
    extensions = (
        extension(43, listed(b"\x03\x04", 1))
        + extension(10, listed(b"\x7a\x7a" * groups + unknown + x25519))
        + extension(13, listed(b"\x04\x03\x08\x04"))
        + extension(51, listed(keys))
    )
    suites = listed(b"\x13\x01\x13\x02\x13\x03")
    content = b"\x03\x03" + os.urandom(32) + b"\x00" + suites + b"\x01\x00" + listed(extensions)
    message = b"\x01" + listed(content, 3)
    pieces = [message[begin : begin + 16384] for begin in range(0, len(message), 16384)]
    return b"".join(b"\x16\x03\x01" + listed(piece) for piece in pieces)


def test_a_long_first_message_is_refused_before_it_is_handled(certificate: Path) -> None:
    """OpenSSL looks each share of a key up in the list of groups: 64 kB took 37 ms, and others waited for 150 ms while 30 came."""
    pair = Pair(certificate, ssl.TLSVersion.TLSv1_3)
    pair.to_server.write(hello(4000, 2000))
    with pytest.raises(ssl.SSLWantReadError):
        pair.server.do_handshake()
    assert pair.to_client.pending > 500  # it was answered
    pair = Pair(certificate, ssl.TLSVersion.TLSv1_3)
    pair.to_server.write(hello(16_000, 6300))
    with pytest.raises(ssl.SSLError, match="the handshake is too long"):
        pair.server.do_handshake()
    assert not pair.to_client.pending


@pytest.mark.parametrize("version", _VERSIONS)
def test_a_client_cannot_send_hundreds_of_certificates(
    tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """In 3 kB, where the client may compress them; they took 26 ms of the loop."""
    authority, own = certified(tmp_path, "authority"), certified(tmp_path, "own")
    many = tmp_path / "many.pem"
    many.write_bytes(own.read_bytes() * 200 + own.with_suffix(".key").read_bytes())
    key = authority.with_suffix(".key")
    pair = Pair(authority, version, key=key, client_ca=authority, own=many)
    with pytest.raises(ssl.SSLError, match="the handshake is too long"):
        pair.shake_hands(1 << 20)


class KeyChanger:
    """A client of TLS 1.3 that can send new keys, which Python's `ssl` can't."""

    def __init__(self, connection: socket.socket) -> None:
        name = ctypes.util.find_library("ssl")
        if name is None:
            pytest.skip("no library of OpenSSL here: apt-get install openssl")
        self._library = library = ctypes.CDLL(name)
        for function in (library.TLS_client_method, library.SSL_CTX_new, library.SSL_new):
            function.restype = ctypes.c_void_p
        context = library.SSL_CTX_new(ctypes.c_void_p(library.TLS_client_method()))
        self._ssl = ctypes.c_void_p(library.SSL_new(ctypes.c_void_p(context)))
        library.SSL_set_fd(self._ssl, connection.fileno())
        assert library.SSL_connect(self._ssl) == 1

    def send_keys(self, count: int) -> bool:
        """Send new keys that want none in return; return whether the connection is still open."""
        for _ in range(count):
            assert self._library.SSL_key_update(self._ssl, 0) == 1
            if self._library.SSL_do_handshake(self._ssl) != 1:
                return False
        return True

    def ask(self) -> bytes:
        """Ask for the server's name; return the answer's beginning, or nothing if the connection has ended."""
        self.send(b"GET /v2 HTTP/1.1\r\nHost: here\r\n\r\n")
        return self.read()

    def send(self, data: bytes) -> None:
        """Send data, if the connection is still open."""
        self._library.SSL_write(self._ssl, data, len(data))

    def read(self) -> bytes:
        """Return what has arrived, up to 1,000 bytes; nothing if the connection has ended."""
        data = ctypes.create_string_buffer(1000)
        size = self._library.SSL_read(self._ssl, data, 1000)
        return data.raw[: max(0, size)]


def test_a_flood_of_new_keys_ends_its_connection(tmp_path: Path, certificate: Path) -> None:
    """2,500 messages of TLS 1.3 with new keys, 67 kB, held everybody up for 0.2 s; no token was needed."""
    place, key = place_of(bundle_of(tmp_path, solid(tmp_path))), certificate.with_name("key.pem")
    with (
        ServerThread(place, certificate=certificate, key=key) as server,
        socket.create_connection(("127.0.0.1", server.http_port)) as connection,
    ):
        client = KeyChanger(connection)
        assert client.send_keys(30)
        assert client.ask().startswith(b"HTTP/1.1 200 ")
        assert not (client.send_keys(100) and client.ask())
