"""What can become of a job."""

from __future__ import annotations

from dataclasses import dataclass

UNFINISHED = ("queued", "validating_files", "running", "paused")
ENDED = ("succeeded", "failed", "cancelled")
STATES = (*UNFINISHED, *ENDED)


@dataclass(frozen=True)
class Tally:
    """By state: how many jobs, and the seconds of those that ended; and how long the oldest queued one has waited."""

    jobs: dict[str, int]
    seconds: dict[str, int]
    waited: int
