"""Bundle whose winner answers rows of one kind rightly and others not, for tests of the monitor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support import models
from tests.support.bundles import forge
from tests.support.servers import bundle_of

SAME, OTHER = [1.0, 3.0, 3.0, 1.0], [1.0, 0.0, 0.0, 2.0]
"""Rows for `mirrored`: its class is that of `solid`, or another one."""
LIMIT = 0.1
ENOUGH = 12
"""Changed answers in a row that break the limit, whatever was before within a test."""


CHANGED = {
    "share": 0.05,
    "bound": LIMIT,
    "confidence": 0.9875,
    "n": 1000,
    "method": "Clopper-Pearson",
}
"""What a certificate's record says of the answers that changed on the sealed data."""


def certified(
    folder: Path, name: str = "watched", changed: Mapping[str, Any] | None = CHANGED, **judged: Any
) -> Path:
    """A bundle whose winner mirrors each row before it answers, which is exactly `solid`."""
    folder.mkdir(exist_ok=True)
    path = bundle_of(folder, models.mirrored(folder), name, exact=models.solid(folder))
    judgement = {"guard": "changed", "max_drop": LIMIT, "n": 1000, "lost": 1, "gained": 0, **judged}
    certificate = {"judgement": judgement, **({} if changed is None else {"changed": changed})}
    forge(path, lambda record: record.update(certificate=certificate))
    return path
