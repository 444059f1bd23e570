"""How sessions share threads."""

import pytest

from hasten.engines.null import Null
from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.engines.openvino.engine import OpenVino
from hasten.measure.sharing import Sharing, on_share, sharings


@pytest.mark.parametrize(
    ("threads", "own", "ways"),
    [
        (1, None, [(1, 1)]),
        (1, 1, [(1, 1)]),
        (2, None, [(2, 1), (1, 2)]),
        (2, 1, [(1, 1), (2, 1), (1, 2)]),
        (6, None, [(6, 1), (3, 2), (1, 6)]),
        (8, 8, [(8, 1), (4, 2), (2, 4), (1, 8)]),
    ],
)
def test_threads_are_shared_by_halves_down_to_one_each(
    threads: int, own: int | None, ways: list[tuple[int, int]]
) -> None:
    found = sharings(threads, own)
    assert [(share.threads, share.sessions) for share in found] == ways
    assert all(share.busy <= threads for share in found)


def test_an_engine_gets_its_share_and_is_bound_only_where_it_is_alone() -> None:
    bound = OpenVino(pinning=True, threads=2)
    assert on_share(bound, Sharing(4, 1), 4) == OpenVino(pinning=True, threads=4)
    assert on_share(bound, Sharing(2, 2), 4) == OpenVino(pinning=False, threads=2)
    assert on_share(bound, Sharing(2, 1), 4) == OpenVino(pinning=False, threads=2)
    assert on_share(OnnxRuntime(spinning=False), Sharing(1, 2), 2) == OnnxRuntime(1, spinning=False)
    assert on_share(Null(), Sharing(1, 2), 2) == Null()


def test_a_share_says_itself() -> None:
    assert f"{Sharing(1, 2)}; {Sharing(2, 1)}" == "2 sessions of 1 thread; 1 session of 2 threads"
