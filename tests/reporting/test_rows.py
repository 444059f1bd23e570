"""What a person reads of a result."""

import dataclasses

import pytest
from tests.support.results import CERTIFIED

from hasten.certificate.drop import Drop
from hasten.measure.intervals import Quantile, Ratio
from hasten.reporting.result import Method, Row
from hasten.reporting.rows import HEAD, cells, size, won

ROW = Row(
    role="winner",
    label="int8",
    ratio=Ratio(0.5, 0.4, 0.625, 40),
    p50=Quantile(1.99e6, 1.97e6, 2.021e6, 400),
    p99=Quantile(3e6, 2.5e6, 4e6, 400),
    mean_ns=2.1e6,
    size_bytes=5_200_000,
    accuracy="",
)


def cell(name: str, row: Row) -> str:
    return dict(zip(HEAD, cells(row), strict=True))[name]


def test_a_row_says_each_quantile_with_its_interval() -> None:
    assert cells(ROW) == (
        "winner",
        "int8",
        "2.00x (1.60 to 2.50)",
        "1.99 ms (1.97 to 2.02)",
        "3 ms (2.5 to 4)",
        "2.1 ms",
        "5.2 MB",
    )


@pytest.mark.parametrize("name", ["p50", "p99"])
def test_a_quantile_without_its_interval_is_not_claimed(name: str) -> None:
    short = Quantile(1.99e6, 1.97e6, None, 400)
    changed = dataclasses.replace(ROW, **{name: short})  # type: ignore[arg-type]
    assert cell(name, changed) == "not established"


@pytest.mark.parametrize(
    ("value_ns", "low_ns", "high_ns", "shown"),
    [
        (25_740, 25_000, 26_000, "25.7 µs (25 to 26)"),
        (99_000, 98_000, 2_345_678, "99 µs (98 to 2350)"),
        (2_345e6, 2_300e6, 2_400e6, "2340 ms (2300 to 2400)"),
    ],
)
def test_an_interval_is_in_the_unit_of_its_value(
    value_ns: float, low_ns: float, high_ns: float, shown: str
) -> None:
    changed = dataclasses.replace(ROW, p50=Quantile(value_ns, low_ns, high_ns, 400))
    assert cell("p50", changed) == shown


@pytest.mark.parametrize(
    ("count", "words"),
    [(9_040, "9.0 kB"), (99_900, "99.9 kB"), (100_000, "0.1 MB"), (18_700_000, "18.7 MB")],
)
def test_a_small_models_size_is_not_zero(count: int, words: str) -> None:
    assert size(count) == words


@pytest.mark.parametrize(
    ("student_ns", "also"),
    [
        (
            0.25e6,
            "; student is within the budget, but doesn't ship: +52.34 points lost in the search, not "
            "tested on the sealed data, trained 0.5 min",
        ),
        (0.5e6, ""),
    ],
)
def test_a_run_over_its_budget_says_why_a_network_within_it_does_not_ship(
    student_ns: float, also: str
) -> None:
    own = Method("as it is", "int8", ROW.ratio, ROW.p50, None, "certified")
    student = Method(
        name="student",
        label="student, int8",
        ratio=Ratio(0.02, 0.01, 0.03, 40),
        p50=Quantile(student_ns, student_ns, student_ns, 40),
        drop=Drop(0.5234, 0.42, 0.61, 128, 68, 1),
        said="not tested on the sealed data",
        trained="trained 0.5 min",
    )
    result = dataclasses.replace(
        CERTIFIED, method="as it is", methods=(student, own), budget_ns=0.4e6
    )
    assert won(result) == (
        "the best method: none, your own model ships; 2.1 ms, OVER the budget of 0.4 ms" + also
    )
