"""The objects under a store: a folder, S3 or GCS through one interface, and one way for them to fail."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any

from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, NotModifiedError
from obstore.store import LocalStore, from_url

from adapters.aws import profile_options
from adapters.errors import NotInStore, StoreUnavailable

# The library would try for three minutes: what is served waits for none of it, but who releases does. Timeouts
# of single requests are its own, or from AWS_TIMEOUT and AWS_CONNECT_TIMEOUT: options in code would replace the
# whole of what AWS_… variables say about the client.
RETRIES: Any = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=5),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2},
}
# What to do about an S3 error code, where it is not plain from the server's own message.
ADVICE = {
    "NoSuchBucket": "make the bucket, or mend the store's name",
    "AccessDenied": "let these credentials list, read and write in it",
    "InvalidAccessKeyId": "look at AWS_ACCESS_KEY_ID, or the profile",
    "SignatureDoesNotMatch": "look at AWS_SECRET_ACCESS_KEY, or the profile",
    "ExpiredToken": "get new credentials (aws sso login, say)",
    "SlowDown": "it is asked too often; try again later",
    **dict.fromkeys(
        ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"),
        "set AWS_REGION to the bucket's",
    ),
}
# Of a redirect the library keeps nothing that the server said.
REDIRECTED = "redirect without LOCATION"


def open_objects(place: str) -> tuple[Any, Path | None]:
    """Return the objects at ``place``, and the folder they are in if it is one. Raises :class:`StoreUnavailable`."""
    with reachable(place):
        if "://" in place:
            options = profile_options() if place.startswith(("s3://", "s3a://")) else {}
            return from_url(place, retry_config=RETRIES, **options), None
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
        if "<Code>NoSuchBucket</Code>" not in str(error):
            raise NotInStore("it is not in the store") from error
        raise StoreUnavailable(f"the store {place} cannot be used: {_reason(error)}") from error
    except (BaseError, OSError) as error:
        raise StoreUnavailable(f"the store {place} cannot be used: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return what the server said, or the first line of the library's own words; the rest is its debug output."""
    text = str(error).strip()
    if REDIRECTED in text:
        return f"the bucket is in another region; {ADVICE['PermanentRedirect']}"
    code = re.search(r"<Code>(\w+)</Code>", text)
    if code is None:
        return (text or type(error).__name__).splitlines()[0]
    message = re.search(r"<Message>([^<]{1,300})", text)
    reason = f"{code[1]}: {unescape(message[1]).strip()}" if message else code[1]
    return f"{reason.rstrip('.')}; {ADVICE[code[1]]}" if code[1] in ADVICE else reason
