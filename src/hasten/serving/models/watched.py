"""Open the monitor of a bundle that is served, and look whether an alarm still holds its model back."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from hasten.bundle import MANIFEST
from hasten.bundle.folder import manifest_bytes, parsed
from hasten.bundle.signatures import PublicKey
from hasten.core.records import file_digest
from hasten.errors import InputError
from hasten.serving.models.opening import ModelSettings, OpenBundle
from hasten.serving.monitoring.drift import Drift
from hasten.serving.monitoring.judging import Judging
from hasten.serving.monitoring.kept import peek, state_folder
from hasten.serving.monitoring.watch import Watch

log = logging.getLogger("hasten.serving")


def digest_at(folder: Path) -> str:
    """Return the SHA-256 of a bundle's manifest, by which its evidence is kept; "" for a folder without one."""
    with contextlib.suppress(OSError):
        return file_digest(folder / MANIFEST)
    return ""


def check_unreplaced(opened: OpenBundle, bundle: str, trusted: Sequence[PublicKey]) -> None:
    """Check that what was opened is the bundle whose evidence will be kept.

    Args:
        opened: The open bundle.
        bundle: SHA-256 of the manifest that lay there before it was opened.
        trusted: Keys, one of which must have signed it; none where an unsigned one will do.

    Raises:
        InputError: the bundle was replaced meanwhile.
    """
    data = manifest_bytes(opened.folder, trusted)
    same = hashlib.sha256(data).hexdigest() == bundle
    if not same or parsed(data, opened.folder) != opened.manifest:
        raise InputError(f"{opened.path} was replaced while it was opened: load it again")


def held(path: Path, bundle: str, settings: ModelSettings) -> str:
    """Return a line that says since when the exact model answers in a bundle's place; "" if it doesn't.

    It holds whatever the server was started with: an alarm is cleared by a person alone.

    Args:
        path: Folder of the bundle.
        bundle: SHA-256 of its manifest; "" for a folder without one.
        settings: Settings that it is served with.
    """
    folder = state_folder(settings.monitor_state)
    if folder is None or not bundle:
        return ""
    try:
        record = peek(bundle, folder)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        if not settings.shadow:  # else the monitor says so
            log.warning(
                "the state of alarms of %s can't be read: %.200s; the fast model answers",
                folder,
                error,
            )
        return ""
    if not record.taken_over and not (settings.on_alarm == "exact" and record.alarms):
        return ""
    since = min((alarm.at for alarm in record.alarms.values()), default="an alarm")
    return (
        f"the exact model answers since {since}, when the monitor raised an alarm: `hasten "
        f"monitor {path} --clear` lets the fast model answer again"
    )


def watch_of(
    name: str, version: str, bundle: str, opened: OpenBundle, settings: ModelSettings
) -> Watch | None:
    """Return the monitor of an open bundle; None where nothing of it is to be compared.

    Where it was asked for and can't be, a note says why.

    Args:
        name: Name of the model for clients.
        version: Version of the model.
        bundle: SHA-256 of the bundle's manifest.
        opened: The bundle.
        settings: Settings that it is served with.
    """
    if not settings.shadow:
        return None
    if opened.standby is None and not settings.alone:
        if opened.which == "winner":
            opened.notes.append(
                "nothing to watch: the bundle has no exact model besides its winner"
            )
            return None
        if settings.which == "exact":
            return None
    judging = Judging(opened.manifest, settings.shadow_limit)
    if judging.why:
        alone = "only labels can raise an alarm" if judging.labelled else "no alarm is raised"
        opened.notes.append(f"answers are compared, but {alone}: {judging.why}")
    watch = Watch(
        name,
        version,
        bundle,
        judging,
        Drift(opened.manifest.ranges, lambda: _shares(opened)),
        state=settings.monitor_state,
        webhook=settings.webhook,
        take_over=settings.on_alarm == "exact",
        secret=settings.pooled,
    )
    if settings.alone:
        watch.blind = "the exact model's engine crashed the process"
        opened.notes.insert(0, f"the monitor is blind: {watch.blind}")
    return watch


def _shares(opened: OpenBundle) -> Mapping[str, tuple[int, int]]:
    """Add up what a bundle's sessions count."""
    found: dict[str, tuple[int, int]] = {}
    for session in opened.sessions:
        for name, (some, all_) in session.shares().items():
            before = found.get(name, (0, 0))
            found[name] = before[0] + some, before[1] + all_
    return found
