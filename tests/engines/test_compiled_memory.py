"""Memory that opening a model of bytes takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_LAYERS, _CHANNELS = 12, 1024
_SCRIPT = f"""
import sys
from pathlib import Path
import numpy as np
from hasten.core.cache_folder import CacheFolder
from hasten.core.target import Target
from hasten.core.tensors import TensorSpec
from hasten.engines.base import Artifact
from hasten.engines.compile_cache import CompileCache
from hasten.engines.compiled.engine import CompiledC
from hasten.engines.compiled.operators.int8.convolutions import Conv8
from hasten.engines.compiled.operators.int8.numbers import Rounding
from hasten.engines.compiled.plan import Plan
from hasten.engines.compiled.tensors import Tensor, Weights

folder, shape = Path(sys.argv[1]), (1, {_CHANNELS})
target, cache = Target.host().with_threads(1), CompileCache(CacheFolder(folder / "cache"))
usual = dict(groups=1, size=(1, 1), kernel=(1, 1), strides=(1, 1), dilations=(1, 1), zero=9)

def artifact(name, layers):
    weights, tensors, operations = Weights(bytearray()), {{}}, []
    rng = np.random.default_rng(0)
    for at in range(layers + 1):
        tensors[f"x{{at}}"] = Tensor("uint8", shape[1])
    for at in range(layers):
        constants = {{
            "w": rng.integers(-128, 128, (shape[1], shape[1]), np.int8),
            "b": np.zeros(shape[1], np.int32),
            "s": np.full(shape[1], 1e-4, np.float32),
        }}
        names = [f"{{key}}{{at}}" for key in constants]
        tensors |= {{key: weights.add(one) for key, one in zip(names, constants.values())}}
        operations.append(Conv8(f"x{{at}}", *names, f"x{{at + 1}}", (shape[1],) * 2,
            pads=(0, 0, 0, 0), rounding=Rounding(9), **usual))
    plan = Plan(tensors, tuple(operations), ("x0",), (f"x{{layers}}",), (shape,), False)
    plan.check(len(weights.content))
    (folder / name).mkdir()
    plan.write(folder / name / "plan.json")
    (folder / name / "plan.bin").write_bytes(weights.content)
    given, made = (TensorSpec(one, "uint8", shape) for one in "xy")
    return Artifact(
        path=folder / name / "plan.json",
        files=(folder / name / "plan.bin",),
        inputs=(given,),
        outputs=(made,),
        request=(given,),
    )

def status(name):
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{{name}}:")[2].split()[0]) << 10

def grown(artifact):
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    with CompiledC().open_cached(artifact, target, cache) as session:
        answer = session.run({{"x": np.zeros(shape, np.uint8)}})["y"]
    return status("VmHWM") - before, answer.tobytes()

grown(artifact("small", 1))  # imports all
large = artifact("large", {_LAYERS})
(first, answer), (second, same) = grown(large), grown(large)
assert answer == same
print(first, second)
"""


@pytest.mark.seconds
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of a process can't be reset"
)
def test_opening_takes_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SCRIPT, str(tmp_path)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    weights = _LAYERS * _CHANNELS**2
    assert max(map(int, ended.stdout.split())) < 1.4 * weights
