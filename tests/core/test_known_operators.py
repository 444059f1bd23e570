import pytest

from hasten.core.known_operators import is_known


@pytest.mark.parametrize("name", ["add", "add_", "conv2d", "lstm", "scaled_dot_product_attention"])
def test_operators_of_plain_models_are_known(name: str) -> None:
    assert is_known(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "_",
        "__class__",
        "_index_put_impl_",
        "_reshape_alias",
        "_sparse_coo_tensor_unsafe",
        "adaptive_max_pool2d_backward",
        "from_file",
        "resize_",
        "save",
        "segment_reduce",
        "set_",
        "to_sparse",
    ],
)
def test_operators_that_could_reach_other_files_or_memory_arent(name: str) -> None:
    assert not is_known(name)
