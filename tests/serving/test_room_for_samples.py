"""Memory of samples of few bytes, of which a client may send many at once."""

from __future__ import annotations

import dataclasses
import gc
import gzip
import heapq
import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from fuzz import served
from fuzz.isolated import peak_kib, reset_peak
from fuzz.surface import surface_of
from fuzz.surfaces.media import of_clicks, written
from PIL import Image
from tests.inputs.pipeline.test_pictures_of_few_bytes import one_color
from tests.support.servers import ServerProcess, ServerThread
from tests.support.waiting import PATIENCE_S, until
from tritonclient.utils import InferenceServerException

from hasten.core.target import Target
from hasten.inputs.pipeline.audio import LogMel
from hasten.inputs.pipeline.base import Origin
from hasten.inputs.pipeline.image import Decode
from hasten.inputs.pipeline.mask import Mask
from hasten.inputs.pipeline.memory import make_room, making_room
from hasten.inputs.pipeline.text import Tokenize
from hasten.serving.models.deciding import RawTicket
from hasten.serving.models.room import ROOM, ROOM_BYTES, NoRoomError, Place, Room, paid_bytes
from hasten.serving.options import ModelOptions
from hasten.serving.protocol.errors import ProtocolError
from hasten.serving.run import settings_of

pytestmark = pytest.mark.seconds

MIB = 1 << 20


def place_in(room: Room, client: str = "a", sent: int = 0, most_mib: int | None = None) -> Place:
    place = Place(room, client, sent, None if most_mib is None else most_mib * MIB)
    place.large = True
    return place


def prepared(place: Place, *steps_mib: int) -> bool:
    """Take memory for steps, one after another; return whether there was enough."""
    try:
        with place.works(later=False):
            for each in steps_mib:
                make_room(each * MIB)
    except NoRoomError:
        place.again()
        return False
    return True


class Line:
    """Requests for the memory of one room, by name; a name begins with its client's letter."""

    def __init__(self) -> None:
        self.room, self.begun = Room(10 * MIB), list[str]()
        self.places: dict[str, Place] = {}

    def asks(self, name: str, *steps_mib: int) -> None:
        place = self.places[name] = place_in(self.room, name[0])
        place.go = lambda: self.begun.append(name)
        if prepared(place, *steps_mib):
            self.begun.append(name)

    def leaves(self, *names: str) -> list[str]:
        """End requests; return those that began since."""
        before = len(self.begun)
        for name in names:
            self.places.pop(name).leave()
        return self.begun[before:]


def test_requests_wait_in_turn_by_their_clients_memory_and_a_large_one_runs_alone() -> None:
    line = Line()
    for name, *steps_mib in (("a0", 6), ("a1", 3, 4), ("b0", 30), ("b1", 1), ("c0", 2), ("d0", 0)):
        line.asks(name, *steps_mib)
    assert line.begun == ["a0", "a1", "d0"]  # what takes nothing doesn't wait
    assert line.leaves("a0") == ["c0"]  # its client asks for less than b's
    assert line.leaves("a1") == []
    assert line.leaves("c0") == ["b0"]
    assert line.leaves("b0") == ["b1"]
    line.leaves(*line.places)
    assert line.room.taken_bytes == 0


def test_a_client_with_large_samples_gets_as_much_memory_as_one_with_small_ones() -> None:
    line = Line()
    line.asks("h0", 10)
    line.asks("a0", 40)
    for n in range(30):
        line.asks(f"b{n}", 2)
    began, gone = line.leaves("h0"), 0
    while "a0" not in line.begun:
        began += line.leaves(f"b{gone}")
        gone += 1
    assert began == [*(f"b{n}" for n in range(19)), "a0"]


def test_who_gives_up_waiting_does_not_fall_behind() -> None:
    line = Line()
    line.asks("h0", 10)
    for n in range(20):
        line.asks(f"a{n}", 5)
    line.leaves(*(f"a{n}" for n in range(20)))
    line.asks("b0", 6)
    line.asks("a20", 5)
    assert line.leaves("h0") == ["a20"]


def test_many_that_give_up_waiting_together_dont_go_through_the_line_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passed: list[int] = []
    heapify = heapq.heapify

    def counted(line: list[Any]) -> None:
        passed.append(len(line))
        heapify(line)

    monkeypatch.setattr(heapq, "heapify", counted)
    line = Line()
    line.asks("a", 10)
    names = [f"b{number}" for number in range(1000)]
    for name in names:
        line.asks(name, 10)
    line.asks("c", 10)
    assert line.leaves(*names[1:]) == []
    assert sum(passed) < 2 * len(names)
    assert line.leaves("a") == ["b0"]
    assert line.leaves("b0") == ["c"]
    line.leaves("c")
    line.asks("d", 10)
    assert line.begun[-1] == "d"  # nobody waits any more


def test_a_request_that_has_to_begin_again_twice_gets_the_whole_room() -> None:
    room, again = Room(ROOM_BYTES), []
    other, place = place_in(room), place_in(room)
    place.go = lambda: again.append(place.size_bytes >> 20)
    assert prepared(other, 30)
    assert not prepared(place, 2, 12)
    other.leave()
    assert again == [12]
    other = place_in(room)
    assert prepared(other, 20)
    assert not prepared(place, 2, 12, 22)
    other.leave()
    assert again == [12, 40]
    assert prepared(place, 2, 12, 22, 32)


def test_who_leaves_gives_back_once_its_work_has_ended() -> None:
    room, begun = Room(10 * MIB), []
    one, gone, last = place_in(room), place_in(room), place_in(room)
    gone.go, last.go = (lambda: begun.append("gone")), (lambda: begun.append("last"))
    with one.works(later=False):
        make_room(8 * MIB)
        assert not prepared(gone, 9)
        assert not prepared(last, 5)
        gone.leave()
        one.leave()
        assert (begun, room.taken_bytes) == ([], 8 * MIB)
    assert (begun, room.taken_bytes) == (["last"], 5 * MIB)
    last.leave()
    assert room.taken_bytes == 0


def test_only_one_at_a_time_takes_more_than_it_has_reserved_in_a_later_stage() -> None:
    room = Room(10 * MIB)
    one, other = place_in(room, most_mib=20), place_in(room, most_mib=20)
    assert prepared(one, 4)
    with one.works(later=True):
        make_room(4 * MIB)
        assert not room.alone.locked()
        make_room(5 * MIB)
        make_room(6 * MIB)
        with ThreadPoolExecutor(1) as thread:
            waiting = thread.submit(later, other, 5 * MIB)
            until(lambda: other.working)
            assert not other._alone
            one.room.alone.release()
            one._alone = False
            assert waiting.result(PATIENCE_S) is None
    assert not room.alone.locked()
    with pytest.raises(ProtocolError) as error, one.works(later=True):
        make_room(21 * MIB)
    assert str(error.value) == (
        "the sample needs 21 MiB of memory, but only 20 MiB are allowed for so few bytes: send a smaller picture or a "
        "shorter sound"
    )


def later(place: Place, size_bytes: int) -> None:
    with place.works(later=True):
        make_room(size_bytes)


def test_what_takes_much_belongs_on_the_thread_for_large_samples() -> None:
    room, begun = Room(10 * MIB), []
    place = Place(room, "a", 0, None)
    place.go = lambda: begun.append((place.large, place.size_bytes))
    assert prepared(place, 1)
    assert not place.large
    assert not prepared(place, 2)
    assert begun == [(True, 2 * MIB)]
    assert prepared(place, 2)


def test_the_more_threads_there_are_the_less_a_step_may_leave_on_each() -> None:
    room = Room(ROOM_BYTES)
    for threads, takes_any in ((12, True), (36, False), (-36, True)):
        room.count_threads(threads)
        place = Place(room, "a", 0, None)
        place.go = lambda: None
        assert prepared(place, 1) == takes_any
        assert place.large == (not takes_any)
        place.leave()


def test_a_machine_with_many_processors_has_few_threads_for_samples(
    bundles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 of them kept 34 MiB of what small pictures had taken."""
    many, before = dataclasses.replace(Target.host(), threads=64), ROOM.small_bytes
    monkeypatch.setattr(Target, "host", lambda: many)
    with ServerThread(
        *settings_of([bundles[2], bundles[-1]]).models
    ):  # a model, and a chain of two
        assert ROOM.small_bytes == (12 * MIB) // (4 * 12)
    until(lambda: ROOM.small_bytes == before)


def test_a_text_that_is_not_short_says_what_it_takes() -> None:
    told: list[int] = []
    step = Tokenize(served.tokenizer(), 300)  # the library cuts two long texts into pairs of pieces
    token = making_room.set(told.append)
    try:
        step("the cat")
        step("." * 5000)
        step(("\u4e2d" * 3000, "." * 3000))
    finally:
        making_room.reset(token)
    assert told == [512 * 5000, 512 * (3 * 3000 + 3000)]


def test_a_mask_and_a_spectrogram_say_what_they_take() -> None:
    told: list[int] = []
    token = making_room.set(told.append)
    try:
        mask = Mask(decided=True)({"y": np.array([[0, 1], [2, 3]])}, Origin(300, 200, (150, 100)))
        LogMel()(np.zeros(160_000, np.float32))
    finally:
        making_room.reset(token)
    runs = len(mask["runs"])
    assert runs == 600
    assert told[:2] == [4 * 300 * 200, 4 * 300 * 200 + 200 * runs]
    assert told[2:] == [4 * 160_000 + 4 * 80 * 1000 + 32 * 400 * 655]


def test_bytes_that_were_sent_pay_for_memory() -> None:
    assert [paid_bytes(sent) for sent in (0, 1000, 64 << 10, (64 << 10) + 1000)] == [
        0,
        128_000,
        8 * MIB,
        8 * MIB + 2_048_000,
    ]
    room = Room(MIB)
    assert prepared(place_in(room, sent=(64 << 10) + (22 * MIB >> 11)), 30)
    assert room.taken_bytes == 0


# -- a server


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the fuzzers' server serves."""
    return [str(each) for each in served.bundles(tmp_path_factory.mktemp("served"))]


@pytest.fixture(scope="module")
def process(bundles: list[str]) -> Iterator[ServerProcess]:
    with ServerProcess(
        *bundles, "--grpc", "0", "--compiled", "off", "--max-wait", "60s"
    ) as running:
        yield running


WIDE = one_color("RGB", (1540, 1540), "WEBP", lossless=True)
"""A picture whose preparation takes 40 MiB."""
HELD = one_color("L", (3000, 3000), "PNG")
"""A picture of which a chain keeps 26 MiB."""
BROKEN = one_color("L", (3000, 3000), "PNG")[:-30]
"""A picture that ends before its last pixels, which its decoder finds out."""
TINY = one_color("RGB", (8, 8), "WEBP", lossless=True)
"""A picture that a model makes 3 MiB of."""


@pytest.mark.parametrize("way", ["stream", "http-together"])
@pytest.mark.parametrize(
    ("model", "times", "file"),
    [
        ("colour", 8, WIDE),
        ("squares", 8, one_color("RGB", (1400, 1400), "WEBP", lossless=True)),
        ("squares", 4, HELD),
        ("large", 128, TINY),
        ("uncut", 4, of_clicks("FLAC", "PCM_16", 16_000, 1, 22, False)),
    ],
    ids=["wide", "chain", "held", "prepared", "sounds"],
)
def test_many_samples_of_few_bytes_take_no_more_than_64_mib(
    process: ServerProcess, tmp_path: Path, way: str, model: str, times: int, file: bytes
) -> None:
    data = written(way, model, times, file)
    assert len(file) * times < 64 << 10
    surface: Any = surface_of("sounds" if model == "uncut" else "pictures", tmp_path)
    surface.running = SimpleNamespace(server=process)
    pid = process.serving_pid()
    before_kib = reset_peak(pid)
    assert set(surface.check(data).split()) <= {"answered", "200", "refused", "400"}
    assert (peak_kib(pid) - before_kib) >> 10 < 64


def sent(
    process: ServerProcess, body: bytes, kind: str = "text/plain", packed: bool = True
) -> tuple[int, str]:
    """Send a body to the model that takes texts; the status, and the error if there is one."""
    headers = {"Content-Type": kind}
    if packed:
        body, headers["Content-Encoding"] = gzip.compress(body, 9), "gzip"
        assert len(body) < 64 << 10
    connection = http.client.HTTPConnection("127.0.0.1", process.http_port, timeout=PATIENCE_S)
    connection.request("POST", "/v2/models/text/infer", body, headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer.get("error", "")


def test_texts_in_compressed_bodies_take_no_more_than_64_mib(process: ServerProcess) -> None:
    """Each of their bytes may become a token of some hundred bytes."""
    pid = process.serving_pid()
    before_kib = reset_peak(pid)
    with ThreadPoolExecutor(8) as threads:
        longest = [threads.submit(sent, process, b"." * (64 << 10)) for _ in range(8)]
        assert {each.result(PATIENCE_S) for each in longest} == {(200, "")}
    longer = b"." * 100_000
    said = "a sample in a compressed body may have 65,536 bytes; got 100,000: send it without Content-Encoding"
    assert sent(process, longer) == (400, said)
    several = {"name": "raw", "datatype": "BYTES", "shape": [2], "data": ["the", longer.decode()]}
    body = json.dumps({"inputs": [several]}).encode()
    assert sent(process, body, "application/json") == (400, said)
    assert (peak_kib(pid) - before_kib) >> 10 < 64


def test_the_longest_text_is_bounded_over_http_and_grpc(process: ServerProcess) -> None:
    longest = b"the cat " * (32 << 10)
    said = (
        "a sample for 'text' may have 262,144 bytes; got 262,145: send a shorter one, such as the part that "
        "matters"
    )
    assert sent(process, longest, packed=False) == (200, "")
    assert sent(process, longest + b".", packed=False) == (400, said)
    client = triton.InferenceServerClient(f"127.0.0.1:{process.grpc_port}")
    tensor = triton.InferInput("raw", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([longest + b"."], object))
    with pytest.raises(InferenceServerException) as error:
        client.infer("text", [tensor])
    client.close()
    assert error.value.message() == said


def test_a_chain_bounds_its_texts_alike(tmp_path: Path) -> None:
    bundle = served.texts(tmp_path)
    nodes = {
        "screen": {"model": str(bundle)},
        "unsure": {"when": "screen", "below": 1.1},
        "careful": {"model": str(bundle), "source": "unsure"},
    }
    (tmp_path / "chain.yaml").write_text(json.dumps(nodes))
    with ServerThread(*settings_of([f"desk={tmp_path / 'chain.yaml'}"]).models) as server:

        def status(body: bytes, **headers: str) -> tuple[int, str]:
            connection = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
            headers["Content-Type"] = "text/plain"
            connection.request("POST", "/v2/models/desk/infer", body, headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
            connection.close()
            return response.status, answer.get("error", "")

        packed = {"Content-Encoding": "gzip"}
        assert status(gzip.compress(b"." * 65_536), **packed) == (200, "")
        assert status(gzip.compress(b"." * 65_537), **packed) == (
            400,
            "a sample in a compressed body may have 65,536 bytes; got 65,537: send it without Content-Encoding",
        )
        assert status(b"." * 262_145) == (
            400,
            "a sample for 'desk' may have 262,144 bytes; got 262,145: send a shorter one, such as the part that "
            "matters",
        )
        until(lambda: ROOM.taken_bytes == 0)


def post(server: ServerThread, model: str, body: bytes) -> tuple[int, Any, str | None]:
    connection = http.client.HTTPConnection(server.host, timeout=PATIENCE_S)
    connection.request("POST", f"/v2/models/{model}/infer", body, {"Content-Type": "image/png"})
    response = connection.getresponse()
    answer, retry = json.loads(response.read()), response.headers["Retry-After"]
    connection.close()
    return response.status, answer, retry


WAITING = one_color("RGB", (1000, 1000), "PNG")
"""A picture that takes more than 1 MiB."""


WORDS = {
    200: "",
    503: "overloaded: other samples take the memory that this one needs; retry later",
    504: "the deadline passed before the sample was prepared",
}


@pytest.fixture
def other() -> Iterator[Place]:
    """Another request, which takes nearly all of the process's memory for samples."""
    place = place_in(ROOM)
    assert prepared(place, 39)
    yield place
    place.leave()
    until(lambda: ROOM.taken_bytes == 0)
    assert ROOM._line == []


@pytest.mark.parametrize(
    ("wait_s", "deadline_s", "expected"),
    [(60.0, None, 200), (0.05, None, 503), (60.0, 0.3, 504)],
    ids=["is answered", "waits too long", "comes too late"],
)
def test_a_sample_waits_for_memory_no_longer_than_it_may(
    bundles: list[str], other: Place, wait_s: float, deadline_s: float | None, expected: int
) -> None:
    options = ModelOptions(max_wait_s=wait_s, deadline_s=deadline_s)
    places = settings_of([bundles[2], bundles[-1]], models=options).models
    with ServerThread(*places) as server, ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(post, server, model, WAITING) for model in ("colour", "squares")]
        until(lambda: len(ROOM._line) == 2 or all(each.done() for each in asked))
        if expected == 200:
            assert post(server, "colour", TINY)[0] == 200  # it takes no more than it pays for
            other.keep(0)
        for each in asked:
            status, answer, retry = each.result(PATIENCE_S)
            assert (status, answer.get("error", "")) == (expected, WORDS[expected])
            assert (retry == "1") == (expected == 503)


def test_an_answered_request_is_gone_without_a_garbage_collection(bundles: list[str]) -> None:
    """The server's process collects rarely, so what stays would be many pictures."""

    def left() -> list[Any]:
        return [one for one in gc.get_objects() if isinstance(one, (RawTicket, Image.Image))]

    places = settings_of([bundles[2], bundles[-1]]).models
    gc.collect()
    gc.disable()
    try:
        with ServerThread(*places) as server:
            for model in ("colour", "squares"):
                assert post(server, model, WAITING)[0] == 200
                until(lambda: not left())
                assert post(server, model, BROKEN)[0] == 400
                until(lambda: not left())
    finally:
        gc.enable()


def test_a_step_without_a_bound_takes_its_memory_from_the_room_too() -> None:
    told: list[int] = []
    token = making_room.set(told.append)
    try:
        Decode(memory_per_byte=0)(WIDE)
    finally:
        making_room.reset(token)
    assert max(told) >= 17 * 1540 * 1540
