"""Every Python block of the README runs."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hasten.testing import models

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
ROOT = Path(__file__).parents[2]
START = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
START += "from tests.support.quick import quick_runs\nheld = quick_runs()\nheld.__enter__()\n"


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block{i}" for i in range(len(BLOCKS))])
def test_a_block_of_the_readme_runs_as_it_stands(tmp_path: Path, block: str) -> None:
    models.small_cnn(tmp_path).rename(tmp_path / "model.onnx")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 3, 32, 32), dtype=np.float32)
    np.savez(tmp_path / "eval.npz", x=x, labels=rng.integers(0, 10, 300))
    done = subprocess.run(
        [sys.executable, "-c", START + block],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
