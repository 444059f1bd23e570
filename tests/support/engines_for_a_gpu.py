"""Engines that are said to run on a GPU, and run on this host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.engines.base import Artifact
from hasten.engines.reference import Reference
from hasten.errors import CandidateError


@dataclass(frozen=True)
class Slow(Reference):
    """An engine of the device that is slower than any of the host's, and counts as inexact."""

    families: ClassVar[frozenset[str]] = frozenset({"cuda"})

    @property
    def exact(self) -> bool:
        return False

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        yield cls()

    def words(self) -> str:
        return "slow"


@dataclass(frozen=True)
class Unable(Slow):
    """An engine of the device that takes no model."""

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        raise CandidateError("no kernel image is available for execution on the device")

    def words(self) -> str:
        return "unable"
