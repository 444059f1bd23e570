"""Files that `hasten certify` leaves for a pipeline: a JUnit file, a Markdown summary, and a history of commits."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import msgspec

from hasten.core.records import write_whole
from hasten.errors import InputError
from hasten.evaluation.seen import Recheck

SHOWN = 10
"""Number of the newest entries of a history that a summary shows."""
_HISTORY_BYTES = 16 << 20
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """One line of a history: what came out at a commit.

    Attributes:
        at: Time in ISO 8601, UTC.
        commit: Commit that was tested; empty where unknown.
        bundle: Name of the bundle's folder.
        verdict: Verdict of the data.
        kind: Kind of the test: "fresh data", "further look", or "regression check".
        passed: Whether the limit holds.
        estimate: Observed drop, as an absolute share.
        max_drop: Limit on the drop, as an absolute share.
        n: Number of draws.
        look: Number of the look at these samples; 0 where it is none.
    """

    at: str
    commit: str
    bundle: str
    verdict: str
    kind: str
    passed: bool
    estimate: float
    max_drop: float
    n: int
    look: int = 0


@dataclass(frozen=True)
class Files:
    """Files that a pipeline wants; None for those that it doesn't.

    Attributes:
        junit: JUnit XML, rewritten each time.
        summary: Markdown, to which a section is added.
        history: JSON lines, to which one is added.
        commit: Commit that is tested; empty where unknown.
    """

    junit: Path | None = None
    summary: Path | None = None
    history: Path | None = None
    commit: str = ""

    def check(self) -> None:
        """Check before the test that its outcome can be written.

        Raises:
            InputError: a folder isn't there, or a folder has a file's name.
        """
        for path in (self.junit, self.summary, self.history):
            if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
                raise InputError(f"can't write {path}: choose a file in an existing folder")

    def write(self, bundle: str, outcome: Recheck | str, seconds: float) -> None:
        """Write what is wanted.

        Args:
            bundle: Bundle as it was given.
            outcome: Outcome of the test, or why there was none.
            seconds: Duration of the test.

        Raises:
            InputError: a file can't be written.
        """
        entries: list[Entry] = []
        unread = 0
        try:
            if self.history is not None:
                entries, unread = read_history(self.history)
                if isinstance(outcome, Recheck):
                    entries.append(entry_of(bundle, outcome, self.commit))
                    with self.history.open("ab") as file:
                        file.write(_behind(self.history) + msgspec.json.encode(entries[-1]) + b"\n")
            if self.junit is not None:
                write_whole(self.junit, junit(bundle, outcome, seconds))
            if self.summary is not None:
                text = summary(bundle, outcome, entries, unread)
                with self.summary.open("a", encoding="utf-8") as opened:
                    opened.write(text)
        except OSError as error:
            raise InputError(
                f"can't write {error.filename or 'what certify says'}: {error.strerror or error}"
            ) from error


def entry_of(bundle: str, outcome: Recheck, commit: str) -> Entry:
    """Return the line of a history for an outcome."""
    judgement = outcome.judgement
    return Entry(
        at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        commit=commit,
        bundle=Path(bundle).name,
        verdict=outcome.verdict,
        kind=outcome.kind,
        passed=outcome.passed,
        estimate=judgement.estimate,
        max_drop=judgement.max_drop,
        n=judgement.n,
        look=0 if outcome.look is None else outcome.look.number,
    )


def read_history(path: Path) -> tuple[list[Entry], int]:
    """Read a history: its entries, oldest first, and the number of lines that are none.

    Raises:
        InputError: it is too large to be one.
        OSError: it can't be read.
    """
    if not path.exists():
        return [], 0
    if path.stat().st_size > _HISTORY_BYTES:
        raise InputError(
            f"{path} is larger than {_HISTORY_BYTES >> 20} MiB: give another history file"
        )
    found: list[Entry] = []
    lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    for line in lines:
        try:
            found.append(msgspec.json.decode(line, type=Entry))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
    return found, len(lines) - len(found)


def junit(bundle: str, outcome: Recheck | str, seconds: float) -> bytes:
    """Return JUnit XML with one test case: it fails where the limit doesn't hold.

    Source: the schema of Apache Ant's JUnit task, as CI servers read it.
    """
    failed = isinstance(outcome, Recheck) and not outcome.passed
    counts = {"tests": "1", "failures": str(int(failed)), "time": f"{seconds:.3f}"}
    counts["errors"] = str(int(isinstance(outcome, str)))
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": "hasten certify", **counts})
    case = {"classname": "hasten.certify", "name": _xml(bundle), "time": f"{seconds:.3f}"}
    test = ElementTree.SubElement(suite, "testcase", case)
    if isinstance(outcome, str):
        ElementTree.SubElement(test, "error", {"type": "error", "message": _xml(outcome)})
    else:
        said = _xml(outcome.in_words())
        kind = outcome.verdict
        if failed:
            failure = {"type": kind, "message": said.splitlines()[0]}
            ElementTree.SubElement(test, "failure", failure).text = said
        ElementTree.SubElement(test, "system-out").text = said
    ElementTree.indent(root)
    return b"%s\n" % ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def summary(
    bundle: str, outcome: Recheck | str, history: Sequence[Entry] = (), unread: int = 0
) -> str:
    """Return a section of Markdown: the outcome, and the newest entries of a history."""
    if isinstance(outcome, str):
        lines = [f"## hasten certify: `{_code(bundle)}` could not be tested", "", _plain(outcome)]
    else:
        state = "passed" if outcome.passed else "failed"
        lines = [
            f"## hasten certify: `{_code(bundle)}` {state}",
            "",
            f"Asked: {_plain(outcome.asked)}. Verdict: **{outcome.verdict}** ({outcome.kind}).",
            "",
            *(f"- {_plain(line)}" for line in outcome.in_words().splitlines()),
        ]
    if history:
        lines += ["", *_trend(history)]
    if unread:
        lines += ["", f"{unread:,} lines of the history can't be read, and were left as they are."]
    return "\n".join(lines) + "\n\n"


def _trend(history: Sequence[Entry]) -> list[str]:
    """Return a table of the newest entries, newest first."""
    rows = [
        "| commit | time | bundle | verdict | observed drop | limit | n | kind |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in reversed(history[-SHOWN:]):
        cells = (
            one.commit[:12] or "-",
            one.at,
            one.bundle,
            one.verdict,
            f"{100 * one.estimate:.2f}%",
            f"{100 * one.max_drop:.6g}%",
            f"{one.n:,}",
            one.kind if one.look < 2 else f"{one.kind} (look {one.look})",
        )
        rows.append("| " + " | ".join(map(_plain, cells)) + " |")
    return rows


def _behind(path: Path) -> bytes:
    """Return what ends a last line that has no end, so that the next one is a line of its own."""
    with path.open("rb") as file:
        if file.seek(0, 2) == 0:
            return b""
        file.seek(-1, 2)
        return b"" if file.read(1) == b"\n" else b"\n"


def _xml(text: str) -> str:
    """Replace what XML can't hold."""
    return _NO_XML.sub("\ufffd", text)


def _plain(text: str) -> str:
    """Keep text from being read as Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", " ".join(text.split())).replace("<", "&lt;")


def _code(text: str) -> str:
    return " ".join(text.split()).replace("`", "'")
