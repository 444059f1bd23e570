"""Latencies of untrained networks that were measured on this machine before."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from hasten.core.records import digest, from_record, read_json, to_record, write_json
from hasten.core.target import Target
from hasten.errors import HastenError
from hasten.lightening.prospects import Prospect
from hasten.lightening.shortlisting.options import Option
from hasten.measure.environment import versions

_SCHEMA = 3


@dataclass(frozen=True)
class Measured:
    """What was found of an option.

    Attributes:
        madds: Multiply-adds of one request, counted; 0 where it couldn't be built.
        parameters: How many; 0 where it couldn't be built.
        prospect: How fast it is; None where nothing can run it.
        failure: Why there is no prospect; "" where there is one.
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
    """A folder with a file for each option, input, set of engines, their versions, and machine.

    Attributes:
        folder: Made when something is kept.
        facts: What a latency depends on beside the option.
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
        """Return the cache for one question."""
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
        """Return what is known of an option, or None; a file that can't be read counts as none."""
        try:
            return from_record(Measured, read_json(self._file(option))["measured"], trusted=True)
        except (HastenError, KeyError, TypeError):
            return None

    def keep(self, option: Option, measured: Measured) -> None:
        """Write what was found; a folder that can't be written keeps nothing."""
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
