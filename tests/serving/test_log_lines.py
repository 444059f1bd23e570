"""Lines of the server's log, in which nothing that others wrote controls the terminal."""

import logging
import re
import socket
import sys
import threading

import pytest

from hasten.errors import InputError
from hasten.serving.logs import Lines
from hasten.serving.monitoring import webhook

HOSTILE = "no \x1b[2J\x1b]0;pwn\x07\u202e\nhasten: all is well"
SHOWN = r"no \x1b[2J\x1b]0;pwn\x07\u202e\nhasten: all is well"


def record(message: str, *args: object, **more: object) -> logging.LogRecord:
    facts = {"msg": message, "args": args, "levelno": logging.ERROR, "levelname": "ERROR"}
    return logging.makeLogRecord({**facts, **more})


def test_a_record_is_one_line_whatever_a_model_file_calls_things() -> None:
    error = InputError(HOSTILE)
    assert Lines().format(record("%s", error)) == f"hasten: error: {SHOWN}"
    named = record("%s", error, model="m\x07", version="1")
    assert Lines().format(named) == rf"hasten: error: m\x07/1: {SHOWN}"


def test_no_line_of_a_traceback_looks_like_one_of_the_log() -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        text = Lines().format(record("it failed", exc_info=sys.exc_info()))
    first, *others = text.split("\n")
    assert first == "hasten: error: it failed"
    assert others[0] == "  Traceback (most recent call last):"
    assert others[-2:] == [
        r"  ValueError: no \x1b[2J\x1b]0;pwn\x07\u202e",
        "  hasten: all is well",
    ]
    assert re.fullmatch("[ -~\n]*", text)


def test_a_webhooks_own_words_are_shown_with_their_control_characters_written_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 500 \x1b[2J\x07\x9b\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        webhook.post(url, {}, lambda: None, threading.Event(), ()).join(60)
    assert [one.getMessage() for one in caplog.records] == [
        r"the webhook at 127.0.0.1 didn't receive an alarm: HTTP Error 500: \x1b[2J\x07\x9b; "
        "the next start tries again"
    ]
