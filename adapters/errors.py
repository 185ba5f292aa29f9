"""Errors that a person can act on. Every command prints them as one line and exits with status 1."""


def printable(text: str) -> str:
    """Return ``text`` without line breaks, escape sequences and whatever else would act on who shows it."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


class HotswapError(Exception):
    """Something was refused; the message says what, and what to do about it.

    Messages quote names and values that strangers chose: as text they are one printable line, wherever they go.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class InvalidAdapter(HotswapError):
    """An adapter, a manifest or a task that the engine could not serve faithfully."""


class Damaged(InvalidAdapter):
    """Files that differ from what was published: in the store, or only on their way from it."""


class InputTooLong(HotswapError):
    """A text longer than the task takes, where the caller asked for it not to be cut."""


class NotInStore(HotswapError):
    """The store holds no such adapter, version or release."""


class GenerationConflict(HotswapError):
    """Another writer released first; nothing was changed."""


class StoreUnavailable(HotswapError):
    """The store could not be reached, read or written."""


class DatabaseAway(HotswapError):
    """The database cannot be reached, read or written; or its tables are not those of this version."""


class NotKept(HotswapError):
    """No uploaded file or fine-tuning job is called that, or it is somebody else's."""


class Untimely(HotswapError):
    """A file or job is not in the state for what was asked of it."""


class QuotaSpent(HotswapError):
    """Whoever asks has as many files or jobs as they may have."""
