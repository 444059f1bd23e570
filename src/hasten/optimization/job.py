"""A run at work: its order, its folder and journal, and its progress reports."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hasten.bundle import replaceable
from hasten.certificate.ledger import Ledger, user_ledger
from hasten.core.invocation import Invocation, began_s
from hasten.core.progress import Listener, Outline, Progress, StageName, Tried
from hasten.errors import InputError, NothingRuns, full_disk
from hasten.measure.deadline import Deadline
from hasten.measure.journal import Journal
from hasten.optimization.order import Order
from hasten.optimization.workspace import claimed_folder


@dataclass
class Job:
    """A run at work.

    Attributes:
        order: Order that the run carries out.
        invocation: Command or call that started the run, so that a person can repeat it.
        folder: Work folder, beside the bundle.
        journal: Journal of completed steps, in the work folder.
        listen: Callback that receives the progress.
        notes: Notes for the reader of the result.
        doubts: Notes among these on data that looks wrong, which are told before the search too.
        varying: Names of outputs whose size depends on a sample's values, once the original has answered.
        deadline: End of the command, and what each stage may spend until then.
        ledger: Memory of which samples earlier runs searched and tested on.
    """

    order: Order
    invocation: Invocation
    folder: Path
    journal: Journal
    listen: Listener
    notes: list[str] = field(default_factory=list)
    deadline: Deadline = field(default_factory=Deadline)
    ledger: Ledger = field(default_factory=user_ledger)
    doubts: list[str] = field(default_factory=list)
    varying: tuple[str, ...] = ()

    @property
    def late(self) -> bool:
        """Whether the stage at work has spent its time."""
        return self.deadline.late

    def tell(
        self,
        stage: StageName,
        doing: str,
        done: int,
        total: int,
        outcome: str | None = None,
        best: str | None = None,
        *,
        tried: Tried | None = None,
        news: str | None = None,
        outline: Outline | None = None,
    ) -> None:
        """Report one step; the arguments are the fields of `Progress`."""
        later_s = self.deadline.later_s()
        self.listen(
            Progress(stage, doing, done, total, outcome, best, tried, news, outline, later_s)
        )


@contextlib.contextmanager
def claimed(
    order: Order,
    invocation: Invocation,
    *,
    resume: bool,
    listen: Listener,
    notes: Sequence[str],
    ledger: Ledger,
) -> Iterator[Job]:
    """Claim a run's work folder, and remove it once the run has finished.

    A run that stops after its first trial leaves the folder, to be resumed; a run that fails
    earlier leaves nothing, and neither does one for a device that runs nothing.

    Raises:
        InputError: the bundle's place holds something that no bundle may replace; there is an
            unfinished run and `resume` is False; there is nothing to resume; another run is at
            work; or the disk is full.
    """
    deadline = Deadline(order.time_limit_s, began_s())
    replaceable(order.out)
    folder = order.out.with_name(order.out.name + ".work")
    with claimed_folder(folder, resume=resume) as journal:
        try:
            yield Job(order, invocation, folder, journal, listen, list(notes), deadline, ledger)
        except (InputError, OSError) as error:
            full = None if isinstance(error, InputError) else full_disk(error)
            if not isinstance(error, InputError) and full is None:
                raise
            if journal.last("trial") is None or isinstance(error, NothingRuns):
                shutil.rmtree(folder, ignore_errors=True)
            if full is None:
                raise
            raise InputError(f"can't write {full.filename or folder}: {full.strerror}") from error
        shutil.rmtree(folder, ignore_errors=True)
