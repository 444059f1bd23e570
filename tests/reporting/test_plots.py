"""What plots are made of, without their ink."""

import matplotlib
from matplotlib.figure import Figure

from hasten.certificate.drop import Drop
from hasten.core.records import from_record, to_record
from hasten.engines.layers import LayerTime
from hasten.measure.intervals import Ratio
from hasten.reporting.accuracy_plots import frontier
from hasten.reporting.evidence import Floor, Profile, Report, Step
from hasten.reporting.machine_plots import by_kind, floors, kinds
from hasten.reporting.placing import Label, place
from hasten.reporting.result import Outcome


def judged(label: str, ratio: float, drop: float) -> Outcome:
    interval = Drop(drop, drop - 0.001, drop + 0.001, 800)
    return Outcome(label, "judged", "", Ratio(ratio, 0.9 * ratio, 1.1 * ratio, 6), interval)


def test_the_frontier_is_what_nothing_beats_in_both() -> None:
    exact = Outcome("exact", "exact", "", Ratio(0.9, 0.88, 0.92, 6))
    slow = Outcome("slow", "not judged", "", Ratio(1.2, 1.1, 1.3, 6))
    outcomes = [
        judged("fast", 0.4, 0.02),
        judged("worse than fast", 0.5, 0.03),
        judged("safe", 0.6, 0.004),
        judged("slower than exact", 0.95, 0.001),
        *(slow, exact, Outcome("died", "failed", "failed: it crashed")),
    ]
    assert [o.label for o in frontier(outcomes)] == ["exact", "safe", "fast"]


def test_a_candidate_that_got_more_accurate_is_on_the_frontier() -> None:
    better, exact = judged("better", 0.95, -0.01), Outcome("e", "exact", "", Ratio(0.9, 0.8, 1, 6))
    assert [o.label for o in frontier([exact, better])] == ["better", "e"]


def step(kind: str, *latency_ns: float) -> Step:
    return Step("a", "Conv", kind, latency_ns)


def test_time_by_kind_sums_each_steps_median() -> None:
    steps = [step("arithmetic", 5, 9, 7), step("arithmetic", 1), step("movement"), step("magic", 2)]
    assert by_kind(steps) == {
        "arithmetic": 8,
        "elementwise": 0,
        "conversion": 0,
        "movement": 0,
        "other": 2,
    }
    assert by_kind([step("movement", 3)])["movement"] == 3
    assert "other" not in by_kind([])


def test_a_profiles_numbers_stand_beside_each_other() -> None:
    plot = kinds(Profile((step("arithmetic", 4e6),), (step("conversion", 1e6),)))
    assert plot.rows[0] == ("arithmetic", "4 ms", "0 µs")
    assert plot.rows[2] == ("changing the format", "0 µs", "1 ms")


def test_only_floors_of_rows_that_are_shown_are_drawn(report: Report) -> None:
    rows = report.result.rows
    assert floors([Floor("a stranger", 1e6, 2.0)], rows) is None
    plot = floors([Floor("winner", 1e6, 2.0)], rows)
    assert plot is not None
    assert plot.rows == [("what ships", plot.rows[0][1], "1 ms", "2.00x", "-")]


def test_a_users_own_plotting_style_is_not_the_pages(report: Report) -> None:
    plot = floors(report.limit, report.result.rows)
    assert plot is not None
    plain = plot.html("caption")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "text.usetex": True}):
        assert plot.html("caption") == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_a_step_is_read_from_an_engines_own_record() -> None:
    taken = LayerTime("a", "Conv", "arithmetic", "i8", "jit", ("conv1",), (5, 7))
    assert from_record(Step, to_record(taken)) == Step(
        "a", "Conv", "arithmetic", (5.0, 7.0), "i8", ("conv1",)
    )


def test_labels_of_points_at_one_spot_stand_apart_or_are_left_out() -> None:
    figure = Figure((4, 3), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    labels = [Label(0.5, 0.5, f"candidate {number}") for number in range(40)]
    placed = place(axes, labels, [(0.5, 0.5)])
    assert placed[0] == "candidate 0"
    assert 4 < len(placed) < 40
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == len(placed)
    assert not any(box.count_overlaps(boxes[:at]) for at, box in enumerate(boxes))
