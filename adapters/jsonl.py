"""Files of rows: JSON, a line each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write all or nothing: a full disk, or a kill, leaves what was there."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if path.exists() and not path.is_file():  # replacing /dev/stdout or a pipe would take it away from everyone
        path.write_bytes(content)
        return
    path = path.resolve()  # where a link points, so that it stays one
    scratch = path.with_name(f"{path.name}.part")
    try:
        scratch.write_bytes(content)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
