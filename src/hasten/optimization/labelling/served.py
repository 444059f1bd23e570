"""A server on this machine alone for a page of labels: it writes them as they come."""

from __future__ import annotations

import contextlib
import csv
import hmac
import json
import secrets
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hasten.errors import HastenError, InputError, first_words, named
from hasten.optimization.labelling.answers import Form, read_labels, write_labels
from hasten.optimization.labelling.folder import LABELS, PAGE, form_of, read_asked

HOST = "127.0.0.1"
_MOST_BYTES = 8 << 20
_PATIENCE_S = 60.0
"""Time after which a connection on which nothing comes is closed."""
_END_WITHIN_S = 0.05
"""Time within which the server ends once it is told to; by default half a second."""
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
}


class Desk:
    """The table of labels in a folder, read and changed by any number of threads.

    Args:
        folder: Folder that a run wrote its samples to.

    Raises:
        InputError: it is no such folder, it has no page, or its table can't be read.
    """

    def __init__(self, folder: Path) -> None:
        record = read_asked(folder)
        self._table = folder / LABELS
        self._ids, self._form = tuple(map(str, record.get("ids", ()))), form_of(record)
        self._lock = threading.Lock()
        try:
            self.page = (folder / PAGE).read_bytes()
        except OSError as error:
            raise InputError(f"can't read {folder / PAGE}: {error.strerror or error}") from error
        self.labels()

    @property
    def form(self) -> Form:
        """Form of a label."""
        return self._form

    def labels(self) -> dict[str, str]:
        """Return the labels so far, by identifier."""
        with self._lock:
            return read_labels(self._table, self._ids, self._form)

    def take(self, given: Any) -> int:
        """Write some labels, each in the place of an older one; return how many there are now.

        Args:
            given: Identifier -> label, or an empty text to take a label away.

        Raises:
            InputError: a label can't be used, or the table can't be written; then nothing changes.
        """
        if not isinstance(given, dict) or not all(isinstance(one, str) for one in given.values()):
            raise InputError("give labels by identifier, as text")
        for key, label in given.items():
            if key not in self._ids:
                raise InputError(f"there is no sample {key!r:.80} to label")
            if self._form.is_given(label):
                self._form.read(label)
        with self._lock:
            now = {**read_labels(self._table, self._ids, self._form), **given}
            rows = _rows(self._table)
            if {row.get("id") for row in rows} != set(self._ids):
                rows = [{"id": key, "label": ""} for key in self._ids]
            write_labels(self._table, [{**row, "label": now.get(row["id"], "")} for row in rows])
        return sum(self._form.is_given(label) for label in now.values())


def _rows(table: Path) -> list[dict[str, str]]:
    """Return the rows of a table that hasten wrote, with their other columns; none of another's."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = [dict(row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []
    whole = all(None not in row and None not in row.values() for row in rows)
    return rows if rows and whole and {"id", "label"} <= rows[0].keys() else []


class _Handler(BaseHTTPRequestHandler):
    """Answers the page alone, to who knows its address: no other site or user reads it or writes to it."""

    desk: Desk
    ended: threading.Event
    secret: str
    timeout = _PATIENCE_S

    def do_GET(self) -> None:
        if not self._from_here():
            return
        if self._asked() in ("", PAGE):
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", self.desk.page)
        elif self._asked() == "labels":
            self._told(self.desk.labels)
        else:
            self._answer(
                HTTPStatus.NOT_FOUND, "text/plain", b"open the address that hasten printed"
            )

    def do_POST(self) -> None:
        if not self._from_here():
            return
        size = self.headers.get("Content-Length", "")
        kind = self.headers.get("Content-Type", "").split(";")[0].strip().lower()
        own = {None, f"http://{self.headers['Host']}"}
        if self.headers.get("Origin") not in own or kind != "application/json":
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"labels come from the page alone")
        elif self._asked() != "labels" or not size.isdecimal() or int(size) > _MOST_BYTES:
            self._answer(HTTPStatus.BAD_REQUEST, "text/plain", b"send labels as JSON to labels")
        else:
            data = self.rfile.read(int(size))
            self._told(lambda: {"labelled": self.desk.take(json.loads(data))})

    def _asked(self) -> str | None:
        """Return what is asked for under the page's address; None for anything else."""
        own = f"/{self.secret}/"
        known = hmac.compare_digest(self.path[: len(own)].encode(), own.encode())
        return self.path[len(own) :] if known else None

    def _from_here(self) -> bool:
        """Whether the request names this server; else a foreign name may lead here (DNS rebinding).

        A browser keeps connections that outlive the server: then there is no answer.
        """
        if self.ended.is_set():
            self.close_connection = True
            return False
        port = self.server.server_port  # type: ignore[attr-defined]
        if self.headers.get("Host") in (f"{HOST}:{port}", f"localhost:{port}"):
            return True
        self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"this server answers this machine alone")
        return False

    def _told(self, ask: Any) -> None:
        try:
            data = json.dumps(ask()).encode()
        except (HastenError, ValueError, RecursionError) as error:
            said = (first_words(str(error)) or named(error)).encode()
            self._answer(HTTPStatus.BAD_REQUEST, "text/plain; charset=utf-8", said)
            return
        self._answer(HTTPStatus.OK, "application/json", data)

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in (*_HEADERS.items(), ("Content-Type", kind)):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Print nothing: a person labels beside."""


@contextlib.contextmanager
def served(folder: Path, port: int = 0) -> Iterator[str]:
    """Serve a folder's page on this machine, and write labels to its table as they come.

    Args:
        folder: Folder that a run wrote its samples to.
        port: Port to listen on; 0 for a free one.

    Yields:
        Address of the page, with a secret: other users of the machine can reach the port, too.

    Raises:
        InputError: it is no such folder, or the port can't be had.
    """
    ended = threading.Event()
    secret = secrets.token_urlsafe(16)
    facts = {"desk": Desk(folder), "ended": ended, "secret": secret}
    handler = type("Handler", (_Handler,), facts)
    try:
        server = ThreadingHTTPServer((HOST, port), handler)
    except OSError as error:
        raise InputError(f"can't listen on {HOST}:{port}: {error.strerror or error}") from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(_END_WITHIN_S,), daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}/{secret}/"
    finally:
        ended.set()
        server.shutdown()
        server.server_close()
