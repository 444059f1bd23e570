"""The counts of products, against counting them one by one."""

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import given

from hasten.measure.products import OPERATORS, Count, Product, Taps, free, operator_of, taps


@given(
    signal=st.integers(1, 12),
    positions=st.integers(1, 12),
    kernel=st.integers(1, 6),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    padding=st.integers(0, 5),
)
def test_taps_are_those_that_meet_the_signal(
    signal: int, positions: int, kernel: int, stride: int, dilation: int, padding: int
) -> None:
    met = [
        (tap, place * stride + tap * dilation - padding)
        for tap, place in itertools.product(range(kernel), range(positions))
        if 0 <= place * stride + tap * dilation - padding < signal
    ]
    assert taps(
        signal, positions, kernel, stride=stride, dilation=dilation, padding=padding
    ) == Taps(len(met), len({at for _, at in met}), len({tap for tap, _ in met}))


def count(operator: str, *operands: tuple[int, ...], to: tuple[int, ...], **given: object) -> Count:
    found = OPERATORS[operator].count(Product(operands, to, given))
    assert found is not None
    return found


def test_a_convolution_without_padding_is_every_output_times_its_kernel() -> None:
    found = count("Conv", (1, 8, 10, 10), (16, 8, 3, 3), to=(1, 16, 8, 8))
    assert found == Count(16 * 8 * 8 * 8 * 9, (800, 16 * 8 * 9))


def test_a_stride_over_its_kernel_leaves_elements_untouched() -> None:
    found = count("Conv", (1, 8, 10, 10), (16, 8, 1, 1), to=(1, 16, 5, 5), strides=[2, 2])
    assert found == Count(16 * 5 * 5 * 8, (8 * 5 * 5, 16 * 8))


def test_groups_have_fewer_products_and_weights() -> None:
    found = count("Conv", (1, 8, 10, 10), (8, 1, 3, 3), to=(1, 8, 8, 8), group=8)
    assert found == Count(8 * 8 * 8 * 9, (800, 8 * 9))


@pytest.mark.parametrize(
    ("given", "pairs"),
    [
        ({"pads": [1, 1]}, 3 * 5 - 2),
        ({"pads": [2, 0]}, 3 * 5 - 3),
        ({"auto_pad": b"SAME_UPPER"}, 3 * 5 - 2),
        ({"auto_pad": b"SAME_LOWER"}, 3 * 5 - 2),
    ],
)
def test_products_with_padding_are_not_counted(given: dict[str, object], pairs: int) -> None:
    assert count("Conv", (1, 1, 5), (1, 1, 3), to=(1, 1, 5), **given).multiplications == pairs


@pytest.mark.parametrize(("auto_pad", "pads"), [(b"SAME_UPPER", [0, 1]), (b"SAME_LOWER", [1, 0])])
@pytest.mark.parametrize(("signal", "kernel", "stride", "positions"), [(4, 2, 1, 4), (4, 3, 2, 2)])
def test_an_uneven_padding_counts_the_same_at_either_end(
    auto_pad: bytes, pads: list[int], signal: int, kernel: int, stride: int, positions: int
) -> None:
    shapes = ((1, 1, signal), (1, 1, kernel))
    given = {"strides": [stride]}
    assert count("Conv", *shapes, to=(1, 1, positions), auto_pad=auto_pad, **given) == count(
        "Conv", *shapes, to=(1, 1, positions), pads=pads, **given
    )


def test_of_a_kernel_larger_than_its_image_only_the_middle_counts() -> None:
    found = count("Conv", (1, 8, 1, 1), (4, 8, 3, 3), to=(1, 4, 1, 1), pads=[1, 1, 1, 1])
    assert found == Count(4 * 8, (8, 4 * 8))


def test_a_transposed_convolution_is_every_input_times_its_kernel_less_what_is_cropped() -> None:
    whole = count("ConvTranspose", (1, 8, 5), (8, 4, 3), to=(1, 4, 11), strides=[2])
    assert whole == Count(8 * 4 * 5 * 3, (40, 8 * 4 * 3))
    cropped = count("ConvTranspose", (1, 8, 5), (8, 4, 3), to=(1, 4, 9), strides=[2], pads=[1, 1])
    assert cropped.multiplications == 8 * 4 * (5 * 3 - 2)


def test_a_matrix_product_is_every_output_times_the_axis_summed_over() -> None:
    assert count("MatMul", (2, 4, 3, 5), (5, 7), to=(2, 4, 3, 7)) == Count(
        2 * 4 * 3 * 7 * 5, (2 * 4 * 3 * 5, 35)
    )
    assert count("MatMul", (5,), (5,), to=()).multiplications == 5
    assert count("Gemm", (5, 3), (5, 7), to=(3, 7), transA=1).multiplications == 3 * 7 * 5
    assert count("Gemm", (3, 5), (7, 5), to=(3, 7), transB=1).multiplications == 3 * 7 * 5


def test_an_einsum_of_two_sums_over_what_its_result_lacks() -> None:
    found = count("Einsum", (2, 3, 5), (2, 5, 7), to=(2, 3, 7), equation=b"bij, bjk -> bik")
    assert found == Count(2 * 3 * 5 * 7, (30, 70))


@pytest.mark.parametrize(
    ("equation", "operands", "multiplications"),
    [
        (b"...ij,...jk->...ik", ((2, 3, 5), (2, 5, 7)), 2 * 3 * 5 * 7),
        (b"...ij,jk->...ik", ((2, 4, 3, 5), (5, 7)), 2 * 4 * 3 * 5 * 7),
        (b"ij,jk", ((3, 5), (5, 7)), 3 * 5 * 7),
        (b"aij,jk->ik", ((9, 3, 5), (5, 7)), 3 * 5 * 7),
        (b"i,i->i", ((3,), (3,)), 0),
        (b"ii,i->i", ((3, 3), (3,)), 0),
        (b"ij->ji", ((3, 5),), 0),
    ],
)
def test_an_einsum_is_counted_after_each_operand_is_summed_alone(
    equation: bytes, operands: tuple[tuple[int, ...], ...], multiplications: int
) -> None:
    found = count("Einsum", *operands, to=(3,), equation=equation)
    assert found.multiplications == multiplications


def test_an_einsum_of_three_is_not_counted() -> None:
    product = Product(((3, 5), (5, 7), (7, 2)), (3, 2), {"equation": b"ij,jk,kl->il"})
    assert OPERATORS["Einsum"].count(product) is None


def microsoft(name: str, *operands: tuple[int, ...], to: tuple[int, ...], **given: object) -> int:
    operator = operator_of("com.microsoft", name)
    assert operator is not None
    found = operator.count(Product(operands, to, given))
    assert found is not None
    return found.multiplications


def test_what_onnx_runtime_fused_counts_as_what_it_was_made_of() -> None:
    assert microsoft("FusedMatMul", (2, 5, 3), (5, 7), to=(2, 3, 7), transA=1) == 2 * 3 * 5 * 7
    assert microsoft("MatMulNBits", (2, 3, 32), to=(2, 3, 8), K=32, N=8) == 2 * 3 * 32 * 8
    tokens = (1, 6, 16)
    projected = microsoft("Attention", tokens, (16, 48), to=tokens)
    assert projected == 6 * 16 * 48 + 2 * 6 * 6 * 16
    assert microsoft("MultiHeadAttention", tokens, tokens, tokens, to=tokens) == 2 * 6 * 6 * 16


def test_a_linear_model_multiplies_every_feature_once_for_each_class() -> None:
    operator = operator_of("ai.onnx.ml", "LinearClassifier")
    assert operator is not None
    product = Product(((1, 4),), (1,), {"coefficients": [1.0] * 12})
    assert operator.count(product) == Count(12, (4,))


@pytest.mark.parametrize(
    ("domain", "name"),
    [("ai.onnx.ml", "TreeEnsembleClassifier"), ("own", "Relu"), ("", "STFT"), ("", "MatMul")],
)
def test_only_what_is_known_to_have_no_products_is_free(domain: str, name: str) -> None:
    assert not free(domain, name)


def test_attention_is_two_products_and_a_causal_mask_spares_half() -> None:
    heads = (1, 4, 6, 8)
    found = count("Attention", heads, heads, heads, to=heads)
    assert found == Count(2 * 4 * 6 * 6 * 8, (192, 192, 192))
    causal = count("Attention", heads, heads, heads, to=heads, is_causal=1)
    assert causal.multiplications == 4 * 6 * 6 * 8


def test_a_recurrent_layer_multiplies_with_every_weight_at_every_step() -> None:
    found = count("LSTM", (7, 1, 5), (2, 12, 5), (2, 12, 3), to=(7, 2, 1, 3))
    assert found.multiplications == 7 * (2 * 12 * 5 + 2 * 12 * 3)
