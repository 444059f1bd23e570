"""OpenVINO's runtime, made such that a signal can't crash the process after it is gone."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from hasten.core.telemetry import import_quietly


def new_core() -> Any:
    """Return a new `openvino.Core` that has loaded its CPU plugin, in a thread that ends at once.

    The plugin of OpenVINO 2026.4 gives the thread that loads it a stack for signals, and frees that
    stack with itself. If two are freed in the order in which they were loaded, or one in another thread,
    its first thread keeps a stack that is gone, and the next signal that Python handles there, such as an
    interrupt, is a segmentation fault. A thread that has ended gets no signals.
    """
    ov = import_quietly("openvino")
    core = ov.Core()

    def load() -> None:
        with contextlib.suppress(
            Exception
        ):  # without the plugin a compilation fails, with a reason
            core.get_property("CPU", "FULL_DEVICE_NAME")

    thread = threading.Thread(target=load, name="hasten-openvino")
    thread.start()
    thread.join()
    return core
