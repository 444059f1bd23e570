"""Options of a load test, one by one, as the values that it takes."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from hasten.evaluation.loadtest import Bounds, Credentials, Payload


def grouped(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `run` for options by name, each option within the value that has it."""
    found = dict(options)
    for name, kind in (("payload", Payload), ("bounds", Bounds), ("credentials", Credentials)):
        own = [one.name for one in fields(kind) if one.name in found]
        found[name] = kind(**{field: found.pop(field) for field in own})
    return found
