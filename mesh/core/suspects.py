"""What is remembered of a version that ended processes: where it may run, when it is loaded again, who is refused.

| a version | then |
|---|---|
| ended a process, and it alone can have | it is isolated: never run in a node's process again, where others run |
| ended processes together with others | each such death counts half; with a whole one in ten minutes it is isolated |
| is isolated | each death makes the pause before its next load twice as long, from 1 s up to 5 minutes |
| ended three processes in ten minutes | it is quarantined for 1 minute, later up to 1 hour: callers are refused |
| had ten quiet minutes | pauses begin at 1 s again |
| had a quiet hour | the next quarantine is a first one, and calls for it are retried as any others' |
| has other files or settings (its digest) | nothing is known of it |
| is released by an operator | nothing is known of it |

Isolation does not end with time: nothing was mended, and in a process of its own the version harms itself alone.
Quarantine ends by itself, as what the version died of may be over (a bad caller, a full disk), and each death costs
other models no more than the start of a worker. What a death is, and whose, is decided where it is seen: by
`mesh.core.journal` for a node's process, by the node for a worker. A node that is only switched off is nobody's death.

Pure. The record is one key of the registry, written by compare-and-swap, so that every node and router acts alike.
Times are the reader's own: `mesh.core.sightings` makes them so when a record comes in, as its writer's clock may be
off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from mesh.core.errors import Quarantined
from mesh.core.types import ModelName, ModelVersion, NodeId, Version

WINDOW_S: Final = 600.0
"""Over how long deaths count together."""
ISOLATED: Final = 1.0
"""Deaths, shared ones counting half, from which a version runs in processes of its own."""
ENOUGH: Final = 3.0
"""Deaths from which it is quarantined."""
SHARED: Final = 0.5

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 300.0
"""As Kubernetes' crash loops: doubled up to five minutes."""
FIRST_QUARANTINE_S: Final = 60.0
LONGEST_QUARANTINE_S: Final = 3600.0
FORGIVEN_S: Final = 3600.0
"""Without a death, since the end of the last quarantine, after which it is treated as on its first day."""
MOST_TEXT: Final = 1000
"""Characters of a reason: it is shown in tables and goes with every refusal."""


class Death(StrEnum):
    """Which process a version ended."""

    WORKER = "worker"
    """Its own: nobody else ran there."""
    NODE = "node"
    """A node's, by running there: it alone was at work, or the crash itself names it."""
    LOADING = "loading"
    """A node's, by being loaded there."""
    HUNG = "hung"
    """None, but a run in a node's process that did not end, and which nothing there could end."""
    SHARED = "shared"
    """A node's, in which others were at work as well."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """What is known of a version that ended processes. 0 <= in_a_row <= deaths."""

    model: ModelName
    version: Version
    digest: str = ""
    """Of the files and settings that died: it says nothing about others."""
    isolated: bool = False
    deaths: int = 0
    recent: tuple[tuple[float, float], ...] = ()
    """When the last ones were, and how much each counts; those before a quarantine are left out."""
    in_a_row: int = 0
    """Deaths without `WINDOW_S` of quiet between them."""
    last_s: float = 0.0
    """When the last one was."""
    quarantines: int = 0
    """Without `FORGIVEN_S` of quiet between them."""
    until_s: float = 0.0
    """The end of the last quarantine; 0: there was none."""
    text: str = ""
    """What the last one died of."""
    node: str = ""
    """Where."""
    quiet_s: float = 0.0
    """For how long no other had come when this was written, at least: a record's own times are its writer's alone."""


def died(  # noqa: PLR0917 - what a death is
    before: Suspect | None, model: ModelVersion, how: Death, text: str, node: NodeId, now_s: float
) -> Suspect:
    """Return what is known of `model` after it ended a process. O(deaths within the window)."""
    if before is None or before.digest != model.digest:
        before = Suspect(model.name, model.version, model.digest)
    # Deaths that were told at once are written one after another, with times between them.
    now_s = max(now_s, before.last_s)
    weight = SHARED if how is Death.SHARED else 1.0
    recent = (*(each for each in before.recent if now_s - each[0] < WINDOW_S), (now_s, weight))
    blame = sum(each[1] for each in recent)
    quiet_s = now_s - before.last_s
    after = replace(
        before,
        isolated=before.isolated or blame >= ISOLATED,
        deaths=before.deaths + 1,
        recent=recent,
        in_a_row=1 if quiet_s >= WINDOW_S else before.in_a_row + 1,
        last_s=now_s,
        quarantines=0 if now_s - max(before.last_s, before.until_s) >= FORGIVEN_S else before.quarantines,
        text=text[:MOST_TEXT],
        node=node,
        quiet_s=0.0,
    )
    if blame < ENOUGH or now_s < before.until_s:
        return after
    count = after.quarantines + 1
    return replace(after, recent=(), quarantines=count, until_s=now_s + quarantine_s(count))


def must_isolate(suspect: Suspect | None, digest: str) -> bool:
    """Tell whether a version may not run in a node's process. O(1)."""
    return suspect is not None and suspect.isolated and suspect.digest == digest


def is_suspect(suspect: Suspect | None, digest: str, now_s: float) -> bool:
    """Tell whether a call that its process died of is better not sent to another one. O(1)."""
    if suspect is None or not must_isolate(suspect, digest):
        return False
    return now_s - max(suspect.last_s, suspect.until_s) < FORGIVEN_S


def quarantined_s(suspect: Suspect | None, digest: str, now_s: float) -> float:
    """Return for how many seconds more a version is quarantined, 0 when it is not. O(1)."""
    if suspect is None or suspect.digest != digest or now_s >= suspect.until_s:
        return 0.0
    return suspect.until_s - now_s


def pause_s(suspect: Suspect | None, digest: str, now_s: float) -> float:
    """Return the seconds until a version may be loaded again, 0 when it may now. O(1)."""
    if suspect is None or not must_isolate(suspect, digest):
        return 0.0
    length_s = min(LONGEST_PAUSE_S, _doubled(FIRST_PAUSE_S, suspect.in_a_row))
    return max(0.0, suspect.last_s + length_s - now_s, quarantined_s(suspect, digest, now_s))


def quarantine_s(count: int) -> float:
    """Return how long the `count`-th quarantine in a row is."""
    return min(LONGEST_QUARANTINE_S, _doubled(FIRST_QUARANTINE_S, count))


def refusal(suspect: Suspect | None, model: ModelVersion, now_s: float) -> Quarantined | None:
    """Return what callers of a quarantined version get; None for any other. O(1)."""
    left_s = quarantined_s(suspect, model.digest, now_s)
    if suspect is None or not left_s:
        return None
    facts = {
        "model": str(model.name),
        "version": str(model.version),
        "until": f"{now_s + left_s:.0f}",
        "deaths": str(suspect.deaths),
        "last": suspect.text,
    }
    return Quarantined(
        f"model '{model.name}' version {model.version} is {told(suspect, left_s)}", retry_after_s=left_s, facts=facts
    )


def told(suspect: Suspect, left_s: float) -> str:
    """Return the state of a quarantined version in words."""
    return f"quarantined for {left_s:.0f} s more: {history(suspect)}; 'mesh models release {suspect.model}' lifts it"


def history(suspect: Suspect) -> str:
    """Return what a version did in words."""
    processes = "1 process" if suspect.deaths == 1 else f"{suspect.deaths} processes"
    return f"it ended {processes}, the last on node '{suspect.node}' ({suspect.text})"


def _doubled(first_s: float, count: int) -> float:
    return first_s * 2.0 ** max(0, min(count, 30) - 1)
