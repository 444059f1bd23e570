"""An engine that takes as long as it is asked to, and no processor time: for what happens meanwhile."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self
from unittest.mock import patch

from hasten.core.model import Format, Model
from hasten.core.objects import import_path
from hasten.core.registry import Registry
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import DeviceLost

RELEASE = threading.Event()
"""Set in the process that answers, it ends all pauses at once."""
LOST = threading.Event()
"""Set in the process that answers, no pausing engine there answers any more."""
RAN: list[list[float]] = []
"""First row of each run of a pausing engine in this process, in the order in which they began."""
_INNER = OnnxRuntime(threads=1, spinning=False)
_WHOLE_MS = 1e10
_FOLDER = "HASTEN_TEST_PAUSES"
"""Variable that names the folder of a `Pauses`."""


class Pauses:
    """Pauses of pausing engines in processes that get the variables: they are noted, and end on demand.

    Args:
        folder: Folder for the notes, which must be empty.

    Attributes:
        env: Variables for the processes.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.env = {_FOLDER: str(folder)}

    def begun(self, pause_ms: float) -> bool:
        """Whether a pause of so many milliseconds has begun."""
        notes = self._folder / "begun"
        return notes.exists() and str(float(pause_ms)) in notes.read_text().split("\n")[:-1]

    def end(self) -> None:
        """End all pauses, those that would begin from now on too."""
        (self._folder / "ended").touch()


@dataclass(frozen=True)
class Pausing(Engine):
    """ONNX Runtime that waits, before it answers, as many milliseconds as a request's first number.

    Requests of a warm-up are around zero, so they take next to nothing. A first number below -1000
    loses the device: no pausing engine answers anything more in this process. One of at least 1e10
    hangs with the interpreter's lock, as a faulty library may: no thread of Python goes on. Bundles
    of it can be opened inside `pausing_installed`.
    """

    inner: OnnxRuntime = _INNER
    formats: ClassVar[frozenset[Format]] = OnnxRuntime.formats

    @property
    def exact(self) -> bool:
        """Always: the answers are right."""
        return True

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield the only one."""
        yield cls()

    @classmethod
    def version(cls) -> str:
        """Return "1", as there are no others."""
        return "1"

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Build as ONNX Runtime does."""
        return self.inner.build(model, target, workdir)

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Open as ONNX Runtime does."""
        with self.inner.open(artifact, target) as session:
            yield PausingSession(session)

    def words(self) -> str:
        return "pausing engine"


class PausingSession(Session):
    """ONNX Runtime's session, after the pause; other threads run meanwhile."""

    def __init__(self, inner: Session) -> None:
        self.inputs, self.outputs, self.batch_sizes = inner.inputs, inner.outputs, inner.batch_sizes
        self._inner = inner

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Pause, then answer."""
        row = next(iter(inputs.values()))[0].tolist()
        RAN.append(row)
        pause_ms = row[0]
        if pause_ms < -1000:
            LOST.set()
        if LOST.is_set():
            raise DeviceLost("CUDA can't finish: the GPU no longer works in this process")
        if pause_ms >= 1:
            _pause(pause_ms)
        return self._inner.run(inputs)

    def properties(self) -> Mapping[str, str]:
        """The inner session's."""
        return self._inner.properties()


def _pause(pause_ms: float) -> None:
    """Wait until the time is over, or the test ends all pauses."""
    folder = os.environ.get(_FOLDER)
    if folder is not None:
        with Path(folder, "begun").open("a") as notes:
            notes.write(f"{pause_ms}\n")
    if pause_ms >= _WHOLE_MS:
        ctypes.PyDLL(None).sleep(600)
    if folder is None:
        RELEASE.wait(pause_ms / 1000)
        return
    end_s = time.monotonic() + pause_ms / 1000
    while time.monotonic() < end_s and not Path(folder, "ended").exists():
        time.sleep(0.005)


@contextmanager
def pausing_installed(folder: Path) -> Iterator[None]:
    """Let bundles name it, in this process and in those that it starts: it is a plug-in there.

    Pauses last in this process, whatever an earlier test left.

    Args:
        folder: Folder to write the plug-in's facts into.
    """
    RELEASE.clear()
    LOST.clear()
    known = {**Engine.registry, "pausing": import_path(Pausing)}
    facts = folder / "pausing-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: pausing\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[hasten.engines]\npausing = {known['pausing']}\n")
    paths = (str(folder), os.environ.get("PYTHONPATH", ""))
    with (
        patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths))),
        patch.object(Engine, "registry", Registry("engine", "hasten.engines", known)),
    ):
        yield
