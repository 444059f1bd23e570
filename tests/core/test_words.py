import pytest

from hasten.core.words import amount, counted, points


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 samples"), (1, "1 sample"), (2, "2 samples"), (1204, "1,204 samples")],
)
def test_an_amount_has_the_noun_of_its_number(count: int, said: str) -> None:
    assert amount(count, "sample") == said


def test_nouns_with_a_plural_of_their_own() -> None:
    assert (amount(1, "class", "classes"), amount(2, "class", "classes")) == (
        "1 class",
        "2 classes",
    )


def test_points_are_singular_for_one_alone() -> None:
    assert [points(share) for share in ("1", "0.5", "0", "10")] == [
        "1 point",
        "0.5 points",
        "0 points",
        "10 points",
    ]
    assert (counted(0, "layer"), counted(1, "layer")) == ("", "1 layer")
