"""torch's settings of TF32 in one run: what they are meanwhile, and that they come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hasten.engines.cuda.tf32 import precise

torch = pytest.importorskip("torch", reason="needs the extra gpu: pip install 'hasten[gpu]'")


def named() -> dict[str, Any]:
    """Return what has a precision of its own since torch 2.9, by name."""
    cudnn = torch.backends.cudnn
    if not hasattr(cudnn, "conv"):
        return {}
    matmul = torch.backends.cuda.matmul
    return {"matmul": matmul, "conv": cudnn.conv, "rnn": cudnn.rnn, "all": torch.backends}


def everything() -> list[Any]:
    """Return all that torch has set for products of float32 on CUDA."""

    def said(ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except RuntimeError:
            return "torch refuses to say"

    return [
        *(one.fp32_precision for one in named().values()),
        said(torch.get_float32_matmul_precision),
        said(lambda: torch.backends.cuda.matmul.allow_tf32),
        said(lambda: torch.backends.cudnn.allow_tf32),
    ]


class Failed(Exception):  # noqa: N818
    """What a program raises."""


def test_tf32_is_as_it_was_after_a_failure() -> None:
    before = everything()
    with pytest.raises(Failed), precise(torch, tf32=True):
        raise Failed
    assert everything() == before


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch before 2.9")
@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize(
    "given",
    [
        (("matmul", "tf32"),),
        (("matmul", "ieee"), ("conv", "ieee")),
        (("conv", "tf32"), ("rnn", "ieee")),
        (("conv", "ieee"), ("rnn", "ieee")),
        (("all", "tf32"),),
        (("all", "ieee"),),
        (("flag", "medium"),),
        (("flag", "high"), ("matmul", "ieee")),
    ],
)
def test_the_newer_settings_are_as_they_were_even_where_they_contradict_the_flags(
    given: Any, tf32: bool
) -> None:
    cudnn = torch.backends.cudnn
    kinds = named()
    before = everything()
    try:
        for name, value in given:
            if name == "flag":
                torch.set_float32_matmul_precision(value)
            else:
                kinds[name].fp32_precision = value
        set_by_user = everything()
        with precise(torch, tf32=tf32):
            assert kinds["matmul"].allow_tf32 is cudnn.allow_tf32 is tf32
            assert {kinds[n].fp32_precision == "tf32" for n in ("matmul", "conv", "rnn")} == {tf32}
        assert everything() == set_by_user
    finally:
        kinds["all"].fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        torch.backends.mkldnn.matmul.fp32_precision = "none"
        cudnn.allow_tf32 = True
        kinds["matmul"].fp32_precision = "none"
    assert everything() == before
