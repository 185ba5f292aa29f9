"""Files of tensors (safetensors), read without running anything of them: headers, raw bytes, numbers, and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

# The library reads headers of up to 100 MB; a base model of a trillion parameters has one of 20.
MAX_HEADER_BYTES = 32 << 20
FLOATS = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}

Bits = npt.NDArray[Any]


class BadTensors(ValueError):
    """A file that is not what its name says; the message says why."""


@dataclass(frozen=True)
class Tensor:
    """A tensor's type, its shape, and which of its file's bytes are its own."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name. Raises :class:`BadTensors`.

    The library has looked at types, shapes and offsets first: they leave no gap, overlap nowhere and end with the file.
    """
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if length > MAX_HEADER_BYTES and start.startswith((b"PK\x03\x04", b"\x80")):
            raise BadTensors("it is a pickle under another name, which can run code")
        if length > MAX_HEADER_BYTES:
            raise BadTensors(f"its header says that it has {length} bytes")
        header = file.read(length)
    try:
        with safe_open(path, framework="numpy"):
            pass
        entries = json.loads(header)
        return {
            name: Tensor(
                entry["dtype"], tuple(entry["shape"]), *(8 + length + offset for offset in entry["data_offsets"])
            )
            for name, entry in entries.items()
            if name != "__metadata__"
        }
    except (SafetensorError, ValueError, RecursionError) as error:
        raise BadTensors(str(error)) from None


def read_bits(path: Path, tensor: Tensor) -> Bits:
    """Return a tensor's numbers as unsigned integers of their size: numpy has no bfloat16."""
    with path.open("rb") as file:
        file.seek(tensor.begin)
        return np.frombuffer(file.read(tensor.end - tensor.begin), FLOATS[tensor.dtype]).reshape(tensor.shape)


def as_float32(bits: Bits, dtype: str) -> npt.NDArray[np.float32]:
    """Return what ``bits`` of ``dtype`` (F32, F16 or BF16) mean."""
    match dtype:
        case "F32":
            return bits.view(np.float32)
        case "F16":
            return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def write_tensors(path: Path, tensors: Mapping[str, tuple[str, Bits]]) -> None:
    """Write tensors given as name → (dtype, bits)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, bits) in tensors.items():
        header[name] = {"dtype": dtype, "shape": bits.shape, "data_offsets": [end, end + bits.nbytes]}
        end += bits.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format has numbers begin at multiples of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, bits in tensors.values():
            file.write(bits.tobytes())
