"""A loaded bundle that many threads and tasks ask at once."""

import asyncio
import re
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.support.bundles import built, stated

from hasten.bundle import NotCertifiedHere, load, part, write
from hasten.core.target import Target
from hasten.engines.base import Engine
from hasten.engines.cascade import Cascade
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.errors import CandidateError, InputError
from hasten.inputs.models.onnx import load as load_onnx
from hasten.testing import models

ENGINES = (
    OpenVino(threads=1),
    OnnxRuntime(threads=1),
    Cascade(OpenVino(threads=1), OnnxRuntime(threads=1), 0.5, "logits"),
)
ONES = [x[None] for x in np.random.default_rng(0).standard_normal((300, 16), np.float32)]
MIXED = np.split(np.concatenate(ONES), np.cumsum([1, 4, 2] * 42))
"""The same rows in requests of one, four and two, and one of six."""


@pytest.fixture(params=ENGINES, ids=lambda engine: type(engine).__name__)
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A bundle that states no certificate, which mixed shapes would leave."""
    return bundle_of(request.param, tmp_path, status="exact")


def bundle_of(engine: Engine, folder: Path, status: str = "certified") -> Path:
    path = models.linear_classifier(folder)
    winner = built(folder, path, OnnxRuntime(threads=1))
    if isinstance(engine, OpenVino):
        (folder / "openvino").mkdir()
        winner = built(folder / "openvino", path, engine)
    elif isinstance(engine, Cascade):
        original = load_onnx(path).settled_by({"x": ONES[0][0]})
        (folder / "both").mkdir()
        model = replace(original, origin=original)
        winner = part("both", (), engine, engine.build(model, Target.host(), folder / "both"))
    write(folder / "b", stated(winner, winner, status=status), {})
    return folder / "b"


@pytest.mark.parametrize("sessions", [None, 1, 3])
@pytest.mark.parametrize("requests", [ONES, MIXED], ids=["alike", "mixed"])
def test_threads_get_the_answers_that_one_gets(
    bundle: Path, requests: list[np.ndarray], sessions: int | None
) -> None:
    with load(bundle) as loaded:
        alone = [loaded(x)["logits"] for x in requests]
    with load(bundle, sessions=sessions) as loaded, ThreadPoolExecutor(4) as threads:
        start = threading.Barrier(4)

        def ask(turn: int) -> list[np.ndarray]:
            start.wait()
            mine = requests[turn:] + requests[:turn]
            answers = [loaded(x)["logits"] for x in mine]
            return answers[len(requests) - turn :] + answers[: len(requests) - turn]

        for answers in threads.map(ask, (0, 31, 62, 93)):
            for got, expected in zip(answers, alone, strict=True):
                np.testing.assert_array_equal(got, expected)


def own_threads() -> list[str]:
    """The threads that answer a bundle's tasks; others of this process, such as a server's, aren't among them."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if re.fullmatch(r"hasten_\d+", name)]


def test_tasks_get_the_answers_that_one_gets_without_a_thread_each(bundle: Path) -> None:
    async def all_at_once() -> list[dict[str, np.ndarray]]:
        asked = [asyncio.create_task(loaded.answer(x)) for x in ONES]
        answers = await asyncio.gather(*asked)
        assert 1 <= len(own_threads()) <= 2
        return answers

    with load(bundle, sessions=2) as loaded:
        alone = [loaded(x)["logits"] for x in ONES]
        for got, expected in zip(asyncio.run(all_at_once()), alone, strict=True):
            np.testing.assert_array_equal(got["logits"], expected)
    assert not own_threads()


def test_tasks_that_are_cancelled_in_line_lose_no_session(bundle: Path) -> None:
    async def some_cancelled() -> None:
        asked = [asyncio.create_task(loaded.answer(x)) for x in ONES]
        await asyncio.sleep(0)  # all are in line, and no answer has come back to this loop
        for task in asked[1::2]:
            task.cancel()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert any(isinstance(answer, asyncio.CancelledError) for answer in answers[1::2])
        assert all(isinstance(answer, dict) for answer in answers[::2])
        with pytest.raises(InputError, match=r"^input 'x': "):
            await loaded.answer(ONES[0][0])
        assert (await loaded.answer(x=ONES[0]))["logits"].shape == (1, 4)

    with load(bundle, sessions=1) as loaded:
        asyncio.run(some_cancelled())
        assert loaded(ONES[0])["logits"].shape == (1, 4)


def test_a_closed_bundle_says_so(bundle: Path) -> None:
    loaded = load(bundle)
    loaded.close()
    loaded.close()
    said = r"^the bundle is closed: load it again$"
    for ask in (
        lambda: loaded(ONES[0]),
        lambda: loaded.run({"x": ONES[0]}),
        lambda: asyncio.run(loaded.answer(ONES[0])),
        loaded.properties,
    ):
        with pytest.raises(CandidateError, match=said):
            ask()


def test_closing_answers_every_thread_or_says_so(bundle: Path) -> None:
    loaded = load(bundle, sessions=2)
    right = loaded(ONES[0])["logits"]
    asking = threading.Barrier(5)

    def ask() -> str:
        asking.wait()
        try:
            while True:
                np.testing.assert_array_equal(loaded(ONES[0])["logits"], right)
        except CandidateError as error:
            return str(error)

    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(ask) for _ in range(4)]
        asking.wait()
        loaded.close()
        assert {future.result() for future in asked} == {"the bundle is closed: load it again"}


class _Meeting(dict[str, np.ndarray]):
    """A request whose input two threads look at together."""

    both = threading.Barrier(2)

    def __getitem__(self, name: str) -> np.ndarray:
        self.both.wait()
        return super().__getitem__(name)


def test_threads_are_warned_once_that_their_batches_are_not_certified(tmp_path: Path) -> None:
    request = _Meeting(x=np.zeros((2, 16), np.float32))
    with (
        load(bundle_of(ENGINES[0], tmp_path), any_batch=True) as loaded,
        warnings.catch_warnings(record=True) as warned,
        ThreadPoolExecutor(2) as threads,
    ):
        warnings.simplefilter("always")
        list(threads.map(loaded._warn_of, (request, request)))
        for rows in (1, 2, 3):
            loaded(np.zeros((rows, 16), np.float32))
    assert [each.category for each in warned] == [NotCertifiedHere]
    said = "2 rows at once: not certified at this batch size, but at 1"
    assert str(warned[0].message) == f"not certified here: {said}"
    assert loaded.not_certified == (said,)


def test_a_cascade_counts_the_answers_of_all_its_sessions(tmp_path: Path) -> None:
    with load(bundle_of(ENGINES[2], tmp_path), sessions=3) as loaded:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(loaded, ONES))
        assert loaded.properties()["asked again"].endswith(" of 300")


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", True])
@pytest.mark.parametrize(
    ("name", "what"),
    [("sessions", "requests answered in parallel"), ("threads", "threads for one request")],
)
def test_what_is_no_number_of_either_is_one_line(
    tmp_path: Path, name: str, what: str, count: object
) -> None:
    with pytest.raises(InputError) as error:
        load(tmp_path, **{name: count})  # type: ignore[arg-type]
    assert str(error.value) == (
        f"{name}, the number of {what}, must be a whole number of at least 1: got {count!r}"
    )


def test_another_model_than_the_two_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load(tmp_path, which="exakt")  # type: ignore[arg-type]
    assert str(error.value) == "which, the model to open, must be 'winner' or 'exact': got 'exakt'"
