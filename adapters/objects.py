"""The objects under a store: a folder, S3 or GCS through one interface, and one way for them to fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, NotModifiedError
from obstore.store import LocalStore, from_url

from adapters.errors import NotInStore, StoreUnavailable

# The library would try for three minutes: what is served waits for none of it, but who releases does. Timeouts
# of single requests are its own, or from AWS_TIMEOUT and AWS_CONNECT_TIMEOUT: options in code would replace the
# whole of what AWS_… variables say about the client.
RETRIES: Any = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=5),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2},
}


def open_objects(place: str) -> tuple[Any, Path | None]:
    """Return the objects at ``place``, and the folder they are in if it is one. Raises :class:`StoreUnavailable`."""
    with reachable(place):
        if "://" in place:
            return from_url(place, retry_config=RETRIES), None
        folder = Path(place).expanduser().resolve()
        return LocalStore(folder, mkdir=True), folder


@contextmanager
def reachable(place: str) -> Iterator[None]:
    """Say in one line what was wrong with a store: :class:`NotInStore` or :class:`StoreUnavailable`."""
    try:
        yield
    except (AlreadyExistsError, NotModifiedError):  # answers, not failures
        raise
    except (NotFoundError, FileNotFoundError) as error:
        raise NotInStore(f"not in the store {place}") from error
    except (BaseError, OSError) as error:
        # The first line says what happened; the rest is the library's own debug output.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StoreUnavailable(f"the store {place} cannot be used: {reason}") from error
