"""Every version of every adapter, for ever; and which of them is released.

    <name>/versions/<n>/adapter_config.json  …  manifest.json     manifest last: its presence is the commit
    <name>/versions/<n>/model.sig                                  of all the others, where versions are signed
    <name>/releases/<generation>.json                              append-only, numbered without gaps
    <name>/retired/<n>.json                                        that version is not to be served any more
    .pulse                                                         something else after every change

One primitive carries it all: create-if-absent. It claims a version number and a release generation, on a
disk, S3 and GCS alike, so that of two writers one wins and the other loses nothing. Nothing is ever edited but
the pulse, which is a hint: whoever has seen it need not look at every adapter to know that nothing was released.
"""

from __future__ import annotations

import getpass
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, NotModifiedError
from pydantic import ValidationError
from ulid import ULID

from adapters.cache import touch
from adapters.catalogue import Catalogue, Entry
from adapters.errors import Damaged, GenerationConflict, HotswapError, InvalidAdapter, NotInStore, StoreUnavailable
from adapters.listing import Listed, list_adapter, list_all
from adapters.manifest import Manifest, digest_of
from adapters.objects import open_objects, reachable
from adapters.packages import file_digest, move_into_place
from adapters.reference import is_name
from adapters.releases import NewRelease, Release
from adapters.signing import MANIFEST, MAX_SIGNATURE_BYTES, SIGNATURE, Signer, TrustedKeys
from adapters.validation import NEWER, by_a_newer_version, explain

T = TypeVar("T")
U = TypeVar("U")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PULSE = ".pulse"
# Of records in a bucket, each a round trip.
READS_AT_ONCE = 16


@dataclass(frozen=True)
class Stored:
    """A file of the store: its path, its size in bytes, and when it was written."""

    path: str
    size: int
    modified: datetime


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

    def catalogue(self, previous: Catalogue = Catalogue()) -> Catalogue:  # noqa: B008 - immutable
        """Return the store as it is now, from one listing; records that ``previous`` holds are not read again.

        Raises :class:`StoreUnavailable`, also where a store that held adapters holds none at all: a folder is not
        mounted, and nobody is to be told that the adapters do not exist.
        """
        with reachable(self.place):
            listed, odd = list_all(self._objects, self.folder)
        if previous.entries and not listed:
            raise StoreUnavailable(f"the store {self.place} is empty, and was not before: is it mounted?")
        changed, entries = [], {}
        for name, of_it in sorted(listed.items()):
            if not of_it.versions and not of_it.fault:
                continue
            known = previous.entries.get(name)
            entries[name] = entry = self._entry(name, of_it, known)
            if entry.release is None and entry.generation:
                changed.append(entry)
        for entry in _side_by_side(self._with_release, changed, remote=self.folder is None):
            entries[entry.name] = entry
        return Catalogue(entries, tuple(odd))

    def adapter(self, name: str) -> Entry:
        """Return one adapter as it is now; of an unknown one, an entry without versions."""
        return self._with_release(self._entry(name, self._listed(name)))

    def names(self) -> list[str]:
        """Return the adapters that have a committed version."""
        return [entry.name for entry in self.catalogue() if entry.versions]

    def versions(self, name: str) -> list[int]:
        """Return the committed versions of ``name``, oldest first; none for an unknown name."""
        return sorted(self._listed(name).versions)

    def manifest(self, name: str, version: int) -> tuple[Manifest, str]:
        """Return a version's manifest and its digest. Raises :class:`NotInStore`, :class:`InvalidAdapter`."""
        if (name, version) not in self._manifests:
            content = self.read(version_path(name, version, MANIFEST))
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

    def read_manifests(self, versions: Iterable[tuple[str, int]]) -> None:
        """Have these manifests at hand, as far as they can be read: from afar many are read at a time."""

        def read(version: tuple[str, int]) -> None:
            with suppress(InvalidAdapter, NotInStore):
                self.manifest(*version)

        list(_side_by_side(read, list(versions), remote=self.folder is None))

    def add(
        self, name: str, folder: Path, describe: Callable[[int], Manifest], *, signer: Signer | None = None
    ) -> Manifest:
        """Store the files that ``describe(version).files`` names, from ``folder``, as the next version.

        The number is claimed first and the manifest written last: what is killed in between leaves a number
        that is never used again, and no version.
        """
        config = (folder / CONFIG).read_bytes()
        version = max(self._listed(name).claimed, default=0) + 1
        while not self.create(version_path(name, version, CONFIG), config):
            version += 1
        manifest = describe(version)
        content = manifest.to_bytes()
        signature = signer.sign(folder, manifest.files, content) if signer else None
        for file in manifest.files:
            if file != CONFIG:
                self.write(version_path(name, version, file), folder / file)
        if signature is not None:
            self.create(version_path(name, version, SIGNATURE), signature)
        if not self.create(version_path(name, version, MANIFEST), content):
            raise StoreUnavailable(f"{name}@{version} was committed by someone else while it was being written.")
        self.beat()
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
            touch(kept)
            return kept
        with _writable(cache):
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
                staged = Path(scratch, "files")
                staged.mkdir()
                for file in manifest.files:
                    content = self.read(version_path(name, version, file))
                    if content is not None:
                        (staged / file).write_bytes(content)
                if damage := _damage(staged, manifest):
                    raise Damaged(f"{name}@{version}: {damage}; publish it again as a new version.")
                self._check_signature(manifest, digest, staged)
                if present:  # damaged: mended file by file, so that nobody who looks finds the folder gone
                    for file in manifest.files:
                        (staged / file).replace(kept / file)
                else:
                    move_into_place(staged, kept)
        return kept

    def release(self, name: str, new: NewRelease | int, *, expected_generation: int | None = None) -> Release:
        """Append a release record; a version alone is released to everyone.

        Raises :class:`NotInStore` for a version that is not there or retired, and :class:`GenerationConflict` where
        the newest generation is not ``expected_generation``, or another writer was first.
        """
        new = NewRelease(stable=new) if isinstance(new, int) else new
        listed = self._listed(name)
        for version in new.versions:
            if version not in listed.versions:
                raise NotInStore(f"{name}@{version} is not in the store.")
            self.manifest(name, version)
            if version in listed.retired:
                raise NotInStore(f"{name}@{version} was retired; release another version, or add it anew.")
        newest = max(listed.releases, default=0)
        _expect(name, newest, expected_generation)
        values = {**dict(new), "by": new.by or _user(), "at": datetime.now(UTC).replace(microsecond=0)}
        record = Release.model_construct(**values, generation=newest + 1)
        content = record.model_dump_json(exclude=None if record.step else {"step"}).encode() + b"\n"
        if not self.create(release_path(name, record.generation), content):
            raise GenerationConflict(
                f"someone else released generation {record.generation} of {name}; look, then retry."
            )
        self.beat()
        return record

    def rollback(
        self, name: str, *, expected_generation: int | None = None, by: str | None = None, why: str = ""
    ) -> Release:
        """Release again what was served before the newest release; of a guarded promotion, before its first step.

        Raises :class:`NotInStore` if nothing was, and :class:`GenerationConflict` as :meth:`release` does.
        """
        newest, previous = self.before(name)
        _expect(name, newest, expected_generation)
        again = previous.again(by=by, why=why or f"rollback of generation {newest}")
        return self.release(name, again, expected_generation=newest)

    def before(self, name: str) -> tuple[int, Release]:
        """Return the newest generation, and what a rollback of it would release again: what was served before it, all
        steps of one guarded promotion being one release. Raises :class:`NotInStore` if nothing was."""
        generations = sorted(self._listed(name).releases)
        if len(generations) < 2:
            raise NotInStore(f"{name} has no release to go back to.")
        earlier = reversed(generations)
        for generation in earlier:
            with suppress(InvalidAdapter):  # a damaged record is reason enough to go back
                if self._release(name, generation).step:
                    continue
            break
        previous = next(earlier, None)
        if previous is None:  # the promotion was the first release of all
            first = self._release(name, generations[0])
            return generations[-1], first.model_copy(update={"canary": None, "shadow": None, "guard": None})
        return generations[-1], self._release(name, previous)

    def superseded(self, name: str, generation: int) -> bool:
        """Whether there is a newer release than this one. One request: generations have no gaps."""
        return self._exists(release_path(name, generation + 1))

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
        self.create(retired_path(name, version), json.dumps(record).encode() + b"\n")
        self.beat()

    def released(self, name: str) -> Release | None:
        """Return the newest release of ``name``, if any. Raises :class:`InvalidAdapter` where it is damaged."""
        newest = max(self._listed(name).releases, default=0)
        return self._release(name, newest) if newest else None

    def pulse(self, seen: str | None = None) -> str | None:
        """Return what is different after every change; ``seen``, what was returned last, makes asking cheap.

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
        records = []
        for generation in sorted(self._listed(name).releases):
            with suppress(InvalidAdapter):
                records.append(self._release(name, generation))
        return records

    def problems(self) -> Iterator[tuple[str, int, str]]:
        """Yield (name, version, what is wrong) for every version whose files differ from its manifest or that is
        released and not there, and, as version 0, for every release record that cannot be read."""
        with reachable(self.place):
            listed, _ = list_all(self._objects, self.folder)
        for name, of_it in sorted(listed.items()):
            if of_it.fault:
                yield name, 0, of_it.fault
            versions, release = sorted(of_it.versions), None
            for generation in sorted(of_it.releases):
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
                        content = self.read(version_path(name, version, file))
                        if content is not None:
                            Path(scratch, file).write_bytes(content)
                    if damage := _damage(Path(scratch), manifest):
                        yield name, version, damage
                        continue
                    try:
                        self._check_signature(manifest, digest, Path(scratch))
                    except InvalidAdapter as error:
                        yield name, version, str(error).removeprefix(f"{name}@{version}: ")

    def listed(self) -> dict[str, Listed]:
        """Return every adapter's numbers, by name: what is committed, begun, released and retired."""
        with reachable(self.place):
            return list_all(self._objects, self.folder)[0]

    def files(self, name: str, version: int) -> list[Stored]:
        """Return what lies in a version's place, committed or not."""
        with reachable(self.place):
            chunks = obstore.list(self._objects, prefix=version_path(name, version, ""))
            return [Stored(file["path"], file["size"], file["last_modified"]) for chunk in chunks for file in chunk]

    def read(self, path: str, *, at_most: int | None = None) -> bytes | None:
        """Return the bytes at a path of the store; none if there is nothing.

        Raises :class:`InvalidAdapter` for more than ``at_most``.
        """
        try:
            with reachable(self.place):
                response = obstore.get(self._objects, path)
                if at_most is not None and response.meta["size"] > at_most:
                    raise InvalidAdapter(f"its {path.rsplit('/', 1)[-1]} is too long to be one; publish it again")
                return bytes(response.bytes())
        except NotInStore:
            return None

    def create(self, path: str, content: bytes) -> bool:
        """Write at a path of the store unless something is there; return whether this call wrote it."""
        try:
            with reachable(self.place):
                obstore.put(self._objects, path, content, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        self._make_durable(path)
        return True

    def write(self, path: str, file: Path) -> None:
        """Write a file at a path of the store, in the place of one that was written by halves."""
        with reachable(self.place):
            obstore.put(self._objects, path, file)
        self._make_durable(path)

    def remove(self, path: str) -> None:
        """Remove what is at a path. Nothing that can still be named is ever removed: see :mod:`adapters.garbage`."""
        with suppress(NotInStore), reachable(self.place):
            obstore.delete(self._objects, path)

    def beat(self) -> None:
        """Change the pulse. What was done is done: that nobody is told at once is no reason to call it failed."""
        with suppress(HotswapError), reachable(self.place):
            obstore.put(self._objects, PULSE, str(ULID()).encode(), use_multipart=False)

    def _check_signature(self, manifest: Manifest, digest: str, folder: Path) -> None:
        """Refuse undamaged files that no trusted key has signed. Once in a process: the digest covers all of them."""
        if self._trusted is None or digest in self._verified:
            return
        name, version = manifest.name, manifest.version
        content = self.read(version_path(name, version, MANIFEST)) or b""
        try:
            if digest_of(content) != digest:
                raise InvalidAdapter("its manifest was altered; publish it again")
            signature = self.read(version_path(name, version, SIGNATURE), at_most=MAX_SIGNATURE_BYTES)
            self._trusted.verify(folder, manifest.files, content, signature)
        except InvalidAdapter as error:
            self._manifests.pop((name, version), None)  # what was altered may be put right
            raise InvalidAdapter(f"{name}@{version}: {error}.") from error
        self._verified.add(digest)

    def _release(self, name: str, generation: int) -> Release:
        content = self.read(release_path(name, generation))
        try:
            return Release.model_validate_json(content or b"").model_copy(update={"generation": generation})
        except ValidationError as error:
            if by_a_newer_version(error):
                what = f"release {generation} of {name} cannot be read: {explain(error, Release)}{NEWER}"
                raise InvalidAdapter(what) from error
            raise InvalidAdapter(f"release {generation} of {name} is damaged; release again.") from error

    def _listed(self, name: str) -> Listed:
        with reachable(self.place):
            return list_adapter(self._objects, self.folder, _checked(name))

    def _entry(self, name: str, listed: Listed, known: Entry | None = None) -> Entry:
        """Return what a listing says of one adapter, with the release that is known already, if it is the newest."""
        generation = max(listed.releases, default=0)
        release = known.release if known and known.generation == generation and not known.fault else None
        retired = frozenset(listed.retired.difference(release.versions if release else ()))
        return Entry(name, tuple(sorted(listed.versions)), generation, release, retired, listed.fault)

    def _with_release(self, entry: Entry) -> Entry:
        if not entry.generation:
            return entry
        # A damaged record concerns its own adapter alone; a bucket's requests fail for others' reasons.
        its_own = (InvalidAdapter,) if self.folder is None else (InvalidAdapter, StoreUnavailable)
        try:
            release = self._release(entry.name, entry.generation)
        except its_own as error:
            return replace(entry, fault=str(error), release=self._before_faults(entry, its_own))
        return replace(entry, release=release, retired=entry.retired.difference(release.versions))

    def _before_faults(self, entry: Entry, faults: tuple[type[Exception], ...]) -> Release | None:
        """Return what was released before records that cannot be read, unless that was retired since."""
        for generation in range(entry.generation - 1, 0, -1):
            with suppress(*faults):
                release = self._release(entry.name, generation)
                # Nobody judges what is served for want of better.
                return (
                    release.model_copy(update={"guard": None}) if entry.retired.isdisjoint(release.versions) else None
                )
        return None

    def _make_durable(self, path: str) -> None:
        """Have a file of a local disk, and the folders that name it, survive a power cut."""
        if self.folder is not None:
            for place in (self.folder / path, *(self.folder / parent for parent in PurePosixPath(path).parents)):
                with reachable(self.place):
                    handle = os.open(place, os.O_RDONLY)
                    try:
                        os.fsync(handle)
                    finally:
                        os.close(handle)

    def _exists(self, path: str) -> bool:
        try:
            with reachable(self.place):
                obstore.head(self._objects, path)
        except NotInStore:
            return False
        return True


def version_path(name: str, version: int, file: str) -> str:
    return f"{_checked(name)}/versions/{version}/{file}"


def retired_path(name: str, version: int) -> str:
    return f"{_checked(name)}/retired/{version}.json"


def release_path(name: str, generation: int) -> str:
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


def _side_by_side(read: Callable[[T], U], what: list[T], *, remote: bool) -> Iterable[U]:
    """Read from afar many at a time: each is a round trip."""
    if not remote:
        return map(read, what)
    with ThreadPoolExecutor(READS_AT_ONCE) as pool:
        return list(pool.map(read, what))


def _checked(name: str) -> str:
    """Refuse what is no name before it becomes part of a path."""
    if not is_name(name):
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
