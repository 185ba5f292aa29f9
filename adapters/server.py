"""A running service's limits, asked over HTTP."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from adapters.errors import HotswapError

SECONDS = 10.0
MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class Server:
    """What a service was started for; ``base_digest`` is :attr:`adapters.base_model.Base.digest`."""

    base: str
    base_digest: str
    max_lora_rank: int
    max_model_len: int
    max_resident: int


def ask_server(url: str, key: str | None = None) -> Server:
    """Return the limits of the service at ``url``; ``key`` (default: ``HOTSWAP_API_KEY``) is its API key.

    Raises :class:`HotswapError` where it does not answer, or not as a hotswap does.
    """
    if not url.startswith(("http://", "https://")):
        raise HotswapError(f"'{url}' is no address of a server: write http://… or https://…")
    key = key or os.environ.get("HOTSWAP_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{url.rstrip('/')}/v1/adapters?limit=1", headers=headers)  # noqa: S310 - checked above
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as response:  # noqa: S310
            listing: Any = json.loads(response.read(MOST_BYTES))
        return Server(**{name: listing["server"][name] for name in Server.__dataclass_fields__})
    except urllib.error.HTTPError as error:
        hint = "; put its key into HOTSWAP_API_KEY" if error.code in (401, 403) else ""
        raise HotswapError(f"{url} answered with status {error.code}{hint}.") from None
    except (OSError, ValueError) as error:
        raise HotswapError(f"{url} cannot be asked: {getattr(error, 'reason', error)}.") from None
    except (KeyError, TypeError):
        raise HotswapError(f"{url} does not answer as a hotswap service of this version does.") from None
