"""What `lighten` says about a training before it begins."""

import pytest

from hasten.lightening.outline import outline_of


@pytest.mark.parametrize(
    ("methods", "students", "minutes", "trains", "most"),
    [
        (["students"], 1, 0.3, "1 network, by 1 method: students", "23 s"),
        (["students"], 1, 1.6, "1 network, by 1 method: students", "2 min"),
        (
            *(["students", "pruned", "scratch"], 2, 30.0),
            *("4 networks, by 3 methods: students, pruned, scratch", "150 min"),
        ),
    ],
)
def test_the_outline_says_how_long_training_takes_at_most(
    methods: list[str], students: int, minutes: float, trains: str, most: str
) -> None:
    outline = outline_of(
        methods, students=students, minutes=minutes, budget_ns=4e5, trained_on=3000, judged_on=2000
    )
    assert dict(outline.facts) == {
        "trains": trains,
        "data": "3,000 samples to train on, 2,000 to judge on",
        "budget": "0.4 ms for one request on this machine",
        "time": f"a minute or more to time networks, at most about {most} to train, then a search as in "
        "hasten optimize",
    }
