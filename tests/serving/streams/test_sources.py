"""Where frames come from: files, folders and cameras, and what is said where they don't."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.support.rtsp import camera
from tests.support.videos import pictures, video, views

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.serving.streams.frames import FrameClock
from hasten.serving.streams.opening import open_source
from hasten.serving.streams.sources import Source, shown

pytest.importorskip("av")
MS = 1_000_000


def read(source: Source) -> tuple[list[Array], list[int]]:
    """Read a source to its end on a clock that only sleeping moves: frames and when they came."""
    now = [0]

    def sleep_s(seconds: float) -> bool:
        now[0] += round(1e9 * seconds)
        return False

    images, times = [], []
    for image, arrived_ns in source.frames(FrameClock(lambda: now[0], sleep_s)):
        images.append(image)
        times.append(arrived_ns)
    source.close()
    return images, times


def gaps_ms(times: list[int]) -> set[int]:
    return {round((later - sooner) / MS) for sooner, later in itertools.pairwise(times)}


def difference(one: Array, other: Array) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi", "v.ts", "v.mov"])
def test_a_video_gives_its_frames_in_order_at_its_own_rate(tmp_path: Path, name: str) -> None:
    source = open_source(video(tmp_path / name, 12, rate=25), None)
    assert source.rate_per_s == 25
    assert source.size == (120, 160)
    images, times = read(source)
    assert len(images) == 12
    for image, view in zip(images, views(12), strict=True):
        assert image.dtype == np.uint8
        assert difference(image, view) < 6  # views differ by 20 and more from each other
    assert gaps_ms(times) == {40}
    assert (source.ended, source.notes, source.unreadable) == ("end", [], 0)


def test_a_given_rate_replaces_a_videos_own(tmp_path: Path) -> None:
    source = open_source(video(tmp_path / "v.mp4", rate=25), 50)
    assert source.rate_per_s == 50
    assert gaps_ms(read(source)[1]) == {20}


def test_a_folder_gives_its_pictures_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p", 5)
    (folder / "notes.txt").write_text("not a picture")
    (folder / "000.png").rename(folder / "zzz.PNG")
    images, times = read(open_source(folder, 100))
    expected = [*list(views(5))[1:], next(views(1))]
    assert all(np.array_equal(*pair) for pair in zip(images, expected, strict=True))
    assert gaps_ms(times) == {10}
    assert open_source(folder, None).rate_per_s == 30


def test_a_picture_that_cannot_be_read_is_left_out_counted_and_said(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p", 3)
    (folder / "001.png").write_bytes((folder / "001.png").read_bytes()[:200])
    source = open_source(folder, None)
    images, _ = read(source)
    assert (len(images), source.unreadable) == (2, 1)
    assert len(source.notes) == 1
    assert source.notes[0].startswith(f"left out: {folder / '001.png'} can't be read as an image")


def test_frames_may_change_their_size(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p", 2)
    Image.fromarray(next(views(1, (60, 50)))).save(folder / "x.png")
    assert [image.shape for image in read(open_source(folder, None))[0]] == [
        *[(120, 160, 3)] * 2,
        (60, 50, 3),
    ]


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
def test_a_video_that_is_cut_short_is_read_as_far_as_it_goes_and_said(
    tmp_path: Path, name: str
) -> None:
    file = video(tmp_path / name, 60, faststart=name == "v.mp4")
    file.write_bytes(file.read_bytes()[: int(0.8 * file.stat().st_size)])
    source = open_source(file, None)
    images, _ = read(source)
    assert 0 < len(images) < 60
    for image, view in zip(images, views(len(images)), strict=True):
        assert difference(image, view) < 6
    assert source.ended == "cut short"
    assert source.notes[0].startswith(
        f"{file} is cut short or damaged: {len(images)} of about 60 frames could be read"
    )


def test_frames_that_come_damaged_are_counted_and_said(tmp_path: Path) -> None:
    file = video(tmp_path / "v.mp4", 60, faststart=True)
    data = bytearray(file.read_bytes())
    for place in np.random.default_rng(0).integers(len(data) // 2, len(data), 40):
        data[place] ^= 0xFF
    file.write_bytes(data)
    source = open_source(file, None)
    images, _ = read(source)
    assert source.unreadable > 0
    assert 10 < len(images) <= 60 - source.unreadable
    assert source.notes == [
        f"{file} is cut short or damaged: {len(images)} of about 60 frames could be read; "
        f"{source.unreadable} were damaged"
    ]


def test_a_pause_of_an_hour_in_a_recording_is_not_waited_for(tmp_path: Path) -> None:
    file = video(tmp_path / "v.ts", 60, pause=(30, 30 * 3600))
    images, times = read(open_source(file, None))
    assert len(images) == 60
    assert times[-1] - times[0] < 10_000 * MS


def test_what_is_no_source_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("ffconcat version 1.0\nfile v.mp4\n")
    video(tmp_path / "v.mp4")
    said: dict[str | Path, str] = {
        tmp_path / "none.mp4": f"can't open {tmp_path / 'none.mp4'}: No such file or directory",
        tmp_path / "text.mp4": f"{tmp_path / 'text.mp4'} is not a video, or was cut short",
        tmp_path / "list.txt": f"{tmp_path / 'list.txt'} is not a video, or was cut short",
        tmp_path / "empty": f"{tmp_path / 'empty'} has no pictures: no file in it ends in .jpg, "
        ".jpeg, .png, .bmp, .webp, .ppm, .tif, .tiff, .gif",
        "/dev/video250": "can't open /dev/video250: No such file or directory",
        "rtsp://me:secret@127.0.0.1:1/x": "can't open rtsp://127.0.0.1:1/x: Connection refused",
        "http://somewhere/x": "the source http://somewhere/x begins with http://: give a file, a "
        "folder, /dev/video0, or an address that begins with one of rtsp://, rtsps://, udp://, "
        "tcp://",
    }
    for source, line in said.items():
        with pytest.raises(InputError) as error:
            open_source(source, None)
        assert str(error.value) == line


@pytest.mark.parametrize("kind", ["a pipe", "a pipe with a writer", "a device", "a socket"])
def test_what_may_give_nothing_for_ever_is_no_source(tmp_path: Path, kind: str) -> None:
    path, held = tmp_path / "street", contextlib.ExitStack()
    with held:
        if kind == "a device":
            path = Path("/dev/zero")
        elif kind == "a socket":
            held.enter_context(socket.socket(socket.AF_UNIX)).bind(os.fspath(path))
        else:
            os.mkfifo(path)
        if kind == "a pipe with a writer":
            held.callback(os.close, os.open(path, os.O_RDWR))
        with pytest.raises(InputError) as error:
            open_source(path, None)
    assert str(error.value) == (
        f"{path} is a pipe, a device or a socket, whose frames may never come: give a file, or let its writer send "
        "them to an address such as tcp://127.0.0.1:9000?listen"
    )


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("rtsp://admin:s3cret@cam:554/1", "rtsp://cam:554/1"),
        ("rtsp://admin:s3@cret@cam/1", "rtsp://cam/1"),
        ("rtsp://s3cret@[fe80::1%eth0]:554/1", "rtsp://[fe80::1%eth0]:554/1"),
        ("RTSP://admin:s3cret@cam/1", "RTSP://cam/1"),
        ("rtsp://admin:s3/cret@cam/1", "rtsp://..."),
        ("rtsp://admin:s3?cret@cam/1", "rtsp://..."),
        ("rtsp://admin:1234?s3cret@cam/1", "rtsp://..."),
        ("rtsp://admin:s3#cret@cam/1", "rtsp://..."),
        ("rtsp://admin:s3[cret@cam/1", "rtsp://cam/1"),
        ("rtsp://cam/x?user=a&pwd=s3@cret", "rtsp://..."),
        ("rtsp://cam/x?user=a&pwd=s3cret", "rtsp://cam/x"),
        ("rtsp://cam/user=admin&password=s3cret", "rtsp://cam/user=...&password=..."),
        ("rtsp://cam/user=s3cret_password=s3cret_channel=1/a", "rtsp://cam/user=.../a"),
        ("rtsp://cam:s3cret", "rtsp://..."),
        ("udp://@239.0.0.1:1234", "udp://239.0.0.1:1234"),
        ("udp://:1234?timeout=5", "udp://:1234"),
        ("tcp://cam", "tcp://cam"),
        ("/videos/a@b=c?d.mp4", "/videos/a@b=c?d.mp4"),
    ],
)
def test_a_source_is_named_without_what_may_be_a_password(source: str, name: str) -> None:
    assert shown(source) == name


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
@pytest.mark.parametrize("password", ["s3cret", "s3@cret", "s3[cret", "s3/cret", "s3?cret"])
def test_a_refusal_shows_no_password(scheme: str, password: str) -> None:
    with pytest.raises(InputError) as error:
        open_source(f"{scheme}://admin:{password}@127.0.0.1:1/x", None)
    assert f"{scheme}://" in str(error.value)
    assert "s3" not in str(error.value)
    assert "cret" not in str(error.value)


@contextlib.contextmanager
def sender(data: bytes) -> Iterator[tuple[str, list[int]]]:
    """Send bytes to whoever connects: the host and port, and an element for each who did."""
    came: list[int] = []

    def send() -> None:
        with contextlib.suppress(OSError):  # closed below
            while True:
                client, _ = listener.accept()
                came.append(1)
                with client, contextlib.suppress(OSError):
                    client.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", came
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.parametrize("kind", ["m3u8", "ffconcat", "sdp"])
def test_an_address_that_sends_a_list_of_others_opens_none_of_them(
    tmp_path: Path, kind: str
) -> None:
    stream = video(tmp_path / "s.ts").read_bytes()
    answer = b"HTTP/1.0 200 OK\r\nContent-Type: video/mp2t\r\n\r\n" + stream
    with sender(answer) as (other, came):
        lists = {
            "m3u8": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n"
            f"http://{other}/a.ts\n#EXT-X-ENDLIST\n",
            "ffconcat": f"ffconcat version 1.0\nfile tcp://{other}\n",
            "sdp": "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=s\r\nc=IN IP4 127.0.0.1\r\n"
            "m=video 4000 RTP/AVP 33\r\n",
        }
        with sender(lists[kind].encode()) as (host, _):
            address = f"tcp://{host}/list.{kind}"
            with pytest.raises(InputError) as error:
                open_source(address, None)
        assert str(error.value) == f"{address} is not a video, or was cut short"
        assert not came


@pytest.mark.parametrize("name", ["s.ts", "s.mkv"])
def test_an_address_may_send_any_format_that_contains_its_frames(tmp_path: Path, name: str) -> None:
    with sender(video(tmp_path / name, 30).read_bytes()) as (host, _):
        images, _ = read(open_source(f"tcp://{host}", None))
    assert len(images) == 30


def test_frames_come_over_udp(tmp_path: Path) -> None:
    stream = video(tmp_path / "s.ts", 30).read_bytes()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    over = threading.Event()

    def play() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as camera:
            while not over.wait(0.005):
                for at in range(0, len(stream), 1316):
                    with contextlib.suppress(OSError):  # nobody listens yet
                        camera.sendto(stream[at : at + 1316], ("127.0.0.1", port))

    thread = threading.Thread(target=play, daemon=True)
    thread.start()
    try:
        source = open_source(f"udp://127.0.0.1:{port}", 30)
        image, _ = next(source.frames(FrameClock(lambda: 0, lambda seconds: False)))
        source.close()
    finally:
        over.set()
        thread.join()
    assert image.shape == (120, 160, 3)


@pytest.mark.parametrize("fps", [0, -1, float("nan"), 1001])
def test_a_rate_that_no_stream_has_is_refused(tmp_path: Path, fps: float) -> None:
    with pytest.raises(InputError) as error:
        open_source(pictures(tmp_path / "p"), fps)
    assert str(error.value) == (
        f"the rate must be above 0 and at most 1000 frames a second: got {fps:g}"
    )


def test_frames_too_large_for_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.serving.streams.video.MAX_PIXELS", 100 * 100)
    file = video(tmp_path / "v.mp4")
    with pytest.raises(InputError) as error:
        open_source(file, None)
    assert str(error.value) == f"{file} has frames of 160 x 120 pixels, more than 10000"


def test_a_camera_that_goes_away_is_reached_again_until_it_stays_away(tmp_path: Path) -> None:
    stream = video(tmp_path / "s.ts", 30).read_bytes()
    with camera(stream, clients=2) as street:
        source = open_source(street.url, None, reconnect_s=2)
        address = street.url.replace("me:secret@", "")
        assert source.name == address
        images, _ = read(source)
    assert street.clients == 2
    half = len(images) // 2
    assert 25 <= half <= 30
    assert difference(images[0], images[half]) < 6
    assert source.ended == "lost"
    assert source.notes == [
        f"{address} disconnected after {half} frames",
        f"{address} came back",
        f"{address} disconnected after {len(images)} frames",
    ]


def test_a_camera_is_not_looked_for_again_unless_asked(tmp_path: Path) -> None:
    with camera(video(tmp_path / "s.ts", 30).read_bytes(), clients=2) as street:
        source = open_source(street.url, None)
        read(source)
        assert (street.clients, source.ended) == (1, "lost")


def test_a_folder_may_begin_with_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "p", 3)
    (folder / "000.png").write_bytes(b"no picture")
    source = open_source(folder, None)
    images, _ = read(source)
    assert (source.size, len(images), source.unreadable) == ((120, 160), 2, 1)
    for file in folder.iterdir():
        file.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"p/000\.png can't be read as an image: "):
        open_source(folder, None)
