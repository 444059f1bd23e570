"""Signals after models of OpenVINO were closed: its plugin leaves the stack for signals alone."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.models import CONVNET, built

INTERRUPTED = """
import signal, sys, tempfile, threading
from pathlib import Path
import numpy as np
from hasten.core.target import Target
from hasten.engines.openvino.engine import OpenVino
from hasten.inputs.models.onnx import load

signal.signal(signal.SIGINT, signal.default_int_handler)  # a run in the background ignores it
host, engine = Target.host().with_threads(1), OpenVino()
model = load(Path(sys.argv[1]))
model = model.settled_by({one.name: np.zeros(one.shape[1:], one.dtype) for one in model.inputs})
with tempfile.TemporaryDirectory() as folder:
    artifact = engine.build(model, host, Path(folder))
    some = [engine.open(artifact, host) for _ in range(3)]
    for one in some:
        one.__enter__()
    closing = [lambda one=one: one.__exit__(None, None, None) for one in some]
    if sys.argv[2] == "thread":
        thread = threading.Thread(target=lambda: [close() for close in closing])
        thread.start()
        thread.join()
    else:
        [close() for close in closing]
    some.clear(), closing.clear()
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.parametrize("closed_in", ["order", "thread"])
def test_an_interrupt_after_models_were_closed_is_an_interrupt(
    tmp_path: Path, closed_in: str
) -> None:
    model = built(tmp_path, CONVNET, "convnet")
    command = [sys.executable, "-c", INTERRUPTED, str(model.path), closed_in]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
