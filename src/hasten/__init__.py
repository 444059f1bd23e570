"""hasten: the fastest version of a model that is certified to still give the right answers.

Importing it loads nothing but this file; each name below loads what it needs when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.benchmark import bench
    from hasten.bundle import load
    from hasten.cross_compilation.run import cross_compile
    from hasten.errors import CandidateError, InputError, IntegrityError
    from hasten.lightening import lighten
    from hasten.optimization import optimize
    from hasten.profiling import profile
    from hasten.recertification import certify
    from hasten.reporting.publication import report
    from hasten.scenarios import load_test
    from hasten.serving.run import serve
    from hasten.shortlisting import shortlist

_WHERE = {
    "optimize": "hasten.optimization",
    "cross_compile": "hasten.cross_compilation.run",
    "lighten": "hasten.lightening",
    "shortlist": "hasten.shortlisting",
    "load": "hasten.bundle",
    "bench": "hasten.benchmark",
    "load_test": "hasten.scenarios",
    "certify": "hasten.recertification",
    "serve": "hasten.serving.run",
    "report": "hasten.reporting.publication",
    "profile": "hasten.profiling",
    "InputError": "hasten.errors",
    "CandidateError": "hasten.errors",
    "IntegrityError": "hasten.errors",
}

__all__ = [
    "CandidateError",
    "InputError",
    "IntegrityError",
    "bench",
    "certify",
    "cross_compile",
    "lighten",
    "load",
    "load_test",
    "optimize",
    "profile",
    "report",
    "serve",
    "shortlist",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'hasten' has no attribute {name!r}")
    import importlib

    try:
        return getattr(importlib.import_module(_WHERE[name]), name)
    except ModuleNotFoundError as error:
        from hasten.errors import InputError

        raise InputError(
            f"hasten.{name} needs the module {error.name}: pip install 'hasten[optimize]'"
        ) from error
