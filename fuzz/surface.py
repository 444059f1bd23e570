"""What a fuzzer of one surface is: seeds, a way to change them, and a check of what comes of an input."""

from __future__ import annotations

import abc
import hashlib
import importlib
import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

MOST_BYTES = 64 << 10
"""Largest input: what a stranger may send without being asked for more."""
SURFACES = {
    "manifests": "fuzz.surfaces.manifests:Manifests",
    "plans": "fuzz.surfaces.onnx_files:Plans",
    "packed": "fuzz.surfaces.packed:PackedFiles",
    "chunks": "fuzz.surfaces.packed:Chunks",
    "onnx": "fuzz.surfaces.onnx_files:OnnxFiles",
    "ir": "fuzz.surfaces.onnx_files:IrFiles",
    "tflite": "fuzz.surfaces.tflite:TfliteFiles",
    "keras": "fuzz.surfaces.keras_files:KerasFiles",
    "pt2": "fuzz.surfaces.archives:Programs",
    "npz": "fuzz.surfaces.archives:Npz",
    "weights": "fuzz.surfaces.archives:Weights",
    "skops": "fuzz.surfaces.archives:Skops",
    "trees": "fuzz.surfaces.trees:TreeFiles",
    "torchscript": "fuzz.surfaces.torchscript:TorchScript",
    "configs": "fuzz.surfaces.configs:Configs",
    "pipelines": "fuzz.surfaces.written:Pipelines",
    "signatures": "fuzz.surfaces.signatures:Signatures",
    "tokens": "fuzz.surfaces.tokens:Tokens",
    "images": "fuzz.surfaces.images:Images",
    "http": "fuzz.surfaces.http:Http",
    "shared_memory": "fuzz.surfaces.shared_memory:SharedRegions",
    "labels": "fuzz.surfaces.labels:Labels",
    "grpc": "fuzz.surfaces.grpc_calls:Calls",
    "streams": "fuzz.surfaces.grpc_calls:Streams",
    "pictures": "fuzz.surfaces.media:Pictures",
    "sounds": "fuzz.surfaces.media:Sounds",
    "texts": "fuzz.surfaces.samples:Texts",
    "rows": "fuzz.surfaces.samples:Rows",
    "lengths": "fuzz.surfaces.lengths:Lengths",
}
"""Name of each surface -> its class; those of the server last, since processes are forked for the others."""


class Fault(Exception):  # noqa: N818
    """What an input did that no input may do."""


class Surface(abc.ABC):
    """Seeds, mutations and the check of one surface.

    Args:
        folder: Folder of its own, which exists and may be filled.

    Attributes:
        name: Name on the command line.
        served: Whether inputs go to a server that runs; else each is checked in a process with limits.
        covers: Begin of the names of the modules that coverage is counted in, where it guides.
        most_s: Most seconds of a processor that one input may take.
        most_mib: Most memory that one input may take, in MiB.
    """

    name: ClassVar[str]
    served: ClassVar[bool] = False
    covers: ClassVar[str] = "hasten"
    most_s: ClassVar[float] = 1.0
    most_mib: ClassVar[int] = 64

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abc.abstractmethod
    def seeds(self) -> list[bytes]:
        """Return good inputs, the same ones each time."""

    @abc.abstractmethod
    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        """Return an input that is made of a good one."""

    @abc.abstractmethod
    def check(self, data: bytes) -> str:
        """Give an input to the code under test; return in a word what came of it, as "refused".

        Raises:
            Fault: what came isn't what may come. Any other exception is a finding too.
        """


@dataclass(frozen=True)
class Finding:
    """An input that did what no input may do.

    Attributes:
        surface: Name of the surface.
        data: The input.
        kind: "fault", "crash", "hang", "time", "memory" or "wait".
        why: Lines that say what the input did.
    """

    surface: str
    data: bytes
    kind: str
    why: str

    @property
    def file(self) -> str:
        """Name of the file that keeps the input."""
        return f"{self.surface}-{hashlib.sha256(self.data).hexdigest()[:16]}"

    @property
    def cause(self) -> str:
        """What findings of one cause have in common: the kind and the last line of the reason."""
        return f"{self.kind}: {self.why.strip().splitlines()[-1][:120]}"


def surface_of(name: str, folder: Path) -> Surface:
    """Make a surface by its name, with a folder of its own."""
    module, _, cls = SURFACES[name].partition(":")
    made: Callable[[Path], Surface] = getattr(importlib.import_module(module), cls)
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    return made(place)


def input_of(surface: Surface, seeds: list[bytes], seed: int, number: int) -> bytes:
    """Return the input of a number: the same one for the same surface, seed and number."""
    rng = random.Random(f"{seed}/{surface.name}/{number}")
    return surface.mutate(rng, rng.choice(seeds))[:MOST_BYTES]


def checked(surface: Surface, data: bytes) -> tuple[str, str]:
    """Check an input; return what came of it, and why that is a finding ("" where it is none)."""
    try:
        return surface.check(data), ""
    except Fault as fault:
        return "FOUND", str(fault)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[-6:]
        places = [f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
        said = f"{error!s:.500}".replace("\n", " ")
        return "FOUND", "\n".join([*places, said, f"{type(error).__name__} at {place}"])
