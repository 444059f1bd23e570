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


def test_the_turn_of_a_request_that_is_over_goes_to_the_next_of_its_client() -> None:
    door = Door[Request]()
    requests = [Request(name) for name in ("a1", "a2", "b1", "a3")]
    for one in requests:
        door.enter(one, 2, one.name[0], 2)
    for one in requests[:2]:
        one.over = True
        door.left(2, "a")
    assert order(door) == ["a3", "b1"]
    requests[3].over = False
    door.enter(requests[3], 2, "a", 2)
    requests[3].over = True
    door.left(2, "a")
    assert door.first() is None


def test_a_client_that_gives_up_and_comes_again_gets_no_turns_of_others() -> None:
    door = Door[Request]()
    for _ in range(10):
        gone = Request("gone")
        door.enter(gone, 2, "a", 2)
        gone.over = True
        door.left(2, "a")
    for number in range(3):
        door.enter(Request(f"a{number}"), 2, "a", 2)
        door.enter(Request(f"b{number}"), 2, "b", 2)
    assert order(door) == ["a0", "b0", "a1", "b1", "a2", "b2"]
