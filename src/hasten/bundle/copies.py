"""Words for the copies that an engine makes of a request's inputs before the model reads them."""

from __future__ import annotations

import math

import numpy as np

from hasten.bundle.manifest import Part
from hasten.engines.base import Engine

_TIMES = {1: "once", 2: "twice"}


def copies_in_words(part: Part) -> str:
    """Return how often the bytes of a request are copied, and into what; "" where that isn't known.

    These are the inputs as the model takes them, which are the pipeline's result where there is one.

    Args:
        part: Model of a bundle.
    """
    name, specs = str(part.engine.get("type")), part.artifact.request
    places = Engine.member(name).copied_into if name in Engine.registry else None
    fixed = all(spec.static and np.dtype(spec.dtype) != object for spec in specs)
    if places is None or not specs or not fixed:
        return ""
    size = sum(math.prod(spec.sizes) * np.dtype(spec.dtype).itemsize for spec in specs)
    what = f"a request's {size:,} bytes are"
    if not places:
        return f"{what} read where they are, without a copy"
    return f"{what} copied {_TIMES[len(places)]}, into {' and then into '.join(places)}"
