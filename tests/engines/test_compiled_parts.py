"""Results that are a part of a larger tensor, on the compiled engine."""

from pathlib import Path

import numpy as np
from tests.support.models import built

from hasten.engines.compiled.engine import CompiledC
from hasten.testing.pass_tests import answers, samples_of

CROSSED = """
<ir_version: 10, opset_import: ["": 20]>
crossed (float[batch, 16] x, float[batch, 2, 16] z) => (float[batch, 3, 16] y)
<float[16, 16] w, float[16] b, int64[1] row = {1}>
{
    [layer] h = Gemm (x, w, b)
    [one] r = Unsqueeze (h, row)
    [all] y = Concat <axis = 1> (r, z)
}
"""


def test_a_layer_gives_the_first_part_of_a_larger_tensor(tmp_path: Path) -> None:
    model = built(tmp_path / "source", CROSSED, "crossed")
    data = samples_of(model, 4)
    exact = answers(model, data, tmp_path / "exact")["y"]
    own = answers(model, data, tmp_path / "own", CompiledC())["y"]
    np.testing.assert_allclose(own, exact, rtol=1e-5, atol=1e-5)
