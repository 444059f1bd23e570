"""The ledger on disk: found again, safe with two at once, bounded, private, and honest about its losses."""

import multiprocessing
import os
import resource
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hasten.certificate.ledger import Ledger, user_ledger
from hasten.certificate.ledger_file import FILE, LOCK
from hasten.certificate.looks import Look
from hasten.certificate.verdict import Judgement, Verdict
from hasten.errors import InputError


def hashes(*contents: int) -> list[bytes]:
    return [content.to_bytes(4, "big") * 8 for content in contents]


def judged(*, passes: bool) -> list[tuple[str, Judgement | str]]:
    verdict = Verdict.CERTIFIED if passes else Verdict.NOT_ENOUGH_DATA
    return [("k", Judgement(verdict, "net", "top1", "exact", 0.01, 0.95, 9, None, 0, 0, 0.0, 0.0))]


def look(folder: Path, *contents: int, test: str = "", passes: bool | None = True) -> Look:
    """A whole look by a process of its own, as far as the ledger can tell; None: it is killed."""
    ledger = Ledger.at(folder)
    found = ledger.look(hashes(*contents), test or os.urandom(8).hex(), asked=0.05)
    if passes is not None:
        ledger.end(found, judged(passes=passes))
    return found


# -- what it is for


def test_what_one_run_saw_the_next_one_knows(tmp_path: Path) -> None:
    Ledger.at(tmp_path).saw(hashes(1, 2))
    Ledger.at(tmp_path).saw(hashes(2, 3))
    assert Ledger.at(tmp_path).past().seen == {one[:16] for one in hashes(1, 2, 3)}


def test_a_batch_size_that_failed_is_a_refusal_too(tmp_path: Path) -> None:
    ledger = Ledger.at(tmp_path)
    ledger.end(ledger.look(hashes(1, 2), "a", asked=0.05), judged(passes=True), held=False)
    assert look(tmp_path, 1, 2).refused == 1


def test_looks_pay_after_a_refusal_only(tmp_path: Path) -> None:
    assert look(tmp_path, 1, 2, passes=True).alpha == 0.05
    assert look(tmp_path, 1, 2, passes=False).alpha == 0.05
    assert look(tmp_path, 2, 3, passes=True).alpha == pytest.approx(0.0005)
    assert look(tmp_path, 4, 5, passes=True).alpha == 0.05
    assert look(tmp_path, 1, 2, passes=False).number == 4
    assert look(tmp_path, 1, 2, passes=False).alpha == pytest.approx(0.05 / 50 / 6)


def test_the_very_test_once_more_is_a_repeat_at_its_own_level_and_costs_nothing(
    tmp_path: Path,
) -> None:
    look(tmp_path, 1, 2, test="one", passes=False)
    again = look(tmp_path, 1, 2, test="one", passes=False)
    assert (again.repeats, again.alpha) == (True, 0.05)
    assert look(tmp_path, 1, 2, test="other").number == 2


def test_a_killed_look_counts_as_refused_and_its_rerun_goes_on_with_it(tmp_path: Path) -> None:
    killed = look(tmp_path, 1, 2, test="one", passes=None)
    assert look(tmp_path, 1, test="other", passes=None).alpha == pytest.approx(0.0005)
    again = look(tmp_path, 1, 2, test="one")
    assert (again.id, again.alpha, again.repeats) == (killed.id, 0.05, False)


def test_the_split_is_told_what_was_seen_and_what_is_worth_less(tmp_path: Path) -> None:
    Ledger.at(tmp_path).saw(hashes(9))
    look(tmp_path, 1, 2, passes=False)
    look(tmp_path, 2, 3, passes=True)
    earlier = Ledger.at(tmp_path).past().earlier(0.05)
    one, two, three, nine = (one[:16] for one in hashes(1, 2, 3, 9))
    assert earlier.seen == {nine}
    assert earlier.tested[one] == earlier.tested[two] < earlier.tested[three] == 1


# -- several at once


def looks_of_one_process(folder: Path, number: int) -> None:
    for i in range(10):
        Ledger.at(folder).saw(hashes(1000 * number + i))
        look(folder, number, 100 + i)


def test_processes_at_once_lose_nothing_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.certificate.ledger_file.PATIENCE_S", 600.0)  # the machine may stall
    fork = multiprocessing.get_context("fork")
    several = [fork.Process(target=looks_of_one_process, args=(tmp_path, i)) for i in range(4)]
    for one in several:
        one.start()
    for one in several:
        one.join()
    past = Ledger.at(tmp_path).past()
    assert len(past.looks) == 40
    assert all(one.refused is False for one in past.looks)
    assert len(past.seen) == 40


def test_of_two_first_looks_at_once_one_is_the_second(tmp_path: Path) -> None:
    one, other = Ledger.at(tmp_path), Ledger.at(tmp_path)
    assert one.look(hashes(1), "a", asked=0.05).alpha == 0.05
    assert other.look(hashes(1), "b", asked=0.05).alpha == pytest.approx(0.0005)


# -- its file


def test_it_is_private_and_a_set_of_samples_is_written_once(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "hasten"
    look(folder, *range(500))
    size = (folder / FILE).stat().st_size
    look(folder, *range(500))
    assert (folder / FILE).stat().st_size - size < 500
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / FILE).stat().st_mode & 0o777 == 0o600
    assert (folder / LOCK).stat().st_mode & 0o777 == 0o600


def test_past_its_size_the_oldest_goes_and_the_certificate_says_so(tmp_path: Path) -> None:
    for start in range(0, 4000, 100):
        ledger = Ledger.at(tmp_path, limit_bytes=20_000)
        ledger.end(ledger.look(hashes(*range(start, start + 100)), "", asked=0.05), [])
    assert (tmp_path / FILE).stat().st_size <= 20_000
    assert "its oldest entries were dropped on " in ledger.look(hashes(1), "", asked=0.05).kept
    past = Ledger.at(tmp_path, limit_bytes=20_000).past()
    assert 2 < len(past.looks) < 40
    assert past.looks[-2].hashes == {one[:16] for one in hashes(*range(3900, 4000))}


def test_a_run_larger_than_the_ledger_goes_on_and_says_that_nobody_will_know(
    tmp_path: Path,
) -> None:
    ledger = Ledger.at(tmp_path, limit_bytes=2_000)
    found = ledger.look(hashes(*range(1000)), "", asked=0.05)
    assert found.alpha == 0.05
    assert found.kept.endswith(
        f"this run has more samples than the ledger {tmp_path / FILE} may hold; later runs won't know of it"
    )


def test_a_last_line_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    look(tmp_path, 1)
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'0123456789abcdef {"type":"se')
    assert look(tmp_path, 1).number == 2
    assert Ledger.at(tmp_path).past().looks[1].refused is False


def test_a_first_line_that_a_kill_cut_short_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b'0123456789abcdef {"type":"be')
    (tmp_path / FILE).chmod(0o600)
    assert "kept since" in look(tmp_path, 1).kept
    assert look(tmp_path, 1).number == 2


def damage(folder: Path, place: int | None) -> bytes:
    """Change a byte of a ledger, or cut it short to nothing; return what it is then."""
    whole = bytearray((folder / FILE).read_bytes())
    if place is None:
        whole.clear()
    else:
        whole[place] ^= 1
    (folder / FILE).write_bytes(whole)
    return bytes(whole)


def test_one_that_was_cut_off_between_two_lines_is_damaged_and_a_shortened_one_is_not(
    tmp_path: Path,
) -> None:
    look(tmp_path, 1, passes=False)
    whole = (tmp_path / FILE).read_bytes()
    for count in range(whole.count(b"\n")):
        (tmp_path / FILE).write_bytes(b"".join(whole.splitlines(keepends=True)[:count]))
        with pytest.raises(InputError, match="it is damaged"):
            Ledger.at(tmp_path).past()
    (tmp_path / FILE).write_bytes(whole)
    assert look(tmp_path, 1).refused == 1
    Ledger.at(tmp_path).forget()
    assert look(tmp_path, 1).number == 1


@pytest.mark.parametrize("place", [5, 30, -5, None])
def test_on_a_damaged_one_nothing_is_judged_and_it_stays(tmp_path: Path, place: int | None) -> None:
    look(tmp_path, 1, passes=False)
    whole = damage(tmp_path, place)
    said = (
        f"the ledger {tmp_path / FILE} can't be used: it is damaged; nothing is certified without it: "
        "run `hasten ledger --forget` to set it aside, or set HASTEN_LEDGER to a folder that only you can "
        'write, or to "off" to go on without a memory, as the certificate then says'
    )
    ledger = Ledger.at(tmp_path)
    for attempt in (
        ledger.check,
        ledger.past,
        ledger.summary,
        lambda: ledger.saw(hashes(2)),
        lambda: ledger.look(hashes(1), "x", asked=0.05),
    ):
        with pytest.raises(InputError) as error:
            attempt()
        assert str(error.value) == said
    assert sorted(one.name for one in tmp_path.iterdir()) == [FILE, LOCK]
    assert (tmp_path / FILE).read_bytes() == whole


def test_a_damaged_one_that_its_user_empties_is_set_aside_and_said(tmp_path: Path) -> None:
    look(tmp_path, 1, passes=False)
    whole = damage(tmp_path, 30)
    Ledger.at(tmp_path).forget()
    (aside,) = tmp_path.glob("*.damaged-*")
    assert aside.read_bytes() == whole
    again = look(tmp_path, 1)
    assert again.number == 1
    assert again.kept.endswith(
        f"; the user emptied it on that day; the old one, which couldn't be used, is kept as {aside.name}"
    )


def test_one_that_was_lost_is_missed(tmp_path: Path) -> None:
    look(tmp_path, 1, passes=False)
    (tmp_path / FILE).unlink()
    assert "started again: an older one was lost, so the looks of earlier runs aren't known" in (
        look(tmp_path, 1).kept
    )


def test_one_that_its_user_emptied_says_since_when_it_is_kept(tmp_path: Path) -> None:
    look(tmp_path, 1, passes=False)
    Ledger.at(tmp_path).forget()
    again = look(tmp_path, 1)
    assert again.number == 1
    assert again.kept.endswith("; the user emptied it on that day")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("link", "it is a symbolic link"),
        ("pipe", f"{FILE} isn't a file"),
        ("open to others", f"{FILE} can be written by others"),
        ("folder open to others", "{folder} can be written by others"),
        ("another user's", f"{FILE} belongs to another user"),
        ("a file in its place", "Not a directory"),
    ],
)
def test_on_what_can_not_be_trusted_nothing_is_judged(tmp_path: Path, how: str, why: str) -> None:
    folder = tmp_path / "state"
    look(folder, 1, passes=False)
    file = folder / FILE
    if how == "link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    elif how == "pipe":
        file.unlink()
        os.mkfifo(file)
    elif how == "open to others":
        file.chmod(0o666)
    elif how == "folder open to others":
        folder.chmod(0o777)
    elif how == "another user's":
        if os.geteuid() != 0:
            pytest.skip("only root can give a file to another user")
        os.chown(file, 12345, -1)
    else:
        folder.rename(tmp_path / "moved")
        folder.write_text("mine")
    for attempt in (Ledger.at(folder).check, Ledger.at(folder).summary, lambda: look(folder, 1)):
        with pytest.raises(InputError) as error:
            attempt()
        assert str(error.value).startswith(
            f"the ledger {file} can't be used: {why.format(folder=folder)}; nothing is certified without it: "
        )


def in_a_child(act: Callable[[], object], *, before: Callable[[], object]) -> str:
    """Return what an act gives or says in a process of its own, which has limits."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            before()
            said = str(act())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.waitpid(child, 0)
    said = os.read(reading, 10_000).decode()
    os.close(reading)
    os.close(writing)
    return said


def test_where_it_can_not_be_written_nothing_is_judged_and_it_stays(tmp_path: Path) -> None:
    found = look(tmp_path, 1, passes=None)
    before = (tmp_path / FILE).read_bytes()

    def limited() -> None:  # root may write anything, so the limit is on the size of files
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, len(before) + 20))

    said = in_a_child(lambda: look(tmp_path, 1), before=limited)
    assert said.startswith(
        f"InputError: the ledger {tmp_path / FILE} can't be used: File too large; nothing is certified "
        "without it: set HASTEN_LEDGER to "
    )
    ledger = Ledger.at(tmp_path)

    def ended() -> tuple[str, ...]:
        ledger.end(found, judged(passes=True))
        return ledger.notes

    assert in_a_child(ended, before=limited) == str(
        (
            f"how this look ended can't be written to the ledger {tmp_path / FILE}: File too large; for "
            "later runs it counts as one that certified nothing",
        )
    )
    assert (tmp_path / FILE).read_bytes() == before
    assert look(tmp_path, 1).refused == 1


def test_where_its_folder_or_its_file_is_read_only_a_run_ends_before_it_begins() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # which anybody may pass through
        folder = Path(name)
        look(folder, 1)

        def somebody() -> None:  # root may write anything
            if os.geteuid() == 0:
                os.setuid(12345)

        for one in (folder, folder / FILE, folder / LOCK):
            if os.geteuid() == 0:
                os.chown(one, 12345, -1)
        (folder / FILE).chmod(0o400)
        file = folder / FILE
        told = (
            f"InputError: the ledger {file} can't be used: Permission denied; nothing is certified"
        )
        assert in_a_child(Ledger.at(folder).check, before=somebody).startswith(told)
        shown = in_a_child(Ledger.at(folder).summary, before=somebody)
        assert f"{file}, kept since " in shown
        file.unlink()
        (folder / LOCK).unlink()
        folder.chmod(0o500)
        assert in_a_child(Ledger.at(folder).check, before=somebody).startswith(told)
        inside = Ledger.at(folder / "state" / "hasten")
        assert "can't be used: Permission denied;" in in_a_child(inside.check, before=somebody)
        assert list(folder.iterdir()) == []
        folder.chmod(0o700)


# -- whose it is


def test_it_lies_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HASTEN_LEDGER", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    home = Ledger.of_user()
    assert home.file is not None
    assert home.file.folder == tmp_path / ".local" / "state" / "hasten"
    assert home.summary() == [("ledger", f"{home.file.path}, not started yet")]
    assert list(tmp_path.iterdir()) == []  # asking for it makes nothing
    assert user_ledger() == home
    assert home.file.path.exists()
    monkeypatch.setenv("XDG_STATE_HOME", "/var/state")
    assert Ledger.of_user() == Ledger.at(Path("/var/state/hasten"))
    monkeypatch.setenv("HASTEN_LEDGER", str(tmp_path / "mine"))
    assert user_ledger() == Ledger.at(tmp_path / "mine")


def test_without_a_home_folder_a_run_ends_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HASTEN_LEDGER", "XDG_STATE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if os.geteuid() != 0:
        pytest.skip("only root can be a user whom the host doesn't know")
    assert in_a_child(user_ledger, before=lambda: os.setuid(12345)) == (
        "InputError: there is no home folder for the ledger, and nothing is certified without one: set "
        'HASTEN_LEDGER to a folder that only you can write, or to "off" to go on without a memory, as the '
        "certificate then says"
    )


def test_switched_off_it_knows_nothing_and_the_certificate_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HASTEN_LEDGER", "off")
    ledger = user_ledger()
    ledger.saw(hashes(1))
    found = ledger.look(hashes(1), "x", asked=0.05)
    assert (
        found.kept == "no ledger is kept, because HASTEN_LEDGER is off: earlier looks aren't known"
    )
    assert (found.alpha, ledger.notes) == (0.05, ())


def test_a_folder_that_was_named_and_can_not_be_used_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("not a folder")
    monkeypatch.setenv("HASTEN_LEDGER", str(tmp_path / "mine"))
    with pytest.raises(InputError) as caught:
        user_ledger()
    assert str(caught.value) == (
        f"the ledger {tmp_path}/mine/{FILE} can't be used: Not a directory; nothing is certified without it: "
        'set HASTEN_LEDGER to a folder that only you can write, or to "off" to go on without a memory, as the '
        "certificate then says"
    )
