from pathlib import Path

import pytest

from hasten.core.model import Model
from hasten.passes.already_quantized import quantized_products, words
from hasten.passes.base import Pass, Skipped
from hasten.passes.dynamic_quantization import DynamicQuantization
from hasten.passes.half_precision import HalfPrecision
from hasten.passes.litert_quantization import LitertQuantization
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.onnx_files import read_onnx
from hasten.passes.static_quantization import StaticQuantization
from hasten.testing.pass_tests import NARROW, run


@pytest.mark.parametrize(
    "value",
    [
        StaticQuantization(),
        DynamicQuantization(),
        NncfQuantization(),
        LitertQuantization(),
        HalfPrecision(),
    ],
)
def test_what_a_model_has_in_int8_is_kept_and_said(
    value: Pass, convnet: Model, tmp_path: Path
) -> None:
    given = run(StaticQuantization(reduce_range=NARROW), convnet, tmp_path, "given")
    with pytest.raises(
        Skipped,
        match=r"^3 of the model's 3 convolutions and matrix products are already quantized: they stay "
        r"as they are, and no pass quantizes the rest$",
    ):
        run(value, given, tmp_path)


def test_products_in_integers_count_too(attention: Model, tmp_path: Path) -> None:
    given = run(DynamicQuantization(reduce_range=NARROW), attention, tmp_path)
    assert quantized_products(read_onnx(given)) == (4, 6)  # two products are of activations


def test_nothing_is_said_of_a_model_in_float(convnet: Model) -> None:
    assert words(read_onnx(convnet)) == ""
