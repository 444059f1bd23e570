"""Files of torch's programs and of TorchScript, which a process of their own loads, runs and exports (extra `torch`).

Operators of torch don't check all that they are given, so that a stranger's file may crash the process that runs it, or
write to its memory. A file that the user trusts is loaded in the user's own process instead, which knows the operators
that the user's code registered.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from hasten.core.extras import missing_extra
from hasten.core.model import Model
from hasten.core.tensors import Array
from hasten.core.workers import CrashedError, KilledError, Worker
from hasten.errors import CandidateError, InputError
from hasten.inputs.models import apart, onnx
from hasten.inputs.models.apart import Stated, stated_of

Kind: TypeAlias = Literal["program", "TorchScript"]
PROGRAM = "program.pt2"
"""Name of the program that is kept beside the ONNX file."""


class TorchFile:
    """A file of torch, which a process of its own has loaded.

    The process ends with this object, once the model is exported, and with hasten's own process. Several threads may
    load the file, one after another.

    Attributes:
        path: The file.
        stated: Inputs that it states.

    Args:
        path: The file: a program of `torch.export`, or one of `torch.jit.save`.
        kind: Which of both it is.

    Raises:
        InputError: torch isn't installed, or can't load the file, or crashes.
    """

    def __init__(self, path: Path, kind: Kind) -> None:
        if importlib.util.find_spec("torch") is None:
            raise missing_extra(
                "a torch model" if kind == "program" else "a TorchScript file", "torch"
            )
        self._begin(path, path.absolute(), kind)
        self.stated = self._check(self._read())

    def _begin(self, path: Path, place: Path, kind: Kind) -> None:
        self.path, self._place, self._kind = path, place, kind
        self._worker: Worker | None = None
        self._owner = 0
        self._end: Callable[[], object] = lambda: None
        self._loading = threading.Lock()

    def __getstate__(self) -> tuple[Path, Path, Kind, Stated]:
        """Return the state of a copy, which has no process until it is loaded."""
        return self.path, self._place, self._kind, self.stated

    def __setstate__(self, state: tuple[Path, Path, Kind, Stated]) -> None:
        """Become a copy."""
        path, place, kind, self.stated = state
        self._begin(path, place, kind)

    def load(
        self,
        sample: Callable[[Sequence[str]], Mapping[str, Array]],
        workdir: Path,
        further: Callable[[Sequence[str]], Sequence[Mapping[str, Array]]],
        *,
        keep_program: bool = False,
    ) -> Model:
        """Export the model to ONNX, and check that the answers stay the same.

        Args:
            sample: Function from the names of the inputs to one sample, without an axis for samples.
            workdir: Folder to write the ONNX file to.
            further: Function from the names in the sample to samples of other shapes.
            keep_program: Whether to keep torch's program too, if the file is one.

        Raises:
            InputError: the sample doesn't fit, torch can't run or export the model, or crashes, or the ONNX file
                gives other answers, or what is left isn't made of regular files.
        """
        given = sample(self.stated.names)
        samples = [given, *further(tuple(given))]
        kept = workdir / PROGRAM if keep_program and self._kind == "program" else None
        with self._loading:
            self._export(samples, workdir.absolute(), keep_program=kept is not None)
        self._look(workdir / "model.onnx")
        model = onnx.load(workdir / "model.onnx")
        for file in (*model.files, *((kept,) if kept is not None else ())):
            self._look(file)
        return replace(model, program=kept)

    def _export(
        self, samples: Sequence[Mapping[str, Array]], workdir: Path, *, keep_program: bool
    ) -> None:
        """Let the process export the model, and end it, so that it changes nothing of what it left."""
        if self._worker is None or self._owner != os.getpid() or not self._worker.alive:
            self._read()
        self._ask(
            "export_torch",
            "ran and exported the model",
            names=[list(one) for one in samples],
            samples=self._written(samples),
            workdir=workdir,
            keep_program=keep_program,
        )
        self._close()

    def _check(self, record: Any) -> Stated:
        """Return what the process says of the model, which need not be true.

        Raises:
            InputError: no model states that.
        """
        stated = stated_of(record)
        if stated is None:
            self._close()
            raise InputError(
                f"{self.path} can't be used: the process that loaded it states inputs that no model has: save the "
                "model again, or give it as an ONNX file"
            )
        return stated

    def _look(self, left: Path) -> None:
        """Check that a file that the process left is one, which reading neither blocks nor leads elsewhere.

        Raises:
            InputError: it is missing, a link, a pipe or a device.
        """
        try:
            regular = stat.S_ISREG(left.lstat().st_mode)
        except OSError:
            regular = False
        if not regular:
            raise InputError(
                f"{self.path} can't be used: the process that exported it left no regular file {left.name}: save the "
                "model again, or give it as an ONNX file"
            )

    def _read(self) -> Any:
        """Start the process and let it load the file; return what it says of the model.

        An earlier one may have ended: where no server forks it, with the thread that started it.
        """
        self._close()
        self._worker, self._folder = apart.start(self.path, "torch")
        self._end = weakref.finalize(self, _end, self._worker, self._folder, os.getpid())
        self._owner = os.getpid()
        return self._ask(
            "read_torch",
            "loaded the file",
            path=self._place,
            kind=self._kind,
            torchvision="torchvision" in sys.modules,
        )

    def _written(self, samples: Sequence[Mapping[str, Array]]) -> Path:
        """Write samples to the process's own folder, which is removed with it; return the file."""
        written = self._folder / "samples"
        try:
            with written.open("wb") as file:
                for name, array in (pair for one in samples for pair in one.items()):
                    try:
                        np.save(file, array, allow_pickle=False)
                    except (TypeError, ValueError) as error:
                        raise InputError(
                            f"input {name!r} isn't an array of numbers: give one, as of np.asarray(values, np.float32)"
                        ) from error
        except OSError as error:
            raise InputError(
                f"can't write samples for {self.path} to {self._folder}: {error.strerror or error}; free space there, or "
                "let TMPDIR name another folder"
            ) from error
        return written

    def _ask(self, do: str, what: str, **command: Any) -> Any:
        """Ask the process, which ends where it fails or where the user stops it.

        Args:
            do: Name of the command.
            what: Words on what torch did, for messages.
            **command: Values that `to_record` takes.
        """
        assert self._worker is not None
        try:
            return self._worker.ask(do, limit_s=apart.LIMIT_S, **command)
        except BaseException as error:
            self._close()
            if not isinstance(error, CandidateError):
                raise
            raise InputError(f"{self.path} can't be used: {_in_words(error, what)}") from error

    def _close(self) -> None:
        self._end()
        self._worker = None


def _in_words(error: CandidateError, what: str) -> str:
    """Return what happened to the process, and what to do."""
    if isinstance(error, CrashedError):
        ended = "torch crashed" if error.how.startswith("SIG") else "torch's process ended"
        return (
            f"{ended} ({error.how}) while it {what}, so the file is damaged, or calls an operator in a way that "
            "torch doesn't check: save the model again, or give it as an ONNX file"
        )
    if isinstance(error, KilledError):
        return (
            f"torch was killed while it {what}, probably for lack of memory: free memory, or give the model as an "
            "ONNX file"
        )
    return str(error)


def _end(worker: Worker, folder: Path, owner: int) -> None:
    """End a process and remove its folder; a fork of its owner leaves both alone."""
    if os.getpid() == owner:
        worker.kill()
        shutil.rmtree(folder, ignore_errors=True)
