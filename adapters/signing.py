"""Who made a version: signatures in the OpenSSF Model Signing format, made with elliptic-curve keys.

``model.sig`` covers every other file of a version, its manifest included. Importing the library that signs
takes half a second: only what signs or verifies pays for it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.errors import HotswapError, InvalidAdapter

if TYPE_CHECKING:
    from model_signing import hashing, verifying

SIGNATURE, MANIFEST = "model.sig", "manifest.json"
# A signature of a version takes two kilobytes; it is read whole before anything is known of who wrote it.
MAX_SIGNATURE_BYTES = 65_536
CURVES = ("secp256r1", "secp384r1", "secp521r1")
PEM_KEYS = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


class Signer:
    """Signs with the private key in a PEM file. Raises :class:`HotswapError` for what is no such key."""

    def __init__(self, key: Path) -> None:
        from cryptography.hazmat.primitives import serialization

        key = key.expanduser()
        content = _read(key)
        try:
            private = serialization.load_pem_private_key(content, password=None)
        except TypeError:
            raise HotswapError(f"{key} is encrypted; write it without a password: openssl ec -in {key}") from None
        except ValueError:
            raise HotswapError(f"{key} is not a private key in PEM format.") from None
        _check_curve(key, private)
        from model_signing import signing

        config = signing.Config()  # type: ignore[no-untyped-call]
        self._config = config.set_hashing_config(_everything()).use_elliptic_key_signer(private_key=key)

    def sign(self, folder: Path, files: Iterable[str], manifest: bytes) -> bytes:
        """Return the signature of a version: of the ``files`` of ``folder``, and its manifest."""
        with _staged(folder, files, manifest) as version, tempfile.TemporaryDirectory() as scratch:
            signature = Path(scratch, SIGNATURE)
            self._config.sign(version, signature)
            return signature.read_bytes()


class TrustedKeys:
    """The public keys whose signatures count: those in a PEM file, or in a folder's ``.pem`` and ``.pub`` files.

    Raises :class:`HotswapError` where there is none, and for a file with anything else in it.
    """

    def __init__(self, place: Path) -> None:
        place = place.expanduser()
        files = [place]
        if place.is_dir():
            files = sorted(path for path in place.iterdir() if path.suffix in (".pem", ".pub"))
        keys = [key for file in files for key in _public_keys(file)]
        if not keys:
            raise HotswapError(f"{place} has no .pem or .pub file with a public key.")
        self._verifiers = {hashlib.sha256(key).hexdigest(): _verifier(key) for key in keys}

    def verify(self, folder: Path, files: Iterable[str], manifest: bytes, signature: bytes | None) -> None:
        """Raise :class:`InvalidAdapter` unless a trusted key signed ``manifest`` and the ``files`` of ``folder``,
        these and no others. Takes some milliseconds; safe to call from several threads."""
        if signature is None:
            raise InvalidAdapter("it is not signed, which is asked for here; publish it again with --sign")
        verifier = self._verifiers.get(_signed_with(signature))
        if verifier is None:
            raise InvalidAdapter("it is signed with a key that is not trusted here; publish it again with one that is")
        with _staged(folder, files, manifest) as version, tempfile.TemporaryDirectory() as scratch:
            written = Path(scratch, SIGNATURE)
            written.write_bytes(signature)
            try:
                verifier.verify(version, written)
            except OSError:
                raise
            except Exception as error:  # a parser of what anybody may have written fails in every way there is
                raise InvalidAdapter("it is not what was signed: it was altered since; publish it again") from error


@contextmanager
def _staged(folder: Path, files: Iterable[str], manifest: bytes) -> Iterator[Path]:
    """Give a folder that holds a version as it is stored, and nothing else: what a signature covers."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in files:
            shutil.copyfile(folder / name, Path(scratch, name))
        Path(scratch, MANIFEST).write_bytes(manifest)
        yield Path(scratch)


def _signed_with(signature: bytes) -> str:
    """Return the name of the key that a signature says it was made with: the hash of the public key."""
    try:
        return json.loads(signature)["verificationMaterial"]["publicKey"]["hint"] or ""
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InvalidAdapter(f"its {SIGNATURE} is damaged; publish it again with --sign") from error


def _public_keys(file: Path) -> list[bytes]:
    """Return each key of a file in the one form whose hash names it."""
    from cryptography.hazmat.primitives import serialization

    content = _read(file)
    if b"PRIVATE KEY-----" in content:
        raise HotswapError(f"{file} holds a private key, which no server needs: openssl ec -in {file} -pubout")
    keys = PEM_KEYS.findall(content)
    if not keys or PEM_KEYS.sub(b"", content).strip():
        raise HotswapError(f"{file} must hold public keys in PEM format, and nothing else.")
    trusted = []
    for key in keys:
        try:
            public = serialization.load_pem_public_key(key)
        except ValueError:
            raise HotswapError(f"{file} holds a damaged public key.") from None
        _check_curve(file, public)
        trusted.append(public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return trusted


def _verifier(key: bytes) -> verifying.Config:
    from model_signing import verifying

    with tempfile.NamedTemporaryFile() as file:  # the library takes keys as files, and reads them at once
        file.write(key)
        file.flush()
        config = verifying.Config()  # type: ignore[no-untyped-call]
        config.set_hashing_config(_everything())
        return config.use_elliptic_key_verifier(public_key=file.name)


def _everything() -> hashing.Config:
    """Return how folders are hashed: every file, also those that a signature would have ignored."""
    from model_signing import hashing

    class Everything(hashing.Config):
        def add_ignored_paths(self, **_: Any) -> None:
            """Leave out nothing: a signature of less than the whole version is none of it."""

    everything = Everything()  # type: ignore[no-untyped-call]
    return everything.set_ignored_paths(paths=[], ignore_git_paths=False)


def _check_curve(file: Path, key: Any) -> None:
    if getattr(getattr(key, "curve", None), "name", None) not in CURVES:
        raise HotswapError(
            f"{file} is not an elliptic-curve key of a kind that signs versions: "
            "openssl ecparam -name prime256v1 -genkey -noout makes one."
        )


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise HotswapError(f"the key {file} cannot be read: {error.strerror}.") from None
