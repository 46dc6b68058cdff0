"""When versions ended processes, by the clock of the one who reads it: the times in a record are its writer's.

Two machines' clocks may be hours apart, so a death counts as old as its record has been known here, or as its writer
says that it is at least (`Suspect.quiet_s`), whichever is more. The leader says so again now and then (`grown`), so
that a process that starts later takes nothing for new that is long over; at most half of the time is lost that way.

Pure; one per process, as a part of its mirror.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from mesh.core.suspects import FORGIVEN_S, LONGEST_QUARANTINE_S, Suspect
from mesh.core.view import VersionKey

FIRST_TOLD_S: Final = 5.0
"""How long after a death its age is said first; then each time it has doubled: a dozen writes in all."""
LAST_TOLD_S: Final = FORGIVEN_S + LONGEST_QUARANTINE_S
"""An age from which on nothing depends on it."""


@dataclass(frozen=True, slots=True)
class _Sighting:
    digest: str
    deaths: int
    """With `digest` it names the death: a record that was written again for another reason is no new one."""
    last_s: float
    """When it was, by this process's clock."""


class Sightings:
    """The deaths that were seen. O(1) each."""

    def __init__(self) -> None:
        self._seen: dict[VersionKey, _Sighting] = {}

    def own(self, suspect: Suspect, now_s: float) -> Suspect:
        """Return what a record says with times of this process's clock, whose reading is `now_s`."""
        key = (suspect.model, suspect.version)
        seen, last_s = self._seen.get(key), now_s - suspect.quiet_s
        if seen is not None and (seen.digest, seen.deaths) == (suspect.digest, suspect.deaths):
            last_s = min(last_s, seen.last_s)
        self._seen[key] = _Sighting(suspect.digest, suspect.deaths, last_s)
        return moved(suspect, last_s - suspect.last_s)

    def gone(self, key: VersionKey) -> None:
        """Forget a version whose record went."""
        self._seen.pop(key, None)

    def __repr__(self) -> str:
        """Show the count."""
        return f"<Sightings {len(self._seen)}>"


def moved(suspect: Suspect, by_s: float) -> Suspect:
    """Return `suspect` with all of its times later by `by_s`."""
    recent = tuple((at_s + by_s, weight) for at_s, weight in suspect.recent)
    until_s = suspect.until_s + by_s if suspect.until_s else 0.0
    return replace(suspect, last_s=suspect.last_s + by_s, until_s=until_s, recent=recent)


def grown(suspect: Suspect, now_s: float) -> Suspect | None:
    """Return the record with its age, when it is time to say that again; else None. Its times are of `now_s`' clock."""
    age_s = now_s - suspect.last_s
    if suspect.quiet_s >= LAST_TOLD_S or age_s < max(FIRST_TOLD_S, 2 * suspect.quiet_s):
        return None
    return replace(suspect, quiet_s=round(age_s, 1))
