"""A report that is drawn in another process is the same, and isn't waited for without end."""

from collections.abc import Callable

import pytest

from hasten.reporting.apart import rendered_within
from hasten.reporting.evidence import Report

pytestmark = pytest.mark.seconds


def test_a_page_from_another_process_is_the_same(report: Report, page: bytes) -> None:
    assert rendered_within(report, 600.0) == page


def test_a_page_that_takes_too_long_is_none(with_result: Callable[..., Report]) -> None:
    assert rendered_within(with_result(), 1e-3) is None
    assert rendered_within(with_result(), 0.0) is None
