"""Packed files on web servers that break off, lie, or send something else."""

from __future__ import annotations

import contextlib
import gc
import http.server
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.support import packed_files
from tests.support.packed_files import read_all
from tests.support.waiting import until

from hasten import unpack
from hasten.bundle.packing import web as links
from hasten.bundle.packing.web import WebSource
from hasten.errors import InputError, IntegrityError

Handler = http.server.BaseHTTPRequestHandler


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "_FIRST_PAUSE_S", 0.0)


@dataclass
class Web:
    """A web server of one file.

    Attributes:
        data: The file.
        answer: Function that answers each request; by default `ranges`.
        asked: The range that each request asked for; "" for all.
    """

    data: bytes
    answer: Callable[[Handler, Web], None]
    asked: list[str] = field(default_factory=list)
    address: str = ""


def headers(handler: Handler, status: int, **fields: object) -> None:
    handler.send_response_only(status)
    for name, value in fields.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()


def first_asked(handler: Handler) -> int:
    found = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    return int(found[1]) if found else 0


def ranges(handler: Handler, web: Web, most: int | None = None, **fields: object) -> None:
    """Send the range, or its first bytes only and break off."""
    first, size = first_asked(handler), len(web.data)
    body = web.data[first:]
    fields = {"Content_Length": len(body), "ETag": '"1"', **fields}
    if first:
        headers(handler, 206, Content_Range=f"bytes {first}-{size - 1}/{size}", **fields)
    else:
        headers(handler, 200, **fields)
    handler.wfile.write(body[:most])


def whole(handler: Handler, web: Web, most: int | None = None) -> None:
    """Send all of it whatever was asked, or its first bytes only."""
    headers(handler, 200, Content_Length=len(web.data))
    handler.wfile.write(web.data[:most])


def chunked(handler: Handler, web: Web, most: int | None = None) -> None:
    """Send all of it in parts without telling how much it is."""
    headers(handler, 200, Transfer_Encoding="chunked")
    for begin in range(0, len(web.data), 999):
        if most is not None and begin > most:
            return
        part = web.data[begin : begin + 999]
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
    handler.wfile.write(b"0\r\n\r\n")


@pytest.fixture
def web(data: bytes) -> Iterator[Web]:
    found = Web(data, ranges)

    class Answering(Handler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # noqa: N802
            found.asked.append(self.headers.get("Range", ""))
            self.close_connection = True
            with contextlib.suppress(OSError):
                found.answer(self, found)

        def log_message(self, *_: object) -> None:
            pass

    class Waiting(http.server.ThreadingHTTPServer):
        daemon_threads = False  # so that closing it waits for their links to be closed

    before = packed_files.open_files()
    with Waiting(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        found.address = f"http://127.0.0.1:{server.server_port}/model.hastenz"
        yield found
        server.shutdown()
        thread.join()

    def closed() -> bool:
        gc.collect()
        return packed_files.open_files() <= before

    until(closed)  # another thread of the suite's process may have a file open for a moment


def failing(web: Web, kind: type[InputError] = InputError) -> str:
    """Return the one line by which reading fails, after the address."""
    with pytest.raises(kind) as error:
        read_all(WebSource(web.address))
    assert type(error.value) is kind
    said = str(error.value)
    assert said.isprintable()
    assert len(said) < 400
    assert web.address in said
    return said.replace(web.address, "IT")


# -- links that break


def test_a_link_that_breaks_goes_on_where_it_broke(web: Web) -> None:
    web.answer = lambda handler, web: ranges(handler, web, most=1500)
    assert read_all(WebSource(web.address)) == packed_files.unpacked_files()
    assert web.asked[:3] == ["", "bytes=1500-", "bytes=3000-"]


@pytest.mark.parametrize("how", [ranges, chunked])
def test_what_came_before_a_link_was_reset_is_not_lost(
    web: Web, data: bytes, how: Callable[[Handler, Web, int | None], None]
) -> None:
    """Reading many bytes at a time made no progress where a link was reset before all of them came."""

    def resetting(handler: Handler, web: Web) -> None:
        how(handler, web, 3000 * len(web.asked) if how is chunked else 3000)
        unsent = struct.pack("ii", 1, 0)  # closing the link then resets it
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, unsent)
        os.close(handler.connection.detach())

    web.answer = resetting
    with WebSource(web.address) as found:
        assert bytes(found.read(0, len(data))) == data
    assert len(web.asked) > 3


@pytest.mark.parametrize("how", [whole, chunked])
def test_a_server_without_ranges_starts_again(
    web: Web, how: Callable[[Handler, Web, int | None], None]
) -> None:
    def breaking(handler: Handler, web: Web) -> None:
        how(handler, web, 3000 * len(web.asked))

    web.answer = breaking
    assert read_all(WebSource(web.address)) == packed_files.unpacked_files()
    assert len(web.asked) > 3


def test_a_link_that_breaks_while_known_bytes_are_passed_over_is_no_damage(web: Web) -> None:
    places = [2500, 1200, 2500, 100, None]  # from the second on, before what is needed

    def breaking(handler: Handler, web: Web) -> None:
        chunked(handler, web, places[min(len(web.asked), len(places)) - 1])

    web.answer = breaking
    assert read_all(WebSource(web.address)) == packed_files.unpacked_files()


def test_a_server_that_recovers_is_asked_again(web: Web) -> None:
    def ailing(handler: Handler, web: Web) -> None:
        if len(web.asked) in (2, 3, 4):
            headers(handler, 503, Content_Length=0)
        else:
            ranges(handler, web, most=4000)

    web.answer = ailing
    assert read_all(WebSource(web.address)) == packed_files.unpacked_files()


def test_a_link_that_stays_broken_is_given_up(web: Web) -> None:
    web.answer = lambda handler, web: ranges(handler, web, most=0 if first_asked(handler) else 9000)
    assert failing(web) == (
        "the connection to IT broke 5 times at byte 9,000: the server closed it; try again later"
    )
    assert len(web.asked) == 5


# -- servers that lie


def drip(handler: Handler, data: bytes) -> None:
    """Send bytes one by one, for as long as somebody reads."""
    for byte in data:
        handler.wfile.write(bytes((byte,)))
        time.sleep(0.01)


@pytest.mark.parametrize("part", ["head", "body", "broken off"])
def test_a_server_that_holds_its_reader_is_given_up(
    web: Web, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def slow(handler: Handler, web: Web) -> None:
        if part == "head":
            drip(handler, b"HTTP/1.1 200 OK\r\nX-Much: " + b"x" * 100_000)
        elif part == "body":
            headers(handler, 200, Content_Length=len(web.data))
            drip(handler, web.data * 100)
        else:
            time.sleep(0.01)
            ranges(handler, web, 1)

    monkeypatch.setattr(links, "_WHILE_S", 0.2)
    web.answer = slow
    assert re.fullmatch(
        r"IT is too slow: the server sent [0-9,]+ bytes in \d s; give another address, or the file itself",
        failing(web),
    )


def test_a_server_that_sends_enough_in_each_while_is_read(
    web: Web, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "_WHILE_S", 0.0)
    monkeypatch.setattr(links, "_LEAST_BYTES", 1)
    with WebSource(web.address) as found:
        assert bytes(found.read(0, len(data))) == data


def test_a_file_that_was_replaced_meanwhile_isnt_mixed_with_the_new_one(web: Web) -> None:
    web.answer = lambda handler, web: ranges(handler, web, 3000, ETag=f'"{len(web.asked)}"')
    assert failing(web, IntegrityError) == "IT was replaced while it was read: load it again"


def test_a_file_that_became_shorter_was_replaced(web: Web) -> None:
    def shorter(handler: Handler, web: Web) -> None:
        if first_asked(handler):
            headers(handler, 416, Content_Length=0)
        else:
            ranges(handler, web, 3000)

    web.answer = shorter
    assert failing(web, IntegrityError) == "IT was replaced while it was read: load it again"


@pytest.mark.parametrize("status", [401, 403, 404, 410, 500, 503])
def test_an_answer_without_the_file_is_one_line(web: Web, status: int) -> None:
    web.answer = lambda handler, web: headers(handler, status, Content_Length=0)
    assert failing(web) == (
        f"can't read IT: the server answered {status}; give another address, or the file itself"
    )


def test_what_the_server_says_never_reaches_the_terminal(web: Web) -> None:
    def rude(handler: Handler, web: Web) -> None:
        handler.wfile.write(
            b"HTTP/1.1 404 \x1b[2J" + b"x" * 5000 + b"\r\nContent-Length: 0\r\n\r\n"
        )

    web.answer = rude
    assert "answered 404;" in failing(web)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\0" * 70_000,
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200,
        b"HTTP/1.1 abc\r\n\r\n",
    ],
    ids=["nothing", "ssh", "zeros", "headers", "no status"],
)
def test_what_is_no_web_server_is_one_line(web: Web, sent: bytes) -> None:
    def speak(handler: Handler, web: Web) -> None:
        handler.wfile.write(sent)

    web.answer = speak
    assert failing(web).startswith("can't reach IT: ")


@pytest.mark.parametrize("page", [b"<html>Please log in</html>", b"", b"\x89HASTENZ"])
def test_another_file_is_no_packed_bundle(web: Web, page: bytes) -> None:
    web.data = page
    assert (
        failing(web, IntegrityError)
        == "IT: it isn't a packed bundle: its first bytes aren't those of one"
    )


def test_a_length_that_is_too_small_is_found(web: Web, data: bytes) -> None:
    web.answer = lambda handler, web: ranges(handler, web, Content_Length=len(data) - 5)
    said = f"IT: it has {len(data) - 5:,} bytes, but {len(data):,} were written: "
    assert failing(web, IntegrityError).startswith(said)


def test_a_length_that_is_too_large_is_found(web: Web, data: bytes) -> None:
    web.answer = lambda handler, web: ranges(handler, web, Content_Length=len(data) + 5)
    said = f"IT: it has {len(data) + 5:,} bytes, but {len(data):,} were written: "
    assert failing(web, IntegrityError).startswith(said)


@pytest.mark.parametrize("length", ["-5", "1e9", "٣", "9" * 5000, "x"])
def test_a_length_that_is_no_number_doesnt_matter(web: Web, length: str) -> None:
    def lying(handler: Handler, web: Web) -> None:
        handler.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode())
        handler.wfile.write(web.data)

    web.answer = lying
    assert read_all(WebSource(web.address)) == packed_files.unpacked_files()


@pytest.mark.parametrize("span", ["", "bytes 5-9/*", "bytes 0-9/10", f"bytes {'9' * 9000}-1/2"])
def test_another_range_than_was_asked_for_is_refused(web: Web, span: str) -> None:
    def lying(handler: Handler, web: Web) -> None:
        if first_asked(handler):
            headers(handler, 206, Content_Range=span, Content_Length=10)
        else:
            ranges(handler, web, 3000)

    web.answer = lying
    assert failing(web).startswith("IT: the server sent ")


def test_a_range_that_nobody_asked_for_is_refused(web: Web) -> None:
    web.answer = lambda handler, web: headers(handler, 206, Content_Length=0)
    assert failing(web) == "IT: the server sent '', not the range from 0"


def test_an_endless_answer_is_read_as_far_as_it_is_needed(web: Web) -> None:
    def endless(handler: Handler, web: Web) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n" + web.data)
        while True:
            handler.wfile.write(bytes(1 << 16))

    web.answer = endless
    assert read_all(WebSource(web.address)) == packed_files.unpacked_files()


# -- servers that send elsewhere


def test_a_server_that_sends_elsewhere_is_followed(web: Web) -> None:
    def elsewhere(handler: Handler, web: Web) -> None:
        if handler.path.endswith("/there"):
            ranges(handler, web, 9000)
        else:
            headers(handler, 302, Location="/there", Content_Length=0)

    web.answer = elsewhere
    assert read_all(WebSource(web.address)) == packed_files.unpacked_files()
    assert web.asked[-2:] == web.asked[-1:] * 2


@pytest.mark.parametrize(
    "place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "/again", "\x01"]
)
def test_a_server_that_sends_astray_isnt_followed(web: Web, place: str) -> None:
    web.answer = lambda handler, web: headers(handler, 302, Location=place, Content_Length=0)
    assert re.match("can't re(ach|ad) IT: ", failing(web))
    assert len(web.asked) < 15


@pytest.mark.parametrize(
    "address",
    [
        "http://",
        "http:///x",
        "http://a b/c",
        "http://[::1/x",
        "http://x:y/z",
        f"http://{'a' * 70}.b/",
    ],
)
def test_what_is_no_address_is_one_line(address: str) -> None:
    with pytest.raises(InputError) as error:
        WebSource(address)
    assert str(error.value).isprintable()


def test_a_closed_port_is_one_line() -> None:
    with pytest.raises(
        InputError, match=r"can't reach http://127\.0\.0\.1:1/x: .*refused; try again"
    ):
        WebSource("http://127.0.0.1:1/x")


def test_a_bundle_whose_link_breaks_for_good_leaves_no_folder(web: Web, tmp_path: Path) -> None:
    import hasten

    web.answer = lambda handler, web: ranges(handler, web, most=0 if first_asked(handler) else 9000)
    with pytest.raises(InputError):
        hasten.unpack(web.address, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["", "/", "/..", "/%2e%2e", "/?bundle=3", "/a%00b.hastenz"])
def test_an_address_without_a_files_name_needs_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=r"doesn't end in a file's name: give out= for the folder$"
    ):
        unpack(f"http://127.0.0.1:9{path}")
    assert list(tmp_path.iterdir()) == []
