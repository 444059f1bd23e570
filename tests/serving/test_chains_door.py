"""The line before a chain lets requests in by level, by the clients' turns, and by a client's own priorities."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.serving.models.door import Door


@dataclass
class Request:
    name: str
    over: bool = False


def order(door: Door[Request]) -> list[str]:
    """Let everyone in, and return their names."""
    names = []
    while (found := door.first()) is not None:
        door.pop()
        names.append(found.name)
    return names


def test_clients_take_turns_and_lower_levels_go_first() -> None:
    door = Door[Request]()
    for name in ("a1", "a2", "a3", "b1", "c1"):
        door.enter(Request(name), 2, name[0], 2)
    door.enter(Request("urgent"), 1, "a", 1)
    assert order(door) == ["urgent", "a1", "b1", "c1", "a2", "a3"]


def test_a_clients_most_urgent_request_takes_its_first_turn() -> None:
    door = Door[Request]()
    for name, priority in (("a5", 5), ("b2", 2), ("a4", 4), ("a1", 1)):
        door.enter(Request(name), 2, name[0], priority)
    assert order(door) == ["a1", "b2", "a4", "a5"]


def test_a_request_that_is_over_gives_a_turn_back() -> None:
    door = Door[Request]()
    requests = [Request(name) for name in ("a1", "a2", "b1", "a3", "b2")]
    for one in requests:
        door.enter(one, 2, one.name[0], 2)
    for one in requests[:2]:
        give_up(door, one, "a")
    door.enter(Request("a4"), 2, "a", 2)
    assert order(door) == ["a3", "b1", "b2", "a4"]
    last = Request("a5")
    door.enter(last, 2, "a", 2)
    give_up(door, last, "a")
    assert door.first() is None


def test_who_gave_up_many_requests_waits_no_longer_and_gets_no_turns_of_others() -> None:
    door = Door[Request]()
    door.enter(Request("last"), 3, "c", 3)  # so the turns aren't forgotten
    for _ in range(1000):
        gone = Request("gone")
        door.enter(gone, 2, "a", 2)
        give_up(door, gone, "a")
    for number in range(3):
        door.enter(Request(f"a{number}"), 2, "a", 2)
        door.enter(Request(f"b{number}"), 2, "b", 2)
    assert order(door) == ["a0", "b0", "a1", "b1", "a2", "b2", "last"]


def test_requests_that_are_over_and_clients_that_left_are_not_kept() -> None:
    """Forty bodies of 8 MiB, whose clients had hung up, stayed behind one picture that waited."""
    door = Door[Request]()
    door.enter(Request("first"), 1, "z", 1)
    door.enter(Request("a"), 2, "a", 2)
    for number in range(10_000):
        gone = Request("gone")
        client = "a" if number % 2 else f"client {number}"
        door.enter(gone, 2, client, 3)
        give_up(door, gone, client)
    assert len(door._next) < 100
    assert len(door._clients) == 2
    assert len(door._clients[2, "a"].items) < 100
    assert order(door) == ["first", "a"]
    assert not door._clients


def give_up(door: Door[Request], request: Request, client: str) -> None:
    """Let a request of a client that waits at level 2 be over."""
    request.over = True
    door.left(2, client)
