"""Which of the processes of one service this is."""

from __future__ import annotations

from dataclasses import dataclass

from service.settings import Settings


@dataclass(frozen=True)
class Place:
    """``number`` of ``count``, from 0: the one that decides."""

    number: int = 0
    count: int = 1

    def of(self, total: int) -> int:
        """Return this process's part of what all have together."""
        return total // self.count + (self.number < total % self.count)

    def share(self, settings: Settings) -> Settings:
        """Return the settings of this process's connections."""
        return settings.model_copy(update={"max_connections": max(1, self.of(settings.max_connections))})
