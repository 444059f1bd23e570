"""hasten: the fastest version of a model that is certified to still give the right answers.

Importing it loads nothing but this file; each name below loads what it needs when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.bundle import load
    from hasten.bundle.chains import open_chain as chain
    from hasten.bundle.packing.unpacking import unpack
    from hasten.bundle.packing.writer import pack
    from hasten.bundle.signing import sign
    from hasten.errors import CandidateError, InputError, IntegrityError, LabelsWanted
    from hasten.evaluation.benchmark import bench
    from hasten.evaluation.profiling import profile
    from hasten.evaluation.recertification import certify
    from hasten.evaluation.scenarios import load_test
    from hasten.inputs.data.ragged import save_ragged
    from hasten.lightening.packing import pack_lossy
    from hasten.lightening.plan import TrainingPlan
    from hasten.lightening.run import lighten
    from hasten.lightening.shortlisting import shortlist
    from hasten.measure.effort import Effort
    from hasten.optimization.optimize import optimize
    from hasten.optimization.order import Order
    from hasten.reporting.charts import plots
    from hasten.reporting.publication import report
    from hasten.serving.options import (
        Access,
        ModelOptions,
        Monitoring,
        SequenceLimits,
        ServerLimits,
    )
    from hasten.serving.run import serve
    from hasten.serving.streams.watching import watch

_WHERE = {
    "optimize": "hasten.optimization.optimize",
    "lighten": "hasten.lightening.run",
    "shortlist": "hasten.lightening.shortlisting",
    "load": "hasten.bundle",
    "chain": "hasten.bundle.chains:open_chain",
    "pack": "hasten.bundle.packing.writer",
    "pack_lossy": "hasten.lightening.packing",
    "sign": "hasten.bundle.signing",
    "unpack": "hasten.bundle.packing.unpacking",
    "bench": "hasten.evaluation.benchmark",
    "load_test": "hasten.evaluation.scenarios",
    "certify": "hasten.evaluation.recertification",
    "serve": "hasten.serving.run",
    "watch": "hasten.serving.streams.watching",
    "report": "hasten.reporting.publication",
    "plots": "hasten.reporting.charts",
    "save_ragged": "hasten.inputs.data.ragged",
    "profile": "hasten.evaluation.profiling",
    "Effort": "hasten.measure.effort",
    "Order": "hasten.optimization.order",
    "TrainingPlan": "hasten.lightening.plan",
    "ModelOptions": "hasten.serving.options",
    "SequenceLimits": "hasten.serving.options",
    "Monitoring": "hasten.serving.options",
    "Access": "hasten.serving.options",
    "ServerLimits": "hasten.serving.options",
    "InputError": "hasten.errors",
    "CandidateError": "hasten.errors",
    "IntegrityError": "hasten.errors",
    "LabelsWanted": "hasten.errors",
}

__all__ = [
    "Access",
    "CandidateError",
    "Effort",
    "InputError",
    "IntegrityError",
    "LabelsWanted",
    "ModelOptions",
    "Monitoring",
    "Order",
    "SequenceLimits",
    "ServerLimits",
    "TrainingPlan",
    "bench",
    "certify",
    "chain",
    "lighten",
    "load",
    "load_test",
    "optimize",
    "pack",
    "pack_lossy",
    "plots",
    "profile",
    "report",
    "save_ragged",
    "serve",
    "shortlist",
    "sign",
    "unpack",
    "watch",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'hasten' has no attribute {name!r}")
    import importlib

    try:
        module, _, attribute = _WHERE[name].partition(":")
        return getattr(importlib.import_module(module), attribute or name)
    except ModuleNotFoundError as error:
        from hasten.errors import InputError

        raise InputError(
            f"hasten.{name} needs the module {error.name}: pip install 'hasten[optimize]'"
        ) from error


def __dir__() -> list[str]:
    dunder = (name for name in globals() if name.startswith("__") and name.endswith("__"))
    return sorted({*dunder, *__all__})
