"""Every version of every adapter, for ever; and which of them is released.

    <name>/versions/<n>/adapter_config.json  …  manifest.json     manifest last: its presence is the commit
    <name>/versions/<n>/model.sig                                  of all the others, where versions are signed
    <name>/releases/<generation>.json                              append-only, numbered without gaps
    <name>/retired/<n>.json                                        that version is not to be served any more
    .pulse                                                         something else after every release

One primitive carries it all: create-if-absent. It claims a version number and a release generation, on a
disk, S3 and GCS alike, so that of two writers one wins and the other loses nothing. Nothing is ever edited but
the pulse, which is a hint: whoever has seen it need not look at every adapter to know that nothing was released.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import obstore
from obstore.exceptions import AlreadyExistsError, NotModifiedError
from pydantic import ValidationError
from ulid import ULID

from adapters.errors import Damaged, GenerationConflict, HotswapError, InvalidAdapter, NotInStore, StoreUnavailable
from adapters.manifest import NAME_PATTERN, Manifest, digest_of
from adapters.objects import open_objects, reachable
from adapters.packages import file_digest, move_into_place
from adapters.releases import GUARD, Guard, NewRelease, Release, Share
from adapters.signing import MANIFEST, MAX_SIGNATURE_BYTES, SIGNATURE, Signer, TrustedKeys
from adapters.validation import explained

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PULSE = ".pulse"
STARTER = Path(__file__).parent / "starter"
DEFAULT_STORE = Path(__file__).parents[1] / "var" / "store"
SEEDING = ".seeding-"


class Store:
    """Adapters at a place: a folder, ``s3://bucket/prefix``, ``gs://bucket/prefix`` or ``memory://``.

    With ``trusted`` keys, only versions that one of them signed can be fetched. Every method may raise
    :class:`StoreUnavailable`. Safe to use from several threads and processes.
    """

    def __init__(self, place: str | Path, *, trusted: TrustedKeys | None = None) -> None:
        self.place = str(place)
        self._objects, self.folder = open_objects(self.place)
        self._manifests: dict[tuple[str, int], tuple[Manifest, str]] = {}
        self._trusted = trusted
        self._verified: set[str] = set()

    def names(self) -> list[str]:
        """Return the adapters that have a committed version."""
        if self.folder is not None and not self.folder.is_dir():
            raise StoreUnavailable(f"the store {self.place} is gone: there is no such folder.")
        return [name for name in self._children("") if re.fullmatch(NAME_PATTERN, name) and self.versions(name)]

    def versions(self, name: str) -> list[int]:
        """Return the committed versions of ``name``, oldest first; none for an unknown name."""
        return [version for version in self._claimed(name) if self._exists(_version_path(name, version, MANIFEST))]

    def manifest(self, name: str, version: int) -> tuple[Manifest, str]:
        """Return a version's manifest and its digest. Raises :class:`NotInStore`, :class:`InvalidAdapter`."""
        if (name, version) not in self._manifests:
            content = self._get(_version_path(name, version, MANIFEST))
            if content is None:
                raise NotInStore(f"{name}@{version} is not in the store {self.place}.")
            try:
                manifest = Manifest.from_bytes(content)
            except InvalidAdapter as error:
                raise InvalidAdapter(f"{name}@{version}: {error}") from error
            if (manifest.name, manifest.version) != (name, version):
                raise InvalidAdapter(f"{name}@{version} carries the manifest of {manifest.name}@{manifest.version}.")
            self._manifests[name, version] = manifest, digest_of(content)
        return self._manifests[name, version]

    def add(
        self, name: str, folder: Path, describe: Callable[[int], Manifest], *, signer: Signer | None = None
    ) -> Manifest:
        """Store the files that ``describe(version).files`` names, from ``folder``, as the next version.

        The number is claimed first and the manifest written last: what is killed in between leaves a number
        that is never used again, and no version.
        """
        config = (folder / CONFIG).read_bytes()
        version = max(self._claimed(name), default=0) + 1
        while not self._create(_version_path(name, version, CONFIG), config):
            version += 1
        manifest = describe(version)
        content = manifest.to_bytes()
        signature = signer.sign(folder, manifest.files, content) if signer else None
        for file in manifest.files:
            if file != CONFIG:
                with reachable(self.place):
                    obstore.put(self._objects, _version_path(name, version, file), folder / file)
        if signature is not None:
            self._create(_version_path(name, version, SIGNATURE), signature)
        if not self._create(_version_path(name, version, MANIFEST), content):
            raise StoreUnavailable(f"{name}@{version} was committed by someone else while it was being written.")
        return manifest

    def fetch(self, name: str, version: int, cache: Path) -> Path:
        """Return a local folder with the version's files, each checked against the manifest.

        The folder is named by the manifest's digest, so versions of different stores never mix. Raises
        :class:`InvalidAdapter` where a file is missing or damaged in the store, or the signature is not right, and
        :class:`StoreUnavailable` where ``cache`` cannot be written.
        """
        manifest, digest = self.manifest(name, version)
        kept = cache / "adapters" / digest.removeprefix("sha256:")
        present = kept.is_dir()
        if present and not _damage(kept, manifest):
            self._check_signature(manifest, digest, kept)
            return kept
        with _writable(cache):
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
                made = Path(scratch, "files")
                made.mkdir()
                for file in manifest.files:
                    content = self._get(_version_path(name, version, file))
                    if content is not None:
                        (made / file).write_bytes(content)
                if damage := _damage(made, manifest):
                    raise Damaged(f"{name}@{version}: {damage}; publish it again as a new version.")
                self._check_signature(manifest, digest, made)
                if present:  # damaged: mended file by file, so that nobody who looks finds the folder gone
                    for file in manifest.files:
                        (made / file).replace(kept / file)
                else:
                    move_into_place(made, kept)
        return kept

    def release(
        self,
        name: str,
        stable: int,
        canary: Share | None = None,
        *,
        shadow: Share | None = None,
        guard: Guard | None = None,
        expected_generation: int | None = None,
        by: str | None = None,
        why: str = "",
    ) -> Release:
        """Append a release record. Raises :class:`NotInStore` for a version that is not there or retired, and
        :class:`GenerationConflict` where the newest generation is not ``expected_generation``, or another
        writer was first."""
        retired = self.retired(name)
        for version in {stable, *(share.version for share in (canary, shadow) if share)}:
            if not self._exists(_version_path(name, version, MANIFEST)):  # whatever was there a moment ago
                raise NotInStore(f"{name}@{version} is not in the store.")
            self.manifest(name, version)
            if version in retired:
                raise NotInStore(f"{name}@{version} was retired; release another version, or add it anew.")
        newest = max(self._generations(name), default=0)
        with explained(NewRelease, "nothing is released"):
            wished = NewRelease(
                stable=stable,
                canary=canary,
                shadow=shadow,
                guard=guard,
                by=by or _user(),
                at=datetime.now(UTC).replace(microsecond=0),
                why=why,
                generation=newest + 1,
            )
        record = Release.model_construct(**dict(wished))
        _expect(name, newest, expected_generation)
        if not self._create(_release_path(name, record.generation), record.model_dump_json().encode() + b"\n"):
            raise GenerationConflict(
                f"someone else released generation {record.generation} of {name}; look, then retry."
            )
        self._beat()
        return record

    def rollback(
        self, name: str, *, expected_generation: int | None = None, by: str | None = None, why: str = ""
    ) -> Release:
        """Release again what was served before the newest release; of a guarded promotion, before its first step.

        Raises :class:`NotInStore` if nothing was, and :class:`GenerationConflict` as :meth:`release` does.
        """
        newest, previous = self.before(name)
        _expect(name, newest, expected_generation)
        return self.release(
            name,
            previous.stable,
            previous.canary,
            shadow=previous.shadow,
            guard=previous.guard,
            expected_generation=newest,
            by=by,
            why=why or f"rollback of generation {newest}",
        )

    def before(self, name: str) -> tuple[int, Release]:
        """Return the newest generation, and what a rollback of it would release again: what was served before it, all
        steps of one guarded promotion being one release. Raises :class:`NotInStore` if nothing was."""
        generations = self._generations(name)
        if len(generations) < 2:
            raise NotInStore(f"{name} has no release to go back to.")
        earlier = reversed(generations)
        for generation in earlier:
            with suppress(InvalidAdapter):  # a damaged record is reason enough to go back
                if self._release(name, generation).by == GUARD:
                    continue
            break
        previous = next(earlier, None)
        if previous is None:  # the promotion was the first release of all
            first = self._release(name, generations[0])
            return generations[-1], first.model_copy(update={"canary": None, "shadow": None, "guard": None})
        return generations[-1], self._release(name, previous)

    def retire(self, name: str, version: int, *, by: str | None = None, why: str = "") -> None:
        """Have a version served to nobody any more, not even to those who ask for it by number. For ever; its files
        stay. Raises :class:`NotInStore`, and :class:`HotswapError` for a version that is released.

        Of a release and a retirement at the same moment the release wins: what is released is served.
        """
        self.manifest(name, version)
        release = self.released(name)
        if release is not None and version in release.versions:
            raise HotswapError(f"{name}@{version} is released; release another version first, then retire it.")
        record = {"by": by or _user(), "at": datetime.now(UTC).isoformat(timespec="seconds"), "why": why}
        self._create(f"{_checked(name)}/retired/{version}.json", json.dumps(record).encode() + b"\n")
        self._beat()

    def retired(self, name: str) -> set[int]:
        """Return the versions of ``name`` that are served to nobody any more."""
        return set(self._numbers(name, "retired"))

    def released(self, name: str) -> Release | None:
        """Return the newest release of ``name``, if any."""
        newest = max(self._generations(name), default=0)
        return self._release(name, newest) if newest else None

    def pulse(self, seen: str | None = None) -> str | None:
        """Return what is different after every release; ``seen``, what was returned last, makes asking cheap.

        A hint, to be read before what it is about: a writer that was killed, or an older one, leaves it as it
        was. None where there is none.
        """
        try:
            with reachable(self.place):
                return obstore.get(self._objects, PULSE, options={"if_none_match": seen} if seen else {}).meta["e_tag"]
        except NotModifiedError:
            return seen
        except NotInStore:
            return None

    def history(self, name: str) -> list[Release]:
        """Return every release of ``name``, oldest first, but for damaged records: :meth:`problems` names those."""
        found = []
        for generation in self._generations(name):
            with suppress(InvalidAdapter):
                found.append(self._release(name, generation))
        return found

    def problems(self) -> Iterator[tuple[str, int, str]]:
        """Yield (name, version, what is wrong) for every version whose files differ from its manifest or that is
        released and not there, and, as version 0, for every release record that cannot be read."""
        for name in filter(re.compile(NAME_PATTERN).fullmatch, self._children("")):
            versions, release = self.versions(name), None
            for generation in self._generations(name):
                try:
                    release = self._release(name, generation)
                except InvalidAdapter as error:
                    yield name, 0, str(error)
            for version in release.versions if release else ():
                if version not in versions:
                    yield name, version, "it is released and not in the store; release another version"
            for version in versions:
                try:
                    manifest, digest = self.manifest(name, version)
                except InvalidAdapter as error:
                    yield name, version, str(error)
                    continue
                with tempfile.TemporaryDirectory() as scratch:
                    for file in manifest.files:
                        content = self._get(_version_path(name, version, file))
                        if content is not None:
                            Path(scratch, file).write_bytes(content)
                    if damage := _damage(Path(scratch), manifest):
                        yield name, version, damage
                        continue
                    try:
                        self._check_signature(manifest, digest, Path(scratch))
                    except InvalidAdapter as error:
                        yield name, version, str(error).removeprefix(f"{name}@{version}: ")

    def _beat(self) -> None:
        """Change the pulse. The release is made: that nobody is told at once is no reason to call it failed."""
        with suppress(HotswapError), reachable(self.place):
            obstore.put(self._objects, PULSE, str(ULID()).encode(), use_multipart=False)

    def _check_signature(self, manifest: Manifest, digest: str, folder: Path) -> None:
        """Refuse undamaged files that no trusted key has signed. Once in a process: the digest covers all of them."""
        if self._trusted is None or digest in self._verified:
            return
        name, version = manifest.name, manifest.version
        content = self._get(_version_path(name, version, MANIFEST)) or b""
        try:
            if digest_of(content) != digest:
                raise InvalidAdapter("its manifest was altered; publish it again")
            signature = self._get(_version_path(name, version, SIGNATURE), at_most=MAX_SIGNATURE_BYTES)
            self._trusted.verify(folder, manifest.files, content, signature)
        except InvalidAdapter as error:
            self._manifests.pop((name, version), None)  # what was altered may be put right
            raise InvalidAdapter(f"{name}@{version}: {error}.") from error
        self._verified.add(digest)

    def _release(self, name: str, generation: int) -> Release:
        content = self._get(_release_path(name, generation))
        try:
            return Release.model_validate_json(content or b"").model_copy(update={"generation": generation})
        except ValidationError as error:
            raise InvalidAdapter(f"release {generation} of {name} is damaged; release again.") from error

    def _claimed(self, name: str) -> list[int]:
        return sorted(int(child) for child in self._children(f"{_checked(name)}/versions") if child.isdecimal())

    def _generations(self, name: str) -> list[int]:
        return self._numbers(name, "releases")

    def _numbers(self, name: str, kind: str) -> list[int]:
        """Return the numbers of an adapter's records of one kind, in order."""
        with reachable(self.place):
            listed = obstore.list_with_delimiter(self._objects, prefix=f"{_checked(name)}/{kind}")["objects"]
        found = [re.fullmatch(r"(\d+)\.json", entry["path"].rsplit("/", 1)[-1]) for entry in listed]
        return sorted(int(match[1]) for match in found if match)

    def _children(self, prefix: str) -> list[str]:
        with reachable(self.place):
            listed = obstore.list_with_delimiter(self._objects, prefix=prefix or None)
        return sorted(path.rsplit("/", 1)[-1] for path in listed["common_prefixes"])

    def _exists(self, path: str) -> bool:
        try:
            with reachable(self.place):
                obstore.head(self._objects, path)
        except NotInStore:
            return False
        return True

    def _get(self, path: str, *, at_most: int | None = None) -> bytes | None:
        """Return an object's bytes; none if there is none. Raises :class:`InvalidAdapter` for one too long."""
        try:
            with reachable(self.place):
                found = obstore.get(self._objects, path)
                if at_most is not None and found.meta["size"] > at_most:
                    raise InvalidAdapter(f"its {path.rsplit('/', 1)[-1]} is too long to be one; publish it again")
                return bytes(found.bytes())
        except NotInStore:
            return None

    def _create(self, path: str, content: bytes) -> bool:
        """Write unless it exists; return whether this call wrote it."""
        try:
            with reachable(self.place):
                obstore.put(self._objects, path, content, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        return True


def open_store(
    place: str | None = None, *, seed: Literal["default", "empty"] = "default", trusted: TrustedKeys | None = None
) -> Store:
    """Return the store at ``place``, or the project's own (``var/store``), which starts with the shipped adapters.

    ``seed="empty"`` puts them into any other empty folder too.
    """
    folder = Path(place).expanduser() if place and "://" not in place else None
    default = not place or (folder is not None and folder.resolve() == DEFAULT_STORE)
    target = DEFAULT_STORE if default else folder
    if target is not None and (default or seed == "empty"):
        with reachable(str(target)):
            _seed(target)
    return Store(target or place or DEFAULT_STORE, trusted=trusted)


def _seed(folder: Path) -> None:
    """Copy the starter adapters into ``folder`` if it has no adapters, or if a seeding of it was not finished.

    Each adapter is renamed into place when it is complete, and the scratch folder is removed last: what a
    kill leaves half done is finished the next time. It is inside ``folder``, which may be a mounted volume.
    """
    present = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    starters = [path for path in STARTER.iterdir() if path.is_dir()] if STARTER.is_dir() else []
    missing = [starter for starter in starters if starter.name not in present]
    unfinished = any(name.startswith(SEEDING) for name in present)
    if not missing or (any(re.fullmatch(NAME_PATTERN, name) for name in present) and not unfinished):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=SEEDING, dir=folder) as scratch:
        for starter in missing:
            shutil.copytree(starter, Path(scratch, starter.name))
            move_into_place(Path(scratch, starter.name), folder / starter.name)


def _version_path(name: str, version: int, file: str) -> str:
    return f"{_checked(name)}/versions/{version}/{file}"


def _release_path(name: str, generation: int) -> str:
    return f"{_checked(name)}/releases/{generation}.json"


def _expect(name: str, newest: int, expected: int | None) -> None:
    if expected not in (None, newest):
        raise GenerationConflict(f"{name} is at generation {newest}, not {expected}; look, then retry.")


def _user() -> str:
    """Return who runs this process. A container's user id may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _checked(name: str) -> str:
    """Refuse what is no name before it becomes part of a path."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise NotInStore("an adapter's name is made of a-z, 0-9, '.', '_' and '-', at most 64 of them.")
    return name


def _damage(folder: Path, manifest: Manifest) -> str | None:
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected.bytes or file_digest(path) != expected.digest:
            return f"{name} is damaged: its hash is not the one in the manifest"
    return None


@contextmanager
def _writable(cache: Path) -> Iterator[None]:
    """A disk that is full is no fault of the version's: it is tried again."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"the cache {cache} cannot be written: {error.strerror or error}; make room.") from error
