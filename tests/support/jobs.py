"""A run's job without its claimed folder, for tests of single steps."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from hasten.core.invocation import Invocation
from hasten.core.progress import nobody
from hasten.measure.journal import Journal
from hasten.optimization.job import Job
from hasten.optimization.order import Options, order_of


def job_in(folder: Path, journal: Journal | None = None, **options: Unpack[Options]) -> Job:
    """Return a job that works in a folder, with its own journal unless one is given."""
    kept = journal or Journal(folder / "journal.jsonl")
    return Job(order_of(**options), Invocation(), folder, kept, nobody)
