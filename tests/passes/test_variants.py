from dataclasses import replace
from typing import Any

import pytest

from hasten.core.model import Model
from hasten.core.target import Target
from hasten.passes.dynamic_quantization import DynamicQuantization
from hasten.passes.nncf_quantization import NncfQuantization
from hasten.passes.onnx_files import is_transformer, read_onnx
from hasten.passes.static_quantization import StaticQuantization
from hasten.testing.pass_tests import NARROW, host

CHAIN = """
<ir_version: 10, opset_import: ["": 20]>
chain (float[batch, 4, 8] x) => (float[batch, 4, 8] y)
<float[4, 4, 1] w>
{
    [c1] a = Conv (x, w)
    [c2] b = Conv (a, w)
    [c3] c = Conv (b, w)
    [c4] d = Conv (c, w)
    [c5] e = Conv (d, w)
    [c6] f = Conv (e, w)
    [c7] y = Conv (f, w)
}
"""


@pytest.fixture
def chain(build: Any) -> Model:
    """Seven convolutions in a row."""
    model: Model = build(CHAIN)
    return model


def test_attention_is_told_from_convolutions(convnet: Model, attention: Model) -> None:
    assert is_transformer(read_onnx(attention))
    assert not is_transformer(read_onnx(convnet))


def test_transformers_start_with_smoothing_and_quantized_products_alone(attention: Model) -> None:
    first = next(NncfQuantization.variants(attention, host()))
    assert first == NncfQuantization("mixed", transformer=True, reduce_range=NARROW)
    assert next(StaticQuantization.variants(attention, host())) == StaticQuantization(
        compute_only=True, reduce_range=NARROW
    )


def test_smoothing_has_a_scale_of_four_strengths_for_transformers_alone(attention: Model) -> None:
    own, less = list(NncfQuantization.variants(attention, host()))[:2]
    scale: list[NncfQuantization] = [own, less]
    while (weaker := scale[-1].further()) is not None:
        scale.append(weaker)
    assert [value.smoothing for value in scale] == [None, 0.8, 0.65, 0.5]
    assert {replace(value, smoothing=None) for value in scale} == {own}
    assert own.further() is None
    assert replace(less, transformer=False).further() is None


def test_convolutional_networks_are_also_tried_with_weights_rounded_by_layer(chain: Model) -> None:
    wide = replace(Target.host(), isa=("avx2", "avx512_vnni"))
    nncf = list(NncfQuantization.variants(chain, wide))
    assert [value.rounding for value in nncf] == ["nearest", "nearest", "layer"]
    assert [value.fast_bias_correction for value in nncf] == [True, False, True]
    narrow = list(NncfQuantization.variants(chain, replace(wide, isa=("avx2",))))
    assert [value.fast_bias_correction for value in narrow] == [True, False, False]
    assert not any(value.transformer for value in nncf)
    assert not any(value.compute_only for value in StaticQuantization.variants(chain, host()))


def test_no_variant_keeps_a_layer_in_float_unasked(chain: Model, attention: Model) -> None:
    for model in (chain, attention):
        for kind in (NncfQuantization, StaticQuantization, DynamicQuantization):
            assert {value.keep_float for value in kind.variants(model, host())} <= {()}


def test_weights_have_seven_bits_where_products_would_overflow(
    chain: Model, attention: Model
) -> None:
    known = (("avx2", "avx512f"), True), (("avx2", "avx_vnni"), False), (("asimddp",), False)
    for isa, reduced in known:
        target = replace(host(), isa=isa)
        static = {value.reduce_range for value in StaticQuantization.variants(chain, target)}
        dynamic = {value.reduce_range for value in DynamicQuantization.variants(attention, target)}
        nncf = {value.reduce_range for value in NncfQuantization.variants(chain, target)}
        assert static == dynamic == nncf == {reduced}
