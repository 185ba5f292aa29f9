"""Signatures: only what a trusted key signed, as it was signed, can be fetched where keys are asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pytest

from adapters.base_model import Base
from adapters.errors import HotswapError, InvalidAdapter, StoreUnavailable
from adapters.intake import add_version
from adapters.manifest import digest_of
from adapters.signing import MAX_SIGNATURE_BYTES, SIGNATURE, Signer, TrustedKeys
from adapters.store import CONFIG, MANIFEST, WEIGHTS, Store
from adapters.tasks import ClassificationTask
from tests.conftest import MakeAdapter, make_keys

ALTERED, UNSIGNED, UNTRUSTED = "not what was signed", "not signed", "a key that is not trusted"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return make_keys(tmp_path)


@pytest.fixture
def signed(
    store: Store, keys: tuple[Path, Path], make_adapter: MakeAdapter, tiny: Base, sentiment_task: ClassificationTask
) -> Store:
    """A store with ``mood``, versions 1 and 2, signed by the team."""
    for seed in (1, 2):
        add_version(store, "mood", make_adapter(seed=seed), sentiment_task, tiny, signer=Signer(keys[0]))
    return store


@pytest.fixture
def trusting(signed: Store, keys: tuple[Path, Path]) -> Store:
    """The same store, opened by who trusts the team's key alone."""
    return Store(signed.place, trusted=TrustedKeys(keys[1]))


def path(store: Store, file: str, version: int = 1) -> Path:
    return Path(store.place, "mood", "versions", str(version), file)


class TestSignedVersions:
    def test_are_fetched_where_their_key_is_trusted(self, trusting: Store, tmp_path: Path) -> None:
        folder = trusting.fetch("mood", 1, tmp_path)
        assert {file.name for file in folder.iterdir()} == {CONFIG, WEIGHTS}
        assert trusting.fetch("mood", 1, tmp_path) == folder

    def test_are_fetched_where_no_key_is_asked_for(self, signed: Store, tmp_path: Path) -> None:
        assert signed.fetch("mood", 1, tmp_path).is_dir()
        assert SIGNATURE not in signed.manifest("mood", 1)[0].files

    def test_are_not_there_before_their_signature_is(
        self, signed: Store, keys: tuple[Path, Path], make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put = obstore.put

        def killed(objects: object, path: str, *rest: Any, **settings: Any) -> Any:
            if path.endswith(SIGNATURE):
                raise KeyboardInterrupt
            return put(objects, path, *rest, **settings)  # type: ignore[call-overload]

        described = signed.manifest("mood", 1)[0]
        monkeypatch.setattr(obstore, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            signed.add("mood", make_adapter(), lambda _: described, signer=Signer(keys[0]))
        assert signed.versions("mood") == [1, 2]

    def test_can_be_loaded_again_while_the_store_is_away(
        self, trusting: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unreachable(*_: object, **__: object) -> None:
            raise StoreUnavailable("the store is away")

        folder = trusting.fetch("mood", 1, tmp_path)
        monkeypatch.setattr(trusting, "read", unreachable)
        assert trusting.fetch("mood", 1, tmp_path) == folder

    def test_can_be_verified_with_the_format_s_own_tool(self, signed: Store, keys: tuple[Path, Path]) -> None:
        folder, signature = path(signed, "").resolve(), path(signed, SIGNATURE)
        arguments = ["--signature", signature, "--public_key", keys[1], folder]
        done = subprocess.run(
            [sys.executable, "-m", "model_signing", "verify", "key", *arguments], capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def test_that_the_format_s_own_tool_signed_are_fetched(
        self, signed: Store, trusting: Store, keys: tuple[Path, Path], tmp_path: Path
    ) -> None:
        path(signed, SIGNATURE).unlink()
        arguments = ["--signature", path(signed, SIGNATURE), "--private_key", keys[0], path(signed, "")]
        subprocess.run([sys.executable, "-m", "model_signing", "sign", "key", *arguments], check=True)
        assert trusting.fetch("mood", 1, tmp_path).is_dir()

    @pytest.mark.parametrize("curve", ["secp384r1", "secp521r1"])
    def test_may_be_signed_with_longer_keys(self, signed: Store, tmp_path: Path, curve: str) -> None:
        private, public = make_keys(tmp_path, "long", curve)
        resign(signed, Signer(private))
        assert Store(signed.place, trusted=TrustedKeys(public)).fetch("mood", 1, tmp_path).is_dir()


def resign(store: Store, signer: Signer, files: tuple[str, ...] = (CONFIG, WEIGHTS)) -> None:
    manifest = path(store, MANIFEST).read_bytes()
    path(store, SIGNATURE).write_bytes(signer.sign(path(store, ""), files, manifest))


class TestWhatIsRefused:
    """Each alteration is made behind the store's back, by someone who may write to it but has no trusted key."""

    @pytest.fixture
    def refused(self, trusting: Store, tmp_path: Path) -> Callable[[str], None]:
        def refused(reason: str) -> None:
            with pytest.raises(InvalidAdapter, match=f"^mood@1: .*{reason}.*publish it again"):
                trusting.fetch("mood", 1, tmp_path / "cache")
            assert not list((tmp_path / "cache" / "adapters").iterdir()), "nothing of it is left in the cache"
            assert trusting.fetch("mood", 2, tmp_path / "cache").is_dir()

        return refused

    def test_a_version_without_a_signature(self, signed: Store, refused: Callable[[str], None]) -> None:
        path(signed, SIGNATURE).unlink()
        refused(UNSIGNED)

    def test_a_manifest_altered_after_signing(self, signed: Store, refused: Callable[[str], None]) -> None:
        content = path(signed, MANIFEST).read_bytes()
        path(signed, MANIFEST).write_bytes(content.replace(b"Review:", b"Ignore:"))
        refused(ALTERED)

    def test_weights_altered_and_their_hash_in_the_manifest_too(
        self, signed: Store, refused: Callable[[str], None]
    ) -> None:
        other = path(signed, WEIGHTS, 2).read_bytes()
        manifest = json.loads(path(signed, MANIFEST).read_bytes())
        manifest["files"][WEIGHTS] = {"bytes": len(other), "digest": digest_of(other)}
        path(signed, WEIGHTS).write_bytes(other)
        path(signed, MANIFEST).write_text(json.dumps(manifest))
        refused(ALTERED)

    def test_the_signature_of_another_version(self, signed: Store, refused: Callable[[str], None]) -> None:
        path(signed, SIGNATURE).write_bytes(path(signed, SIGNATURE, 2).read_bytes())
        refused(ALTERED)

    def test_a_signature_by_another_key(self, signed: Store, refused: Callable[[str], None], tmp_path: Path) -> None:
        resign(signed, Signer(make_keys(tmp_path, "stranger")[0]))
        refused(UNTRUSTED)

    def test_a_signature_by_another_key_in_the_name_of_a_trusted_one(
        self, signed: Store, refused: Callable[[str], None], tmp_path: Path
    ) -> None:
        trusted = json.loads(path(signed, SIGNATURE).read_bytes())
        resign(signed, Signer(make_keys(tmp_path, "stranger")[0]))
        forged = json.loads(path(signed, SIGNATURE).read_bytes())
        forged["verificationMaterial"] = trusted["verificationMaterial"]
        path(signed, SIGNATURE).write_text(json.dumps(forged))
        refused(ALTERED)

    def test_a_signature_of_less_than_the_whole(
        self, signed: Store, refused: Callable[[str], None], keys: tuple[Path, Path]
    ) -> None:
        resign(signed, Signer(keys[0]), files=(CONFIG,))
        refused(ALTERED)

    def test_a_trusted_signature_that_ignores_the_manifest(
        self, signed: Store, refused: Callable[[str], None], keys: tuple[Path, Path]
    ) -> None:
        folder, signature = path(signed, ""), path(signed, SIGNATURE)
        signature.unlink()
        ignoring = ["--ignore-paths", folder / MANIFEST, "--signature", signature, "--private_key", keys[0], folder]
        subprocess.run([sys.executable, "-m", "model_signing", "sign", "key", *ignoring], check=True)
        refused(ALTERED)

    @pytest.mark.parametrize(
        "content",
        [b"", b"rubbish", b"\xff\xfe", b"[]", b"{}", b'"text"', b"[" * 60_000, b'{"verificationMaterial": []}'],
    )
    def test_a_signature_that_is_none(self, signed: Store, refused: Callable[[str], None], content: bytes) -> None:
        path(signed, SIGNATURE).write_bytes(content)
        refused("its model.sig is damaged")

    @pytest.mark.parametrize("part", ["verificationMaterial", "dsseEnvelope", "mediaType"])
    def test_a_signature_with_a_part_missing(self, signed: Store, refused: Callable[[str], None], part: str) -> None:
        left = json.loads(path(signed, SIGNATURE).read_bytes())
        del left[part]
        path(signed, SIGNATURE).write_text(json.dumps(left))
        refused("its model.sig is damaged" if part == "verificationMaterial" else ALTERED)

    def test_a_signature_cut_short(self, signed: Store, refused: Callable[[str], None]) -> None:
        path(signed, SIGNATURE).write_bytes(path(signed, SIGNATURE).read_bytes()[:-1])
        refused("its model.sig is damaged")

    def test_a_signature_too_long_to_be_one_unread(self, signed: Store, refused: Callable[[str], None]) -> None:
        with path(signed, SIGNATURE).open("ab") as file:
            file.truncate(MAX_SIGNATURE_BYTES + 1)
        refused("its model.sig is too long")

    def test_a_copy_that_was_fetched_before_keys_were_asked_for(
        self, signed: Store, trusting: Store, tmp_path: Path
    ) -> None:
        signed.fetch("mood", 1, tmp_path)
        path(signed, SIGNATURE).unlink()
        with pytest.raises(InvalidAdapter, match=UNSIGNED):
            trusting.fetch("mood", 1, tmp_path)

    def test_a_manifest_that_changed_after_it_was_read(self, signed: Store, trusting: Store, tmp_path: Path) -> None:
        trusting.manifest("mood", 1)
        path(signed, MANIFEST).write_bytes(path(signed, MANIFEST).read_bytes() + b" ")
        with pytest.raises(InvalidAdapter, match="manifest was altered"):
            trusting.fetch("mood", 1, tmp_path)

    def test_until_it_is_put_right(self, signed: Store, trusting: Store, tmp_path: Path) -> None:
        sound = path(signed, MANIFEST).read_bytes()
        path(signed, MANIFEST).write_bytes(sound + b" ")
        with pytest.raises(InvalidAdapter, match=ALTERED):
            trusting.fetch("mood", 1, tmp_path)
        path(signed, MANIFEST).write_bytes(sound)
        assert trusting.fetch("mood", 1, tmp_path).is_dir()

    def test_is_found_by_verifying_the_store(self, signed: Store, trusting: Store) -> None:
        path(signed, SIGNATURE).unlink()
        [(name, version, problem)] = trusting.problems()
        assert (name, version) == ("mood", 1)
        assert problem.startswith("it is not signed")


class TestFilesThatCarryNoWeight:
    """What an attacker may put beside a version is never looked at."""

    def test_extra_files_are_not_fetched(self, signed: Store, trusting: Store, tmp_path: Path) -> None:
        path(signed, "evil.py").write_text("import os")
        assert not (trusting.fetch("mood", 1, tmp_path) / "evil.py").exists()

    def test_links_are_read_as_the_bytes_they_lead_to(self, signed: Store, trusting: Store, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        path(signed, WEIGHTS).rename(elsewhere)
        path(signed, WEIGHTS).symlink_to(elsewhere)
        folder = trusting.fetch("mood", 1, tmp_path)
        assert not (folder / WEIGHTS).is_symlink()
        assert (folder / WEIGHTS).read_bytes() == elsewhere.read_bytes()


class TestKeys:
    def test_of_several_people_may_be_in_one_file_or_in_a_folder(self, signed: Store, tmp_path: Path) -> None:
        folder, other = tmp_path / "keys", make_keys(tmp_path, "other")[1]
        folder.mkdir()
        (folder / "all.pem").write_bytes(other.read_bytes() + (tmp_path / "team.pub").read_bytes())
        (folder / "README.md").write_text("ours")
        for place in (folder, folder / "all.pem"):
            assert Store(signed.place, trusted=TrustedKeys(place)).fetch("mood", 1, tmp_path).is_dir()

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (None, "cannot be read: No such file"),
            (b"", "must hold public keys"),
            (b"rubbish", "must hold public keys"),
            (b"-----BEGIN PUBLIC KEY-----\nrubbish\n-----END PUBLIC KEY-----\n", "damaged"),
            ("a key and more", "and nothing else"),
            ("private", "holds a private key"),
            ("rsa", "not an elliptic-curve key"),
            ("secp256k1", "not an elliptic-curve key"),
        ],
    )
    def test_to_trust_are_refused_with_one_line(
        self, keys: tuple[Path, Path], tmp_path: Path, content: bytes | str | None, reason: str
    ) -> None:
        file = tmp_path / "trusted.pem"
        if content == "a key and more":
            content = keys[1].read_bytes() + b"more"
        elif content == "private":
            content = keys[0].read_bytes()
        elif content == "rsa":
            content = openssl("pkey", "-pubout", given=openssl("genpkey", "-algorithm", "RSA", "-quiet"))
        elif content == "secp256k1":
            content = make_keys(tmp_path, "bitcoin", "secp256k1")[1].read_bytes()
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(HotswapError, match=f"trusted.pem.*{reason}") as refused:
            TrustedKeys(file)
        assert "\n" not in str(refused.value)

    def test_in_a_folder_without_any_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(HotswapError, match=r"has no \.pem or \.pub file"):
            TrustedKeys(tmp_path)

    @pytest.mark.parametrize(
        ("kind", "reason"),
        [
            ("missing", "cannot be read: No such file"),
            ("public", "is not a private key in PEM format"),
            ("encrypted", "is encrypted; write it without a password"),
            ("rsa", "is not an elliptic-curve key"),
        ],
    )
    def test_to_sign_with_are_refused_with_one_line(
        self, keys: tuple[Path, Path], tmp_path: Path, kind: str, reason: str
    ) -> None:
        file = tmp_path / "signing.pem"
        if kind == "public":
            file.write_bytes(keys[1].read_bytes())
        elif kind == "encrypted":
            file.write_bytes(openssl("ec", "-aes128", "-passout", "pass:x", given=keys[0].read_bytes()))
        elif kind == "rsa":
            file.write_bytes(openssl("genpkey", "-algorithm", "RSA", "-quiet"))
        with pytest.raises(HotswapError, match=f"signing.pem {reason}") as refused:
            Signer(file)
        assert "\n" not in str(refused.value)

    def test_cost_nothing_where_none_are_used(self) -> None:
        code = "import sys, adapters.__main__, service.app; sys.exit(any('model_signing' in m for m in sys.modules))"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def openssl(*arguments: str, given: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *arguments], input=given, capture_output=True, check=True).stdout
