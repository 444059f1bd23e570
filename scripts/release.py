"""Build what a release publishes, check it, and try it in empty environments outside this repository.

    make release                                   # dist/: an sdist, and a wheel that is built from it
    make release TAG=v0.2.0                        # the same, for a tag: release notes too
    make release PYTHONS="python3.11 python3.13"   # tried on each of these

Files that git doesn't have are left out: the build starts from a copy of the last commit.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
NOTES = ROOT / "build" / "release-notes.md"


def main() -> None:
    """Build, check and try a release, then say what to do next."""
    asked = argparse.ArgumentParser(prog="scripts/release.py", description=__doc__)
    asked.add_argument(
        "--tag", default="", help="tag to release, such as v0.2.0; it must name the version"
    )
    asked.add_argument(
        "--python", action="append", help="Python to try the wheel on; may be repeated"
    )
    asked.add_argument(
        "--allow-changes",
        action="store_true",
        help="build the last commit, although files differ from it",
    )
    given = asked.parse_args()
    if not given.allow_changes:
        check_committed()
    version = stated_version()
    if given.tag:
        check_tag(given.tag, version)
        NOTES.parent.mkdir(exist_ok=True)
        NOTES.write_text(notes(version, (ROOT / "CHANGELOG.md").read_text()))
    with tempfile.TemporaryDirectory(prefix="hasten-release-") as place:
        wheel, sdist = build(Path(place), version)
        for python in given.python or [sys.executable]:
            try_wheel(wheel, python, Path(place))
    print(next_steps(version, wheel, sdist, given.tag))


def run(*words: str | Path, cwd: Path = ROOT) -> None:
    """Run a command without the settings by which Python or pip would find this repository."""
    print("$", *words, flush=True)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "HASTEN_"))
    }
    code = subprocess.run(
        words, cwd=cwd, check=False, env={**kept, "HASTEN_LEDGER": "off"}
    ).returncode
    if code:
        raise SystemExit(f"release: {Path(words[0]).name} ended with {code}; see above")


def check_committed() -> None:
    """Exit where the working tree differs from the last commit, which is what a release is built from."""
    told = subprocess.run(
        ["git", "status", "--porcelain"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    if told:
        raise SystemExit(f"release: commit these files first, or give --allow-changes:\n{told}")


def stated_version() -> str:
    """Return the version, which stands in src/hasten/__init__.py alone."""
    text = (ROOT / "src/hasten/__init__.py").read_text()
    found = re.findall(r'^__version__ = "(.*)"$', text, re.MULTILINE)
    if len(found) != 1:
        raise SystemExit(
            'release: src/hasten/__init__.py needs one line of the form __version__ = "0.2.0"'
        )
    return str(found[0])


def check_tag(tag: str, version: str) -> None:
    """Exit where a tag names another version, or fragments aren't in the changelog yet."""
    if tag != f"v{version}":
        raise SystemExit(
            f"release: the tag {tag} doesn't name the version {version} of src/hasten/__init__.py"
        )
    left = sorted(path.name for path in (ROOT / "changes").glob("*.*.md"))
    if left:
        raise SystemExit(
            f"release: {len(left)} fragments aren't in CHANGELOG.md, such as {left[0]}: make changelog WRITE=1"
        )


def notes(version: str, changelog: str) -> str:
    """Return the section of a version in a changelog, without its title."""
    sections = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
    for section in sections:
        title, _, text = section.partition("\n")
        if title.split()[0] == version:
            return f"{text.strip()}\n"
    raise SystemExit(f"release: CHANGELOG.md has no section for {version}: make changelog WRITE=1")


def build(place: Path, version: str) -> tuple[Path, Path]:
    """Build an sdist of the last commit and a wheel of the sdist, check both, and leave them in dist/."""
    source = place / "source"
    source.mkdir()
    run("git", "archive", "--output", place / "source.tar", "HEAD")
    shutil.unpack_archive(place / "source.tar", source)
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST, source, cwd=place)
    wheel, sdist = DIST / f"hasten-{version}-py3-none-any.whl", DIST / f"hasten-{version}.tar.gz"
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist)
    run(Path(sys.executable).with_name("check-wheel-contents"), wheel, cwd=source)
    return wheel, sdist


def try_wheel(wheel: Path, python: str, place: Path) -> None:
    """Install a wheel into an empty environment and try it there: alone first, then with an extra."""
    folder = Path(tempfile.mkdtemp(prefix="trial-", dir=place))
    run(python, "-m", "venv", folder / "environment")
    installed = folder / "environment" / "bin" / "python"
    shutil.copy(ROOT / "scripts" / "trial.py", folder)
    run(installed, "-m", "pip", "install", "--quiet", wheel, cwd=folder)
    run(installed.with_name("hasten"), "--version", cwd=folder)
    run(installed.with_name("hasten"), "doctor", cwd=folder)
    run(installed, "-m", "pip", "install", "--quiet", f"{wheel}[optimize,serve]", cwd=folder)
    run(installed, "trial.py", cwd=folder)


def next_steps(version: str, wheel: Path, sdist: Path, tag: str) -> str:
    """Return what is left to do, for a person to read."""
    made = (
        f"\n{wheel.relative_to(ROOT)} and {sdist.relative_to(ROOT)} were built, checked and tried."
    )
    if tag:
        return f"{made}\n{NOTES.relative_to(ROOT)} has the release notes."
    return f"""{made} To publish {version}:

    make changelog WRITE=1         # moves the fragments into CHANGELOG.md; commit that
    git tag --annotate v{version} --message "hasten {version}"
    git push origin v{version}         # .github/workflows/release.yml does the rest"""


if __name__ == "__main__":
    main()
