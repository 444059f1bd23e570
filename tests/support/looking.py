"""A pass that looks for a package which it says it needs none of."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.inputs.data.dataset import Dataset
from hasten.passes.base import Pass, Skipped


@dataclass(frozen=True)
class Looking(Pass):
    """Skips, and says whether the package can be imported."""

    needless: ClassVar[frozenset[str]] = frozenset({"this"})

    package: str = "this"

    @classmethod
    def variants(cls, model: Model, target: Target) -> Iterator[Self]:
        """Yield one."""
        yield cls()

    def __call__(self, model: Model, calibration: Dataset, workdir: Path) -> Model:
        """Look."""
        try:
            importlib.import_module(self.package)
        except ModuleNotFoundError:
            raise Skipped("it isn't there") from None
        raise Skipped("it is there")

    def words(self) -> str:
        """Say so."""
        return "looking"
