"""Cache latencies of untrained networks that were measured on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hasten.core.records import digest, from_record, read_json, to_record, write_json
from hasten.core.target import Target
from hasten.engines.base import Engine
from hasten.errors import HastenError
from hasten.lightening.prospects import Prospect
from hasten.lightening.shortlisting.options import Option
from hasten.measure.environment import versions

_SCHEMA = 3


@dataclass(frozen=True)
class Measured:
    """Measurement of an option.

    Attributes:
        madds: Counted multiply-adds of one request; 0 if the option couldn't be built.
        parameters: Number of parameters; 0 if the option couldn't be built.
        prospect: Latency by the fastest candidate; None if no engine can run the option.
        failure: Reason why there is no prospect; "" if there is one.
    """

    madds: int
    parameters: int
    prospect: Prospect | None
    failure: str = ""


def default_folder() -> Path:
    """Return the user's cache folder for hasten, which may not exist yet.

    Source: XDG Base Directory Specification, XDG_CACHE_HOME.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if given.startswith("/") else Path.home() / ".cache"
    return base / "hasten"


@dataclass(frozen=True)
class LatencyCache:
    """Folder with a file for each option, input, set of engines with versions, and machine.

    Attributes:
        folder: Folder of the files, made when the first is written.
        facts: Values besides the option on which a latency depends.
    """

    folder: Path
    facts: dict[str, Any]

    @classmethod
    def of(
        cls,
        folder: Path,
        classes: int,
        input_shape: Sequence[int],
        engines: Sequence[str],
        target: Target,
    ) -> LatencyCache:
        """Return the cache for one input, number of classes, set of engines and target."""
        libraries = {name: _version(name) for name in ("timm", "torchvision")}
        facts = {
            "schema": _SCHEMA,
            "classes": classes,
            "input": list(input_shape),
            "engines": sorted(engines),
            "versions": versions() | libraries,
            "target": to_record(target),
        }
        return cls(folder / "prospects", facts)

    def get(self, option: Option) -> Measured | None:
        """Return the stored measurement of an option; None if its file is absent or unreadable."""
        try:
            trusted = Engine.paths(self.facts["engines"])
            return from_record(Measured, read_json(self._file(option))["measured"], trusted=trusted)
        except (HastenError, KeyError, TypeError):
            return None

    def keep(self, option: Option, measured: Measured) -> None:
        """Store a measurement, if the folder can be written."""
        file = self._file(option)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"option": option.name, "measured": to_record(measured)})
        except (HastenError, OSError):
            return

    def _file(self, option: Option) -> Path:
        knobs = [option.architecture.name, option.width, option.pixels]
        return self.folder / f"{digest([*knobs, self.facts])[:24]}.json"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
