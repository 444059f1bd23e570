"""Base of engines that are only timed beside candidates, such as a rival or the whole way of a sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from hasten.core.target import Target
from hasten.engines.base import Engine


class OnlyTimed(Engine):
    """Engine that no search proposes and no bundle holds, so that nothing is claimed of its answers."""

    @property
    def exact(self) -> bool:
        return False

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        yield from ()

    @classmethod
    def version(cls) -> str:
        return "none"
