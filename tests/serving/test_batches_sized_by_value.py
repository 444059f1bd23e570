"""Requests whose values decide how large the answers of a whole batch are: each runs alone."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from tests.serving.test_growing_requests import EIGHT, Asker, Served
from tests.serving.test_owed_answers import MOST_MIB, read_to_end
from tests.support.growing import HELD_MS, Growing
from tests.support.models import solid
from tests.support.pausing import RAN, RELEASE, Pauses, Pausing, pausing_installed
from tests.support.servers import ServerProcess, ServerThread, bundle_of, place_of
from tests.support.waiting import until

from hasten.inputs.models import onnx as onnx_files
from hasten.serving.models import batching

WIDENING = """<ir_version: 8, opset_import: ["" : 17]>
    grown (float[batch, 4] x) => (float[batch, width] y)
    <int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] flat = {-1},
     float many = {1000}, float least = {1}> {
        second = Slice (x, one, two, one)  large = Greater (second, many)  some = Where (large, second, least)
        most = ReduceMax <axes = [0, 1], keepdims = 1> (some)  found = Reshape (most, flat)
        width = Cast <to = 7> (found)
        all = Shape (x)  rows = Slice (all, zero, one)  shape = Concat <axis = 0> (rows, width)
        y = Expand (second, shape)
    }"""
"""x: [batch, 4] -> y: for each row its second number, once, or as many times as the largest one beyond 1,000 says."""


def widening(folder: Path, *, told: bool = True) -> Path:
    """Write a bundle of a model whose warm-up finds nothing that speaks against batches.

    Args:
        folder: Folder to write it into.
        told: Whether it says that values size the answers, as earlier bundles don't.
    """
    onnx.save(onnx.parser.parse_model(WIDENING), folder / "grown.onnx")
    silent = patch.object(onnx_files, "named_by_value", lambda proto, inputs, outputs: outputs)
    with contextlib.nullcontext() if told else silent:
        return bundle_of(folder, folder / "grown.onnx", engine=Pausing(), keep_exact=False)


@pytest.mark.seconds
def test_a_batch_takes_little_memory_where_its_answers_suddenly_become_large(
    tmp_path: Path,
) -> None:
    with pausing_installed(tmp_path / "plug-in"):
        (tmp_path / "notes").mkdir()
        pauses = Pauses(tmp_path / "notes")
        options = "--max-batch", "32", "--sessions", "1", "--max-wait", "600s"
        with (
            ServerProcess(widening(tmp_path), *options, env=pauses.env) as process,
            contextlib.ExitStack() as opened,
        ):
            served = Served(process, pauses)
            crowd = [opened.enter_context(served.asks(1, HELD_MS))]
            until(lambda: served.pauses.begun(HELD_MS))
            crowd += [opened.enter_context(served.asks(EIGHT)) for _ in range(40)]
            until(lambda: served.queued == 40)  # since all answers were small
            served.pauses.end()
            last = opened.enter_context(served.asks(EIGHT))
            assert b" 200 " in read_to_end(last)
            assert served.taken_mib < MOST_MIB


@contextlib.contextmanager
def serving(bundle: Path) -> Iterator[Growing]:
    with (
        patch.object(batching, "INLINE_NS", 0),
        patch.object(batching, "_LONE_NS", 0),
        ServerThread(
            place_of(bundle, most_rows=32, sessions=1, most_wait_ns=600_000_000_000),
            place_of(bundle_of(bundle.parent, solid(bundle.parent))),
            grpc=True,
        ) as server,
    ):
        yield Growing(server)
        RELEASE.set()


def together(growing: Growing, *counts: int) -> list[tuple[int, float]]:
    """Ask for so many numbers at once behind a request that is held; return how many came, and which number."""
    RAN.clear()
    RELEASE.clear()
    with contextlib.ExitStack() as opened:
        first, *others = (opened.enter_context(Asker(growing)) for _ in (1, *counts))
        first.ask(1, HELD_MS)
        until(lambda: len(RAN) == 1)
        for n, (one, count) in enumerate(zip(others, counts, strict=True)):
            one.ask(count)
            until(lambda n=n: growing.queued == n + 1)  # type: ignore[misc]
        RELEASE.set()
        first.read()
        answers = [np.frombuffer(one.read()[2], np.float32) for one in others]
    return [(len(answer), float(answer[0])) for answer in answers]


@pytest.mark.parametrize("told", [True, False], ids=["told", "untold"])
def test_each_request_gets_an_answer_of_its_own_size(tmp_path: Path, told: bool) -> None:
    with pausing_installed(tmp_path / "plug-in"), serving(widening(tmp_path, told=told)) as growing:
        counts = [1, 5, 1003, 7, 1001]
        for _ in range(2):
            own = together(growing, *counts)
            assert own == [(count if count > 1000 else 1, count) for count in counts]


def test_a_model_whose_graph_says_it_never_runs_requests_together(tmp_path: Path) -> None:
    with pausing_installed(tmp_path / "plug-in"), serving(widening(tmp_path)) as growing:
        together(growing, *[1] * 6)
        assert len(RAN) == 7
        (note,) = (one for one in growing.model.opened.notes if "each request runs alone" in one)
        assert "'y'" in note


def test_a_model_that_says_nothing_runs_requests_together_until_their_sizes_differ(
    tmp_path: Path,
) -> None:
    with (
        pausing_installed(tmp_path / "plug-in"),
        serving(widening(tmp_path, told=False)) as growing,
    ):
        together(growing, *[1] * 6)
        assert len(RAN) < 7
        together(growing, 1003)
        together(growing, *[1] * 6)
        assert len(RAN) == 7


def test_answers_of_a_known_size_cost_no_further_call(tmp_path: Path) -> None:
    called: list[str] = []

    def note(frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename == batching.__file__:
            called.append(frame.f_code.co_name)

    with pausing_installed(tmp_path / "plug-in"), serving(widening(tmp_path, told=False)) as served:
        for model, looks in (("grown", 1), ("solid", 0)):
            called.clear()
            served.server.call(lambda: sys.setprofile(note))
            with Asker(served) as one:
                one.ask(1, model=model)
                assert one.read()[0] == 200
            served.server.call(lambda: sys.setprofile(None))
            assert called.count("_answer") == 1
            assert called.count("_are_unlike") == looks
