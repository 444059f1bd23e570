"""Serve models on in another way after a crash beside which their engines were running."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence

from hasten.serving.settings import ModelPlace

log = logging.getLogger("hasten.serving")


def without_blamed(
    places: Sequence[ModelPlace], blamed: Iterable[tuple[int, bool]]
) -> tuple[ModelPlace, ...]:
    """Return the models to serve from now on, of which some are served exactly.

    Args:
        places: Models that were served.
        blamed: Indices of models whose engine was running, and whether it was the standby engine.
    """
    models, blamed = list(places), set(blamed)
    for number in sorted({number for number, _ in blamed}):
        model, settings = models[number], models[number].settings
        if settings.which != "winner":
            continue
        if (
            number,
            True,
        ) in blamed:  # if both were, another crash shows whether it was the other one
            what = (
                "the exact model's engine was running: the exact model is no longer kept on standby"
            )
            settings = dataclasses.replace(settings, alone=True)
        else:
            what = "its engine was running: the exact model answers from now on"
            settings = dataclasses.replace(settings, which="exact")
        log.error("%s", what, extra={"model": model.name, "version": model.version})
        models[number] = dataclasses.replace(model, settings=settings)
    return tuple(models)
