"""Join the metrics of several servers into one page, each sample labelled with its replica."""

from __future__ import annotations

import http.client
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.origins import ONE_HOST, Origins
from hasten.serving.protocol.rights import Rights, Scope

_PATIENCE_S = 5.0
_KEPT_NS = 1_000_000_000
"""Time for which a page is the answer to all who ask."""
_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{)?")


def joined(pages: Mapping[str, str]) -> str:
    """Join pages in Prometheus' text format, grouped by family and labelled with the replica.

    Args:
        pages: Name of a replica -> its page.
    """
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for replica, page in pages.items():
        family = ""
        label = f'replica="{replica}"'
        for line in page.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                family = line.split(" ", 3)[2]
                head = heads.setdefault(family, [])
                kind = line[:7]
                if not any(each.startswith(kind) for each in head):
                    head.append(line)
            elif line and not line.startswith("#"):
                samples.setdefault(family, []).append(_labelled(line, label))
    return "".join(
        f"{line}\n"
        for family, lines in samples.items()
        for line in (*heads.get(family, ()), *lines)
    )


def _labelled(line: str, label: str) -> str:
    found = _SAMPLE.match(line)
    if found is None:
        return line
    name, opened = found.groups()
    rest = line[found.end() :]
    if not opened:
        return f"{name}{{{label}}}{rest}"
    return f"{name}{{{label}{'' if rest.startswith('}') else ','}{rest}"


class Federation:
    """HTTP server, for this machine only, of one page with the metrics of all replicas.

    Args:
        places: Function that returns the name of each replica -> host and port.
        together: Function that returns a page about all replicas together, told as the replica "all".
        origins: Names of the server, by which requests of foreign web pages are told; None to answer all.
        rights: Function that returns what clients may do; None to serve all alike.
        secret: Bearer token that the replicas ask for.
    """

    def __init__(
        self,
        places: Callable[[], Mapping[str, tuple[str, int]]],
        together: Callable[[], str] = lambda: "",
        origins: Origins | None = None,
        rights: Callable[[], Rights | None] = lambda: None,
        secret: bytes = b"",
    ) -> None:
        federation = self
        self._together, self._origins, self._rights = together, origins, rights
        self._secret = secret.decode()

        class Page(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = _PATIENCE_S

            def do_GET(self) -> None:
                self._tell(*federation.answer(self.headers))

            def do_HEAD(self) -> None:
                self.do_GET()

            def _tell(self, status: int, body: bytes) -> None:
                """Answer, and close: a body isn't read, and would be taken for a proxy's next request."""
                self.send_response(status)
                self.send_header("Content-Type", _TEXT)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Connection", "close")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def send_error(
                self, code: int, message: str | None = None, explain: str | None = None
            ) -> None:
                """Answer what can't be parsed, or has another method, with one line."""
                why = message or HTTPStatus(code).phrase
                said = f"the metrics are asked for with GET or HEAD: {why:.200}\n"
                self._tell(code, said.encode())

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """Print nothing: a client that goes away is no fault."""

        self._places = places
        self._asking = ThreadPoolExecutor(16, "hasten-federation")
        self._making = threading.Lock()
        self._made: bytes | None = None
        self._made_ns = 0
        self._server = Server(("127.0.0.1", 0), Page)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._asking.shutdown(wait=False, cancel_futures=True)

    def answer(self, headers: Message) -> tuple[int, bytes]:
        """Return the HTTP status and the page for a request with these headers."""
        if self._origins is not None:
            known = {
                name.lower().encode("latin-1"): value.encode("latin-1")
                for name, value in headers.items()
            }
            refusal = self._origins.refusal(b"GET", known)
            if len(headers.get_all("Host", ())) != 1:
                refusal = ProtocolError(Kind.INVALID, ONE_HOST)
            if refusal is not None:
                return refusal.kind.http, f"{refusal}\n".encode()
        return self.page(headers.get("Authorization"))

    def page(self, authorization: str | None = None) -> tuple[int, bytes]:
        """Return the joined page; one is made at a time, for all who ask meanwhile or within a second after.

        Args:
            authorization: Authorization header of the client; None if there is none.

        Returns:
            HTTP status and the joined page.
        """
        rights = self._rights()
        if rights is not None:
            try:
                rights.check(Scope.READ, (authorization or "").encode("latin-1"))
            except ProtocolError as error:
                return error.kind.http, f"{error}\n".encode()
        with self._making:
            if self._made is None or time.monotonic_ns() - self._made_ns >= _KEPT_NS:
                self._made = self._all().encode()
                self._made_ns = time.monotonic_ns()
            return 200, self._made

    def _all(self) -> str:
        """Ask every replica for its metrics, and join them; one that doesn't answer is left out."""
        places = self._places()
        answers = self._asking.map(lambda place: _asked(place, self._secret), places.values())
        found = dict(zip(places, answers, strict=True))
        pages = {replica: page for replica, (status, page) in found.items() if status == 200}
        return joined({**pages, "all": self._together()})


def _asked(place: tuple[str, int], secret: str) -> tuple[int, str]:
    host, port = place
    shown = f"[{host}]" if ":" in host else host
    request = urllib.request.Request(f"http://{shown}:{port}/metrics")
    request.add_header("Accept", "text/plain")
    if secret:
        request.add_header("Authorization", f"Bearer {secret}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_PATIENCE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""
    except (OSError, ValueError, http.client.HTTPException):
        return 0, ""
