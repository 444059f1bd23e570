"""`hasten open`: the page is made from records, shown by the browser there is, and kept for a day."""

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.support.bundles import forge
from tests.support.pages import Reading
from tests.support.quick import quick_runs

from hasten import pack
from hasten.cli import main


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take away the browsers and the screen, give the cache a folder of its own, and draw no plots."""
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "cache"))
    with quick_runs():
        yield


@pytest.fixture
def bundle(exact_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(exact_bundle, tmp_path / "b.hasten")
    return tmp_path / "b.hasten"


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def printed(bundle: Path) -> Path:
    done = run("open", bundle, "--print")
    assert done.exit_code == 0, done.output
    return Path(done.stdout.removesuffix("\n"))


def test_the_page_is_opened_in_the_browser_that_the_environment_names(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = tmp_path / "browser"
    browser.write_text(
        f"#!{sys.executable}\nimport sys\nopen({str(tmp_path / 'asked')!r}, 'w').write(sys.argv[1])\n"
    )
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    done = run("open", bundle)
    assert done.exit_code == 0, done.output
    page = Path(done.stdout.removeprefix("opened in a browser: ").removesuffix("\n"))
    assert (tmp_path / "asked").read_text() == page.as_uri()
    own = Reading.of((bundle / "report.html").read_bytes())
    assert Reading.of(page.read_bytes()).lines["again"] == own.lines["again"]


def test_without_a_browser_the_path_is_said(bundle: Path) -> None:
    done = run("open", bundle)
    page = printed(bundle)
    assert (done.exit_code, done.output) == (0, f"no browser here; the report is in {page}\n")
    assert page.parent.name == "reports"
    assert stat.S_IMODE(page.parent.stat().st_mode) == 0o700


def test_a_packed_bundle_shows_its_report(bundle: Path, tmp_path: Path) -> None:
    pack(bundle, tmp_path / "b.hastenz")
    lines = Reading.of(printed(tmp_path / "b.hastenz").read_bytes()).lines
    assert lines == Reading.of(printed(bundle).read_bytes()).lines


def test_a_page_that_a_stranger_put_into_the_bundle_is_never_shown(bundle: Path) -> None:
    forge(bundle, files={"report.html": b"<script>alert(1)</script>"})
    page = printed(bundle).read_bytes()
    assert b"<script" not in page
    assert b"default-src 'none'" in page


def test_what_records_say_is_text_on_the_page(bundle: Path) -> None:
    file = bundle / "evidence" / "result.json"
    record = json.loads(file.read_text())
    record["why"] = "<script>alert(1)</script>"
    forge(bundle, files={"evidence/result.json": json.dumps(record).encode()})
    assert b"<script" not in printed(bundle).read_bytes()


def test_a_bundle_has_one_page_and_old_ones_go(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "other" / "b.hasten")
    first, other = printed(bundle), printed(tmp_path / "other" / "b.hasten")
    assert first != other
    two_days_ago = time.time() - 2 * 86400
    os.utime(other, (two_days_ago, two_days_ago))
    assert printed(bundle) == first
    assert list(first.parent.iterdir()) == [first]


@pytest.mark.parametrize("shared", ["cache", "cache/reports"])
def test_a_folder_that_others_can_write_to_is_refused(
    bundle: Path, tmp_path: Path, shared: str
) -> None:
    (tmp_path / "cache").mkdir(0o700)
    (tmp_path / "cache" / "reports").mkdir(0o700)
    (tmp_path / shared).chmod(0o775)  # as mkdir makes it where umask is 002
    done = run("open", bundle)
    advice = f"chmod go-w {tmp_path}/{shared}"
    assert (done.exit_code, done.stdout, done.stderr) == (
        2,
        "",
        f"hasten: others can write to {tmp_path}/{shared}: run {advice}, or name another folder with HASTEN_CACHE\n",
    )
    subprocess.run(advice.split(), check=True)
    assert printed(bundle).parent == tmp_path / "cache" / "reports"


def test_a_link_in_the_place_of_the_reports_is_refused(bundle: Path, tmp_path: Path) -> None:
    for name in ("cache", "other"):
        (tmp_path / name).mkdir(0o700)
    (tmp_path / "cache" / "reports").symlink_to(tmp_path / "other")
    done = run("open", bundle)
    assert (done.exit_code, done.stderr) == (
        2,
        f"hasten: {tmp_path}/cache/reports isn't a folder of yours: remove it, or name another folder with "
        "HASTEN_CACHE\n",
    )


def test_a_link_of_the_users_own_to_the_cache_is_followed(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk").mkdir(0o700)
    (tmp_path / "link").symlink_to("disk")
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path / "link"))
    assert printed(bundle).parent == tmp_path / "disk" / "reports"


def test_without_a_cache_the_page_is_in_a_private_temporary_folder(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HASTEN_CACHE", "off")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    page = printed(bundle)
    assert page.parent == tmp_path / f"hasten-{os.geteuid()}"
    assert stat.S_IMODE(page.parent.stat().st_mode) == 0o700


def test_no_bundle_is_told_in_one_line(tmp_path: Path) -> None:
    done = run("open", tmp_path / "none.hasten")
    assert (done.exit_code, done.stderr) == (
        2,
        f"hasten: no bundle at {tmp_path}/none.hasten: no such file or folder\n",
    )
