"""What the messages of the `models` topic add up to, and which messages a promotion or a rollback writes. Pure.

A release is one message, so that it happens or does not; what versions' entries say is corrected by it when it is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from models.domain.errors import EventDecodeError, RecommenderError
from models.domain.releases import CHAMPION, ModelEntry, Release, State, decode_release

By = Literal["trainer", "operator"]
Decided = tuple[Release, list[ModelEntry]]
"""A release, to be written first, and the entries that it changes."""


class ReleaseError(RecommenderError):
    """A promotion or rollback that makes no sense as things stand; nothing was written."""


class Releases:
    """Which version is champion, and what became of the others. `update` takes messages in the topic's order."""

    def __init__(self) -> None:
        self.champion: Release | None = None
        self.entries: dict[str, ModelEntry] = {}
        """By version, as they were written; `entry` gives what holds."""

    def update(self, key: bytes | None, value: bytes | None) -> bool:
        """Take one message in; a null value removes a version's entry.

        Returns: whether it said something new.
        Raises: EventDecodeError for a message that means nothing; what was known stays as it was.
        """
        try:
            name = (key or b"").decode()
        except UnicodeDecodeError as error:
            raise EventDecodeError("invalid_release", f"the key {key!r:.100} is no text") from error
        if not name or (name == CHAMPION and value is None):
            raise EventDecodeError("invalid_release", "a message without key, or a champion without value")
        if value is None:
            return self.entries.pop(name, None) is not None
        message = decode_release(name.encode(), value)
        if isinstance(message, Release):
            return self._take(message)
        if message.version != name:
            raise EventDecodeError("invalid_release", f"{message.version[:100]!r} under the key {name[:100]!r}")
        changed = self.entries.get(name) != message
        self.entries[name] = message
        return changed

    def _take(self, release: Release) -> bool:
        # Two writers that knew nothing of each other may have used one number: the later one in the topic holds, which
        # is the one that compaction leaves. A smaller number is that of a writer who slept through a release.
        if release == self.champion or (self.champion is not None and release.sequence < self.champion.sequence):
            return False
        self.champion = release
        return True

    def entry(self, version: str) -> ModelEntry | None:
        """What is known of a version, put right where a writer ended between a release and its entries."""
        found = self.entries.get(version)
        if found is None:
            return None
        champion = self.champion
        touched = champion is not None and version in (champion.version, champion.previous)
        at_ms = champion.at_ms if champion is not None and touched else found.at_ms
        return msgspec.structs.replace(found, state=self.state(version), at_ms=at_ms)

    def state(self, version: str) -> State:
        """What a version is now; one that nobody wrote of is a candidate."""
        champion, found = self.champion, self.entries.get(version)
        if champion is not None and version == champion.version:
            return "champion"
        if champion is not None and version == champion.previous:
            return "rolled_back" if champion.action == "rollback" else "retired"
        if found is None:
            return "candidate"
        if found.state == "champion":
            return "candidate" if champion is None else "retired"
        return found.state

    def in_use(self) -> set[str]:
        """The champion, the one before it, and the one that a rollback goes to."""
        champion = self.champion
        used = (champion.version, champion.previous, self.former()) if champion is not None else ()
        return {version for version in used if version is not None}

    def former(self) -> str | None:
        """The version that a rollback goes to: the champion before, or where that one was itself rolled back the
        one that was retired last. None where there is none."""
        champion = self.champion
        if champion is None:
            return None
        if champion.previous is not None and self.state(champion.previous) == "retired":
            return champion.previous
        entries = (self.entry(version) for version in self.entries)
        retired = [(entry.at_ms, entry.version) for entry in entries if entry is not None and entry.state == "retired"]
        return max(retired)[1] if retired else None


def promote(releases: Releases, candidate: ModelEntry, *, by: By, reason: str, now_ms: int) -> Decided:
    """What is to be written so that a version is champion; the release that holds, and no entry, where it is already.

    Args:
        candidate: what is known of the version; its state does not matter.
    """
    return _release(releases, candidate, "promote", by, reason, now_ms)


def roll_back(releases: Releases, version: str | None = None, *, by: By, reason: str, now_ms: int) -> Decided:
    """What is to be written so that a former champion is champion again, and the present one rolled back.

    Args:
        version: None for `Releases.former`.
    Raises: ReleaseError when there is no champion, none before it, or the version was never champion.
    """
    if releases.champion is None:
        raise ReleaseError("no version was promoted yet: there is nothing to roll back")
    champion = releases.champion.version
    target = releases.former() if version is None else version
    if target is None:
        raise ReleaseError(f"{champion} has no former champion to go back to: promote a version instead")
    if target == champion:
        raise ReleaseError(f"{target} is champion: name the version to go back to")
    if releases.state(target) == "candidate":
        raise ReleaseError(f"{target} was never champion: promote it instead")
    return _release(releases, _known(releases, target), "rollback", by, reason, now_ms)


def add(releases: Releases, candidate: ModelEntry) -> list[ModelEntry]:
    """What is to be written so that a version is known: nothing where it is."""
    return [] if candidate.version in releases.entries else [msgspec.structs.replace(candidate, state="candidate")]


def superfluous(releases: Releases, created: Iterable[tuple[int, str]], keep: int) -> list[str]:
    """Versions that may be deleted: all but champion, the one that a rollback goes to, and the `keep` newest others.

    Args:
        created: (created_ms, version) of every version in the registry.
    Returns: the oldest first.
    """
    in_use = releases.in_use()
    others = sorted(each for each in created if each[1] not in in_use)
    return [version for _, version in (others[:-keep] if keep else others)]


def _release(
    releases: Releases,
    entry: ModelEntry,
    action: Literal["promote", "rollback"],
    by: By,
    reason: str,
    now_ms: int,
) -> Decided:
    champion = releases.champion
    if champion is not None and champion.version == entry.version:
        return champion, []
    release = Release(
        sequence=1 if champion is None else champion.sequence + 1,
        version=entry.version,
        previous=None if champion is None else champion.version,
        action=action,
        by=by,
        reason=reason,
        # A clock that is behind the former writer's must not turn the order of what happened around.
        at_ms=now_ms if champion is None else max(now_ms, champion.at_ms + 1),
    )
    # What the present release corrects is written with the next one: afterwards nothing tells it any more.
    after = Releases()
    after.champion = release
    touched = () if champion is None else (champion.version, champion.previous)
    after.entries = {v: _known(releases, v) for v in dict.fromkeys((*releases.entries, *touched)) if v is not None}
    after.entries[entry.version] = entry
    settled = [held for version in after.entries if (held := after.entry(version)) is not None]
    return release, [held for held in settled if held != releases.entries.get(held.version)]


def _known(releases: Releases, version: str) -> ModelEntry:
    """A version's entry; of one whose writer ended before it, what the release tells."""
    found = releases.entry(version)
    if found is not None:
        return found
    at_ms = 0 if releases.champion is None else releases.champion.at_ms
    return ModelEntry(version=version, parent=None, created_ms=0, state=releases.state(version), at_ms=at_ms)
