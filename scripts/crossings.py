"""Count how often the model and the data cross rooms in one run: python scripts/crossings.py MODEL DATA OUT.

A room is a folder of `src/hasten`, or a file beside them. The script follows the calls of `hasten.optimize` in the
main thread, in their order, and looks at those whose arguments hold the model or the data, as they were given or as
a `Model` or a `Dataset`. A crossing is such a call from one room into another. Each one counts once, since a run calls
the same function for each candidate, and so does a method that each member of a family has. A crossing goes up where
the rooms of `pyproject.toml` have the called one above the caller's.

The walk is the list of rooms that get the model or the data, by the first call of each function: the way of a reader who
follows them. It moves where the next room is another one, and climbs where that one is above.
"""

from __future__ import annotations

import sys
import threading
import tomllib
from collections.abc import Callable, Iterable
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import hasten
from hasten.core.model import Model
from hasten.inputs.data.dataset import Dataset

ROOT = Path(__file__).parents[1]
SOURCE = Path(hasten.__file__).parent


class Crossing(NamedTuple):
    """Call that hands the model or the data from one room into another.

    Attributes:
        caller: The calling function, as "room/file.py: function".
        called: The called function, in the same form.
        up: Whether the called function's room is above the caller's.
    """

    caller: str
    called: str
    up: bool


def rooms() -> list[str]:
    """Return the rooms from the highest to the lowest."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    return next(
        list(one["layers"]) for one in settings["contracts"] if one.get("containers") == ["hasten"]
    )


class Followed(NamedTuple):
    """The way of the model and the data through a run.

    Attributes:
        crossings: Each crossing once, in their order.
        walk: Room of each function that got them, in the order of their first calls.
    """

    crossings: list[Crossing]
    walk: list[str]

    @property
    def up(self) -> list[Crossing]:
        """The crossings that go up."""
        return [one for one in self.crossings if one.up]

    @property
    def moves(self) -> tuple[int, int]:
        """How often the walk moves to another room, and how often it climbs."""
        places = [rooms().index(room) for room in self.walk]
        steps = [after - before for before, after in pairwise(places) if after != before]
        return len(steps), sum(step < 0 for step in steps)


def follow(run: Callable[[], object], given: Iterable[Any]) -> Followed:
    """Return the way of the model and the data through a run.

    Args:
        run: Function that calls `hasten.optimize`.
        given: The model and the data, as `run` hands them over.
    """
    places = {name: number for number, name in enumerate(rooms())}
    handed = {id(one) for one in given}
    found: dict[tuple[str, str], Crossing] = {}
    walked: dict[str, str] = {}

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or frame.f_back is None:
            return
        here = _room(frame.f_code.co_filename)
        if here not in places or not _holds(frame, handed):
            return
        there = _room(frame.f_back.f_code.co_filename)
        name = _name(frame)
        walked.setdefault(name, here)
        if here != there and there in places:
            caller, member = _name(frame.f_back), name.rpartition(".")[2]
            up = places[here] < places[there]
            found.setdefault((caller, f"{here}: {member}"), Crossing(caller, name, up))

    assert threading.current_thread() is threading.main_thread()
    sys.setprofile(look)
    try:
        run()
    finally:
        sys.setprofile(None)
    return Followed(list(found.values()), list(walked.values()))


@cache
def _room(file: str) -> str:
    if not file.startswith(f"{SOURCE}/"):
        return ""
    return file[len(str(SOURCE)) + 1 :].partition("/")[0].removesuffix(".py")


def _name(frame: FrameType) -> str:
    file = Path(frame.f_code.co_filename).relative_to(SOURCE)
    return f"{file}: {frame.f_code.co_qualname}"


def _holds(frame: FrameType, handed: set[int]) -> bool:
    """Whether an argument is the model or the data; an object that has them among its fields isn't."""
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    values = [frame.f_locals[name] for name in names if name not in ("self", "cls")]
    return any(id(one) in handed or isinstance(one, Model | Dataset) for one in values)


def main(model: str, data: str, out: str) -> None:
    """Follow the model and the data through a run on two files, and print their crossings."""
    found = follow(lambda: hasten.optimize(model, data, out=out), (model, data))
    for one in found.crossings:
        print(f"{'up  ' if one.up else 'down'} {one.caller} -> {one.called}")
    moves, climbs = found.moves
    print(f"{len(found.crossings)} crossings, {len(found.up)} of them up")
    print(f"{moves} moves of a reader, {climbs} of them up")


if __name__ == "__main__":
    main(*sys.argv[1:4])
