"""Requests on their way, on a clock that only the test moves."""

from hypothesis import given
from hypothesis import strategies as st

from hasten.evaluation.loadtest.traffic import (
    CONNECTION,
    UNANSWERED,
    UNSENT,
    Fate,
    Traffic,
    legible,
)

OK = Fate("ok", "200")


class Place:
    """A clock, and lanes that answer when the test says so."""

    def __init__(self, due_ns: list[int], lanes: int = 2, most_under_way: int = 100) -> None:
        self.now_ns = 0
        self.opening = 0
        self.sent: list[tuple[int, int]] = []
        self.lanes: list[Lane] = []
        self.traffic = Traffic(
            due_ns,
            self.open_lane,
            lanes=lanes,
            most_under_way=most_under_way,
            clock_ns=lambda: self.now_ns,
        )

    def open_lane(self, traffic: Traffic) -> None:
        self.opening += 1

    def opened(self) -> None:
        self.opening -= 1
        self.lanes.append(Lane(self, len(self.lanes)))
        self.traffic.opened_one(self.lanes[-1])

    def at(self, now_ns: int) -> int | None:
        self.now_ns = now_ns
        return self.traffic.send_due()


class Lane:
    def __init__(self, place: Place, number: int) -> None:
        self.place, self.number = place, number
        self.turn: int | None = None

    def send(self, turn: int) -> None:
        assert self.turn is None
        self.turn = turn
        self.place.sent.append((self.number, turn))

    def answer(self, now_ns: int, fate: Fate = OK, message: str = "") -> None:
        assert self.turn is not None
        self.place.now_ns = now_ns
        turn, self.turn = self.turn, None
        self.place.traffic.ended(turn, fate, message)
        self.place.traffic.ready(self)

    def breaks(self) -> None:
        if self.turn is not None:
            self.place.traffic.ended(self.turn, CONNECTION, "it broke")
            self.turn = None
        self.place.traffic.lost(self)


def test_nothing_is_sent_before_it_is_due() -> None:
    place = Place([10, 20])
    assert place.at(9) == 10
    assert place.opening == 0
    assert place.at(10) == 20
    assert place.opening == 1


def test_a_request_that_is_due_doesnt_wait_for_answers() -> None:
    place = Place([10, 20])
    place.at(10)
    place.opened()
    assert place.at(20) is None
    place.opened()
    assert place.sent == [(0, 0), (1, 1)]
    assert list(place.traffic.waited) == [0, 0]


def test_the_lag_is_the_generators_own() -> None:
    place = Place([10, 20, 30])
    place.at(25)
    place.at(30)
    assert list(place.traffic.lag_ns) == [15, 5, 0]


def test_who_finds_every_lane_busy_waits_and_that_is_told() -> None:
    place = Place([10, 20, 30], lanes=1)
    place.at(10)
    place.opened()
    place.at(30)
    assert place.sent == [(0, 0)]
    place.lanes[0].answer(500)
    place.lanes[0].answer(600)
    place.lanes[0].answer(700)
    assert place.sent == [(0, 0), (0, 1), (0, 2)]
    assert list(place.traffic.waited) == [0, 1, 1]
    assert list(place.traffic.ended_ns) == [500, 600, 700]
    assert place.traffic.opened == 1


def test_the_lane_that_was_used_last_is_used_again() -> None:
    place = Place([10, 11, 20, 30])
    place.at(11)
    place.opened()
    place.opened()
    place.lanes[0].answer(12)
    place.lanes[1].answer(13)
    place.at(20)
    assert place.sent[-1] == (1, 2)
    place.lanes[1].answer(21)
    place.at(30)
    assert place.sent[-1] == (1, 3)


def test_a_lane_that_breaks_ends_its_request_and_another_is_opened_for_who_waits() -> None:
    place = Place([10, 20], lanes=1)
    place.at(10)
    place.opened()
    place.at(20)
    place.lanes[0].breaks()
    assert place.traffic.fates == [CONNECTION, None]
    assert place.opening == 1
    place.opened()
    assert place.sent == [(0, 0), (1, 1)]


def test_an_idle_lane_that_breaks_gets_no_request() -> None:
    place = Place([10, 20])
    place.at(10)
    place.opened()
    place.lanes[0].answer(11)
    place.lanes[0].breaks()
    place.at(20)
    place.opened()
    assert place.sent == [(0, 0), (1, 1)]


def test_a_lane_that_cant_be_opened_fails_one_request_and_is_tried_again_for_the_next() -> None:
    place = Place([10, 20, 30], lanes=1)
    place.at(30)
    assert place.opening == 1
    for left in (2, 1, 0):
        place.opening -= 1
        place.traffic.not_opened("refused")
        assert place.traffic.under_way == left
        assert place.opening == (1 if left else 0)
    assert place.traffic.fates == [CONNECTION] * 3
    assert place.traffic.messages == {CONNECTION: "refused"}


def test_more_than_so_many_unanswered_arent_sent() -> None:
    place = Place([1, 2, 3, 4], lanes=1, most_under_way=2)
    place.at(3)
    assert place.traffic.under_way == 2
    place.opened()
    place.lanes[0].answer(4)
    place.at(4)
    assert place.traffic.fates == [OK, None, UNSENT, None]


def test_behind_its_schedule_it_listens_between_bursts() -> None:
    place = Place([1] * 100, lanes=100)
    assert place.at(5) == 1
    assert place.opening == 64
    assert place.at(6) is None
    assert place.opening == 100


def test_what_has_no_answer_at_the_end_is_unanswered_for_good() -> None:
    place = Place([1, 2])
    place.at(2)
    place.opened()
    place.traffic.stop()
    place.lanes[0].answer(9)
    place.opened()
    assert place.traffic.fates == [UNANSWERED] * 2
    assert list(place.traffic.ended_ns) == [0, 0]
    assert place.sent == [(0, 0)]


def test_only_the_first_message_of_a_fate_is_kept() -> None:
    place = Place([1, 2, 3], lanes=1)
    place.at(3)
    place.opened()
    refused, error = Fate("refused", "503"), Fate("error", "400")
    place.lanes[0].answer(4, refused, "the queue is full")
    place.lanes[0].answer(5, refused, "still full")
    place.lanes[0].answer(6, error, "no")
    assert place.traffic.messages == {refused: "the queue is full", error: "no"}


def test_what_a_server_says_cant_steer_a_terminal_or_fill_it() -> None:
    assert legible("two\nlines \x1b[31mred\x07") == "two lines ?[31mred?"
    assert legible("a" * 5000) == "a" * 300 + "..."


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=40).map(sorted),
    st.integers(1, 4),
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=300),
)
def test_every_request_has_one_fate_whatever_happens(
    due_ns: list[int], lanes: int, most: int, events: list[tuple[int, int]]
) -> None:
    place = Place(due_ns, lanes, most)
    for kind, which in events:
        if kind == 0:
            place.at(place.now_ns + which)
        elif kind == 1 and place.opening:
            if which < 7:
                place.opened()
            else:
                place.opening -= 1
                place.traffic.not_opened("refused")
        elif kind == 2 and place.lanes:
            lane = place.lanes[which % len(place.lanes)]
            if lane.turn is not None:
                lane.answer(place.now_ns)
        elif kind == 3 and place.lanes:
            place.lanes.pop(which % len(place.lanes)).breaks()
        assert len(place.lanes) + place.opening <= lanes
        busy = sum(lane.turn is not None for lane in place.lanes)
        assert busy <= place.traffic.under_way <= most
        # Whoever waits has a lane to hope for, and none is idle meanwhile.
        if place.traffic.under_way > busy:
            assert busy == len(place.lanes)
            assert busy + place.opening > 0
    sent = [turn for _, turn in place.sent]
    assert sent == sorted(set(sent))
    place.traffic.stop()
    assert all(place.traffic.fates)
