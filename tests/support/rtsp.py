"""A camera that speaks RTSP on this host: it plays an MPEG transport stream to whoever connects."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator

_SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=street\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    "m=video 0 RTP/AVP 33\r\na=control:track1\r\n"
)
_TS_BYTES = 188


class Camera:
    """A server that answers one client at a time, and hangs up once it has played its stream.

    Sources: RFC 2326 (RTSP, with interleaved data in 10.12), RFC 3550 (RTP), RFC 2250 (MPEG-TS).

    Attributes:
        url: Its address.
        clients: Number of clients that it has played to.
    """

    def __init__(self, stream: bytes, clients: int, pause_s: float) -> None:
        self._stream = stream
        self._pause_s = pause_s
        self._most = clients
        self.clients = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://me:secret@127.0.0.1:{self._socket.getsockname()[1]}/street"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while self.clients < self._most:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self.clients += 1
            with client, contextlib.suppress(OSError):
                self._talk(client)
        self._socket.close()

    def _talk(self, client: socket.socket) -> None:
        for lines in _requests(client):
            method = lines[0].split()[0]
            number = next(one for one in lines if one.lower().startswith("cseq"))
            body = _SDP if method == "DESCRIBE" else ""
            more = {
                "OPTIONS": "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n",
                "DESCRIBE": f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n",
                "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n",
                "PLAY": "Session: 1\r\n",
            }.get(method, "")
            client.sendall(f"RTSP/1.0 200 OK\r\n{number}\r\n{more}\r\n{body}".encode())
            if method == "PLAY":
                self._play(client)
                return
            if method == "TEARDOWN":
                return

    def _play(self, client: socket.socket) -> None:
        step = 7 * _TS_BYTES
        for count, at in enumerate(range(0, len(self._stream), step)):
            packet = struct.pack(">BBHII", 0x80, 33, count & 0xFFFF, count * 900, 1)
            packet += self._stream[at : at + step]
            client.sendall(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
            time.sleep(self._pause_s)

    def close(self) -> None:
        """Stop waiting for clients."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


def _requests(client: socket.socket) -> Iterator[list[str]]:
    """Yield the lines of each request; none of them has a body."""
    held = b""
    while data := client.recv(4096):
        held += data
        while b"\r\n\r\n" in held:
            head, _, held = held.partition(b"\r\n\r\n")
            yield head.decode().split("\r\n")


@contextlib.contextmanager
def camera(stream: bytes, *, clients: int = 1, pause_s: float = 0.0) -> Iterator[Camera]:
    """Play a stream over RTSP to this many clients, one after another."""
    one = Camera(stream, clients, pause_s)
    try:
        yield one
    finally:
        one.close()
