"""Real streams through a real bundle: what is answered, written and counted."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.support import chains
from tests.support.rtsp import camera
from tests.support.videos import LABELS, classifier, pictures, video, views
from tests.support.waiting import PATIENCE_S

import hasten
from hasten.bundle import Loaded
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.chains.nodes import Crop, Model
from hasten.inputs.pipeline.boxes import GivenBoxes
from hasten.serving.streams.tally import Answer, Watched
from hasten.serving.streams.watching import _decider

av = pytest.importorskip("av")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("classifier"))


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video(tmp_path_factory.mktemp("video") / "street.mp4", 20)


def frames_of(file: Path) -> list[Array]:
    with av.open(str(file)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def times_of(file: Path) -> list[float]:
    with av.open(str(file)) as container:
        return [frame.time for frame in container.decode(video=0)]


def test_each_frame_of_a_recording_gets_the_decision_that_its_pixels_get(
    bundle: Path, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "p", 6)
    answers: list[Answer] = []
    seen = hasten.watch(bundle, folder, as_fast_as_possible=True, on_decision=answers.append)
    with hasten.load(bundle) as loaded:
        expected = [loaded.decide(file.read_bytes()) for file in sorted(folder.iterdir())]
    assert [answer.decision for answer in answers] == expected
    assert [answer.frame for answer in answers] == list(range(6))
    assert (seen.captured, seen.answered, seen.dropped, seen.missed) == (6, 6, 0, 0)
    assert seen.latency_ns == tuple(answer.latency_ns for answer in answers)
    assert (seen.ended, seen.deadline_ns, seen.source) == ("end", None, str(folder))


def test_a_stream_at_its_own_rate_is_counted_whole(bundle: Path, street: Path) -> None:
    answers: list[Answer] = []
    while not answers:  # a host that stands still for long enough drops all of them
        seen = hasten.watch(bundle, street, on_decision=answers.append)
    assert seen.captured == 20
    assert seen.answered + seen.dropped == 20
    assert seen.answered == len(answers) == len(seen.latency_ns)
    assert seen.missed == sum(answer.latency_ns > 33_333_333 for answer in answers)
    assert (seen.rate_per_s, seen.deadline_ns) == (30, 33_333_333)
    assert seen.duration_ns >= 19 * 33_333_333
    numbers = [answer.frame for answer in answers]
    assert numbers == sorted(set(numbers))
    begin = answers[0].time_ns - numbers[0] * 33_333_333
    for answer in answers:  # frames come at their times, whatever the model takes
        assert abs(answer.time_ns - begin - answer.frame * 33_333_333) < 1_000_000


def test_an_open_bundle_and_any_object_that_decides_can_watch(bundle: Path, street: Path) -> None:
    class Chain:
        def decide(self, value: Any) -> Any:
            return float(value.mean())

    found: list[Any] = []
    with hasten.load(bundle) as loaded:
        hasten.watch(loaded, street, as_fast_as_possible=True)
        loaded.decide(next(views(1)))  # it is still open
    hasten.watch(
        Chain(),
        street,
        as_fast_as_possible=True,
        on_decision=lambda one: found.append(one.decision),
    )
    assert np.allclose(found, [view.mean() for view in views(20)], atol=2)


def test_frames_reach_a_model_of_gray_pictures_in_gray(tmp_path: Path) -> None:
    reader, folder = chains.gray_reader(tmp_path), pictures(tmp_path / "p", 3)
    for name in chains.COLOURS:
        one = np.zeros((30, 40, 3), np.uint8)
        one[..., chains.COLOURS.index(name)] = 255
        (folder / f"{name}.png").write_bytes(chains.png(one))
    answers: list[Answer] = []
    hasten.watch(reader, folder, as_fast_as_possible=True, on_decision=answers.append)
    files = sorted(folder.iterdir())
    with hasten.load(reader) as loaded:
        assert [one.decision for one in answers] == [loaded.decide(f.read_bytes()) for f in files]
    assert [one.decision[0]["label"] for one in answers[3:]] == ["blue", "green", "red"]


def test_a_chain_watches_as_a_bundle_does(tmp_path: Path) -> None:
    line = f"{chains.detector(tmp_path)}+crop+{chains.classifier(tmp_path)}"
    folder = tmp_path / "squares"
    folder.mkdir()
    for number in range(3):
        picture = chains.squares({(number, 2): "red", (5, number): "blue"})
        (folder / f"{number}.png").write_bytes(chains.png(picture))
    answers: list[Answer] = []
    hasten.watch(line, folder, as_fast_as_possible=True, on_decision=answers.append)
    seen = [sorted(box["colour"][0]["label"] for box in answer.decision) for answer in answers]
    assert seen == [["blue", "red"]] * 3


def test_the_overlay_shows_each_frame_with_its_decision(
    bundle: Path, street: Path, tmp_path: Path
) -> None:
    seen = hasten.watch(bundle, street, as_fast_as_possible=True, out=tmp_path / "seen.mp4")
    assert (seen.overlay, seen.overlay_dropped) == (tmp_path / "seen.mp4", 0)
    assert [file.name for file in tmp_path.iterdir()] == ["seen.mp4"]
    shown = frames_of(tmp_path / "seen.mp4")
    assert len(shown) == 20
    assert np.allclose(np.diff(times_of(tmp_path / "seen.mp4")), 1 / 30, atol=0.002)
    for image, view in zip(shown, views(20), strict=True):
        off = np.abs(image.astype(int) - view.astype(int)).mean(axis=2)
        assert off[40:100].mean() < 12, "the picture itself is another"
        assert off[4:14, 4:60].mean() > 30, "no class is written"
        assert off[-14:-4, 4:30].mean() > 30, "no latency is written"


def test_the_overlay_of_a_stream_keeps_the_times_of_its_frames(
    bundle: Path, street: Path, tmp_path: Path
) -> None:
    seen = hasten.watch(bundle, street, out=tmp_path / "seen.mkv")
    times = times_of(tmp_path / "seen.mkv")
    assert len(times) == seen.captured - seen.overlay_dropped
    steps = np.diff(times) * 30
    assert np.allclose(steps, np.round(steps), atol=0.1)
    assert (np.round(steps) >= 1).all()


def test_frames_of_changing_and_odd_sizes_are_answered_and_drawn(
    bundle: Path, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "p", 2)
    for number, size in enumerate([(61, 51), (33, 200), (120, 160)]):
        Image.fromarray(next(views(1, size))).save(folder / f"x{number}.png")
    seen = hasten.watch(bundle, folder, as_fast_as_possible=True, out=tmp_path / "seen.mp4")
    assert seen.answered == 5
    assert [image.shape for image in frames_of(tmp_path / "seen.mp4")] == [(120, 160, 3)] * 5


def test_each_answer_has_its_line(bundle: Path, street: Path, tmp_path: Path) -> None:
    answers: list[Answer] = []
    seen = hasten.watch(bundle, street, decisions=tmp_path / "d.jsonl", on_decision=answers.append)
    records = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert records == [dataclasses.asdict(answer) for answer in answers]
    assert all(one["decision"][0]["label"] in LABELS for one in records)
    assert seen.decisions == tmp_path / "d.jsonl"
    assert [file.name for file in tmp_path.iterdir()] == ["d.jsonl"]


def test_outputs_without_steps_after_the_model_are_written_as_numbers(tmp_path: Path) -> None:
    bundle = classifier(tmp_path, after=())
    folder = pictures(tmp_path / "p", 1)
    hasten.watch(bundle, folder, as_fast_as_possible=True, decisions=tmp_path / "d.jsonl")
    with hasten.load(bundle) as loaded:
        logits = loaded.decide(folder / "000.png")["logits"]
    (line,) = (tmp_path / "d.jsonl").read_text().splitlines()
    assert json.loads(line)["decision"] == {"logits": logits.tolist()}


INTERRUPTED = """
import json, signal, sys
import hasten

bundle, folder, out, decisions = sys.argv[1:]
once = []  # a second one would interrupt the ending


def interrupt(answer):
    if answer.frame >= 3 and not once:
        once.append(answer.frame)
        signal.raise_signal(signal.SIGINT)


signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
# Slowly, so that a busy host doesn't capture all of them meanwhile.
seen = hasten.watch(bundle, folder, fps=2, on_decision=interrupt, out=out, decisions=decisions)
print(json.dumps([seen.ended, seen.captured, seen.answered, seen.dropped, seen.overlay_dropped]))
"""


@pytest.mark.seconds
def test_an_interrupt_ends_with_the_counts_and_whole_files(bundle: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p", 50)
    places = [bundle, folder, tmp_path / "seen.mp4", tmp_path / "d.jsonl"]
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *map(str, places)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    why, captured, answered, dropped, overlay_dropped = json.loads(ended.stdout)
    assert why == "stopped"
    assert captured < 50
    assert answered + dropped == captured
    assert len((tmp_path / "d.jsonl").read_text().splitlines()) == answered
    assert len(frames_of(tmp_path / "seen.mp4")) == captured - overlay_dropped
    assert sorted(file.name for file in tmp_path.iterdir()) == ["d.jsonl", "p", "seen.mp4"]


FULL = """
import resource, sys
import hasten


class Decides:
    def decide(self, picture):
        return int(picture.sum())


def fill(answer):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), resource.RLIM_INFINITY))


folder, out, decisions, most = sys.argv[1:]
options = {"as_fast_as_possible": True, "on_decision": fill, "out": out, "decisions": decisions}
seen = hasten.watch(Decides(), folder, **options)
print(seen.answered, seen.overlay, seen.notes)
"""


def full_disk(folder: Path, most_bytes: int) -> subprocess.CompletedProcess[str]:
    """Watch four pictures where no file may grow past a size, as on a disk that becomes full."""
    places = [pictures(folder / "p", 4), folder / "seen.mp4", folder / "d.jsonl", most_bytes]
    # Without bytecode, which could be cut short as well.
    return subprocess.run(
        [sys.executable, "-B", "-c", FULL, *map(str, places)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


@pytest.mark.seconds
def test_a_disk_that_is_full_at_the_end_costs_the_overlay_alone(tmp_path: Path) -> None:
    ended = full_disk(tmp_path, 1000)
    note = "the overlay couldn't be written: File too large"
    assert (ended.stdout, ended.stderr) == (f"4 None {(note,)}\n", "")
    assert len((tmp_path / "d.jsonl").read_text().splitlines()) == 4
    assert sorted(file.name for file in tmp_path.iterdir()) == ["d.jsonl", "p"]


def test_a_watch_ends_after_the_time_that_it_is_given(bundle: Path, tmp_path: Path) -> None:
    seen = hasten.watch(bundle, pictures(tmp_path / "p", 50), fps=5, duration_s=0.5)
    assert seen.ended == "stopped"
    assert seen.captured < 50


def test_a_camera_is_watched_until_it_goes_away(bundle: Path, tmp_path: Path) -> None:
    stream, answered = video(tmp_path / "s.ts", 30).read_bytes(), 0
    while not answered:  # a host that stands still for long enough drops all frames
        with camera(stream, pause_s=0.01) as one:
            seen = hasten.watch(bundle, one.url)
        answered = seen.answered
        assert seen.ended == "lost"
        assert answered <= seen.captured <= 30
    assert "secret" not in repr(seen)


def test_the_counts_are_told_while_a_watch_goes_on(bundle: Path, tmp_path: Path) -> None:
    told: list[Watched] = []
    hasten.watch(bundle, pictures(tmp_path / "p", 50), fps=25, listen=told.append)
    assert told
    assert all(one.answered + one.dropped <= one.captured <= 50 for one in told)
    assert [one.captured for one in told] == sorted(one.captured for one in told)


def test_an_error_of_the_callers_own_ends_the_watch_and_keeps_what_was_written(
    bundle: Path, street: Path, tmp_path: Path
) -> None:
    def fail(answer: Answer) -> None:
        raise RuntimeError("no room for it")

    with pytest.raises(RuntimeError, match="no room for it"):
        hasten.watch(
            bundle,
            street,
            on_decision=fail,
            as_fast_as_possible=True,
            decisions=tmp_path / "d.jsonl",
        )
    assert len((tmp_path / "d.jsonl").read_text().splitlines()) == 1


def test_a_bundle_without_a_pipeline_is_refused_before_the_stream_begins(
    exact_bundle: Path, street: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        hasten.watch(exact_bundle, street, out=tmp_path / "s.mp4", decisions=tmp_path / "d.jsonl")
    assert str(error.value) == (
        f"{exact_bundle} was made from arrays and has no pipeline: call it with arrays, or make "
        "a bundle with a pipeline"
    )
    assert list(tmp_path.iterdir()) == []


def test_no_file_that_is_written_replaces_another_of_the_watch(
    bundle: Path, street: Path, tmp_path: Path
) -> None:
    def refused(source: Path, **options: Any) -> str:
        with pytest.raises(InputError) as error:
            hasten.watch(bundle, source, as_fast_as_possible=True, **options)
        return str(error.value)

    before, link, new = street.read_bytes(), tmp_path / "link.mp4", tmp_path / "new.mp4"
    link.hardlink_to(street)
    said = "would replace the file of source=, {}: give it another name"
    assert refused(street, out=street) == "out= " + said.format(street)
    assert refused(street, out=link) == "out= " + said.format(street)
    assert refused(link, decisions=street) == "decisions= " + said.format(link)
    around = tmp_path / ".." / tmp_path.name / "new.mp4"
    assert refused(street, out=new, decisions=around) == (
        f"decisions= would replace the file of out=, {new}: give it another name"
    )
    assert street.read_bytes() == before
    assert list(tmp_path.iterdir()) == [link]


def test_what_cannot_be_asked_is_said(bundle: Path, street: Path, tmp_path: Path) -> None:
    def refused(**options: Any) -> str:
        with pytest.raises(InputError) as error:
            hasten.watch(bundle, street, **options)
        return str(error.value)

    assert refused(deadline_ns=1, as_fast_as_possible=True) == (
        "as_fast_as_possible=True has no deadline, because frames don't come at their recorded "
        "times: leave out one of the two"
    )
    assert refused(deadline_ns=0) == "the deadline must be above 0 ns: got 0 ns"
    assert refused(reconnect_s=-1) == "the time to reconnect must be at least 0 s: got -1 s"
    assert refused(duration_s=0) == "the length of the watch must be above 0 s: got 0 s"
    assert refused(out=tmp_path / "s.gif") == (
        f"out={str(tmp_path / 's.gif')!r}: give a name that ends in .mp4, .mkv, .mov"
    )
    assert refused(out=tmp_path / "no" / "s.mp4") == (
        f"can't write {tmp_path / 'no' / 's.mp4'}: No such file or directory"
    )
    assert refused(decisions=tmp_path) == (
        f"can't write {tmp_path}: it is a folder; give a file's name"
    )
    assert refused(decisions=Path()) == ("can't write .: it is a folder; give a file's name")
    assert list(tmp_path.iterdir()) == []


def thin(folder: Path, name: str) -> None:
    """Write a picture that a step of the bundle's pipeline refuses, because it would become too large."""
    Image.fromarray(np.zeros((1, 30_000, 3), np.uint8)).save(folder / name)


def test_a_frame_that_the_bundle_refuses_is_counted_and_the_next_ones_are_answered(
    bundle: Path, tmp_path: Path
) -> None:
    folder = pictures(tmp_path / "p", 3)
    thin(folder, "001a.png")
    thin(folder, "001b.png")
    watched = hasten.watch(
        bundle,
        folder,
        as_fast_as_possible=True,
        out=tmp_path / "seen.mp4",
        decisions=tmp_path / "d.jsonl",
    )
    assert (watched.captured, watched.answered, watched.dropped, watched.refused) == (5, 3, 2, 2)
    why = "an image of 30000 x 1 pixels becomes 960000 x 32, more than 4194304 pixels"
    assert watched.notes == (f"frame 2 was refused: {why}",)
    lines = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == [0, 1, 4]
    # FFmpeg can't scale so thin a picture to the size of the first one.
    assert (len(frames_of(tmp_path / "seen.mp4")), watched.overlay_dropped) == (3, 2)


def test_a_stream_of_which_the_bundle_refuses_every_frame_is_an_error(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p", 3)
    unclear = chains.detector(tmp_path, after=(GivenBoxes(least=0.0, most=1000),))
    chain = hasten.chain(
        [
            Model("det", str(unclear)),
            Crop("crop", "det", most=1),
            Model("colour", str(chains.classifier(tmp_path)), "crop"),
        ]
    )

    class Ready:
        """A chain whose first, blank picture is taken."""

        def decide(self, value: Any) -> Any:
            return chain.decide(value) if value.any() else []

    with chain, pytest.raises(InputError) as error:
        hasten.watch(Ready(), folder, as_fast_as_possible=True)
    assert str(error.value) == (
        f"{folder} has no frame that could be answered: crop: 64 boxes in one picture are more than 1: raise "
        "crop.most, or make the detector return fewer"
    )


def test_a_bundle_that_watches_leaves_the_processors_to_the_stream_between_frames(
    bundle: Path,
) -> None:
    with _decider(bundle) as opened:
        assert isinstance(opened, Loaded)
        assert opened.properties()["lingering"] == "False"


def test_a_pipe_is_never_replaced_by_a_file_of_the_watch(
    bundle: Path, street: Path, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe.mp4"
    os.mkfifo(pipe)
    asks: list[dict[str, Any]] = [{"decisions": pipe}, {"out": pipe}]
    for files in asks:
        (path,) = files.values()
        with pytest.raises(InputError) as error:
            hasten.watch(bundle, street, as_fast_as_possible=True, **files)
        assert str(error.value) == (
            f"can't write {path}: a file would replace the device, pipe or link there; give a file's name"
        )
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]
