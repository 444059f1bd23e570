"""The command: what is typed reaches the generator, and what it gives is printed."""

import json
from typing import Any

import pytest
from click.testing import CliRunner

from hasten.cli.loadtest import loadtest
from hasten.inputs.data.requests import MADE_UP


def test_the_command_prints_the_result_in_words(serve: Any, http: Any) -> None:
    server = serve(http.right())
    options = ["--rate", "50", "--for", "0.2", "--warmup", "0", "--arrivals", "constant"]
    done = CliRunner().invoke(
        loadtest, [server.url, "--model", "m", *options, "--deadline", "600s", "--shape", "x:1,2"]
    )
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert lines[0] == (
        f"{server.url}, model m: 50 requests a second evenly spaced for 0.2 s, {MADE_UP}, binary"
    )
    assert lines[1].endswith("goodput 50 a second within 600000 ms (100% of the requests)")
    assert lines[3] == "10 requests: 10 ok"


def test_the_command_prints_the_record_as_json(serve: Any, http: Any) -> None:
    server = serve(http.right(rows=3))
    options = ["--rate", "50", "--for", "0.2s", "--warmup", "0s", "--batch", "3", "--seed", "4"]
    done = CliRunner().invoke(loadtest, [server.url, "--model", "m", *options, "--json"])
    record = json.loads(done.output)
    assert (record["offered"]["batch"], record["offered"]["seed"]) == (3, 4)
    assert len(record["latency_ns"]) == record["requests"] == len(record["lag_ns"])


def test_where_nothing_was_answered_rightly_it_ends_with_1(serve: Any, http: Any) -> None:
    server = serve(http.error(503, "too much"))
    options = ["--rate", "50", "--for", "0.2s", "--warmup", "0s"]
    done = CliRunner().invoke(loadtest, [server.url, "--model", "m", *options])
    assert done.exit_code == 1
    assert "latency: no request got a right answer" in done.output


def test_a_server_that_isnt_there_ends_with_2_and_one_line() -> None:
    done = CliRunner().invoke(loadtest, ["http://127.0.0.1:1", "--model", "m", "--rate", "9"])
    assert done.exit_code == 2
    assert done.output == (
        "hasten: can't reach http://127.0.0.1:1: Connection refused; does a server run there?\n"
    )


@pytest.mark.parametrize("text", ["1,2", "x:1,b", ":1"])
def test_what_is_no_shape_is_named(text: str) -> None:
    done = CliRunner().invoke(
        loadtest, ["http://h", "--model", "m", "--rate", "9", "--shape", text]
    )
    assert done.exit_code == 2
    assert f"{text!r} is not a shape; write image:1,3,224,224" in done.output
