"""The servers that take part: where each one's environment is, how it is started, how it is asked."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

PEERS = Path(__file__).with_name("peers")
ENVIRONMENTS = Path.home() / ".cache" / "hasten-benchmarks" / "servers"
REGIONS = "/hasten-benchmark-.*"
_FLOOR_NEEDS = ("httptools", "numpy", "uvicorn", "uvloop")


class UnavailableError(Exception):
    """A server can't be had here; says why."""


@dataclass(frozen=True)
class Place:
    """Where and what a server is to serve.

    Attributes:
        model: The model's name.
        bundle: Folder of the model's bundle.
        port: Port of HTTP on 127.0.0.1.
    """

    model: str
    bundle: Path
    port: int


def hasten_command(place: Place) -> list[str]:
    """Return what starts hasten's own server."""
    model = f"{place.model}={place.bundle}"
    hasten = Path(sys.executable).with_name("hasten")
    options = ["--http", str(place.port), "--shared-memory", REGIONS]
    return [str(hasten), "serve", model, *options]


@dataclass(frozen=True)
class Way:
    """One way to ask a server: the path, as `Format.request` takes it, and the format's name."""

    path: str
    format: str


@dataclass(frozen=True)
class Server:
    """A server that takes part.

    Attributes:
        name: Name of the server, and of its folder among the peers where it has one.
        ways: Ways to ask it; the leanest for a client on another machine comes first.
        package: Package whose version is reported.
        environment: Folder of its virtual environment; None for that of this process.
        command: Function that returns the command that starts it; None for its folder's app.
        serves: Whether it serves a model; otherwise it echoes.
    """

    name: str
    ways: tuple[Way, ...]
    package: str
    environment: str | None = None
    command: Callable[[Place], list[str]] | None = None
    serves: bool = True

    @property
    def python(self) -> Path:
        """What runs it.

        Raises:
            UnavailableError: its environment isn't there.
        """
        if self.environment is None:
            return Path(sys.executable)
        return environment_python(self.environment)

    def version(self) -> str:
        """Return its package's name and version."""
        code = f"from importlib.metadata import version; print(version({self.package!r}))"
        done = subprocess.run([self.python, "-c", code], capture_output=True, text=True)
        return f"{self.package} {done.stdout.strip() or 'of no known version'}"


_OPEN = "/v2/models/{model}/infer"
_OPEN_WAYS = (Way(_OPEN, "open-binary"), Way(_OPEN, "open-json"))
_SHARED_WAYS = (*_OPEN_WAYS, Way(_OPEN, "open-shared"))
FLOOR, HASTEN = "floor", "hasten"

SERVERS = {
    one.name: one
    for one in (
        Server(FLOOR, (Way("/{answer_bytes}", "raw"),), "uvicorn", "floor", serves=False),
        Server("granian", (Way("/", "raw"),), "granian", "floor", serves=False),
        Server(HASTEN, _SHARED_WAYS, "hasten", command=hasten_command),
        Server("triton", _SHARED_WAYS, "nvidia-pytriton", "triton"),
        Server("pytriton", _OPEN_WAYS, "nvidia-pytriton", "triton"),
        Server("mlserver", _OPEN_WAYS[1:], "mlserver", "mlserver"),
        Server(
            "litserve", (Way("/predict", "form"), Way("/predict", "json")), "litserve", "litserve"
        ),
        Server("bentoml", (Way("/raw", "raw"), Way("/json", "json")), "bentoml", "bentoml"),
        Server("ray", (Way("/raw", "raw"), Way("/json", "json")), "ray", "ray"),
    )
}
"""By name."""


def environment_python(name: str) -> Path:
    """Return the Python of one of the environments.

    Raises:
        UnavailableError: it wasn't made.
    """
    python = ENVIRONMENTS / name / "bin" / "python"
    if python.exists():
        return python
    if name == FLOOR and all(map(find_spec, _FLOOR_NEEDS)):
        return Path(sys.executable)
    raise UnavailableError(f"it has no environment: servers.py --setup {name} makes it")


def set_up(names: Iterable[str]) -> dict[str, str]:
    """Make the environments of some servers anew; return why not, by the names that failed."""
    failed = {}
    for name in dict.fromkeys(SERVERS[name].environment for name in names):
        if name is None:
            continue
        folder = ENVIRONMENTS / name
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        requirements = PEERS / name / "requirements.txt"
        install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
        done = subprocess.run(
            [*install, "--requirement", requirements], stderr=subprocess.PIPE, text=True
        )
        if done.returncode:
            failed[name] = last_line(done.stderr)
            shutil.rmtree(folder)
    return failed


def last_line(text: str) -> str:
    """Return the last line that says anything."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
