"""Ids of files, jobs and events."""

from __future__ import annotations

from ulid import ULID


def new_id(kind: str) -> str:
    """Return an id such as ``file-01j…``."""
    return f"{kind}-{str(ULID()).lower()}"


def name_of(job: str) -> str:
    """Return what a job's adapter is called that was given no name."""
    return f"ft-{job[-12:]}"
