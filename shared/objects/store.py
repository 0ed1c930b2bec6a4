"""The object store: ciphertext on any fsspec filesystem, written once and whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec.core
from fsspec.implementations.local import LocalFileSystem

from shared import errors
from shared.keys import KeyProvider, encrypt
from shared.keys.envelope import Header, read_header
from shared.keys.files import fsync_directory
from shared.objects.reference import ArtifactRef

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_MAX_SEGMENTS = 8
_TEMPORARY = re.compile(r"\.partial-[0-9a-f]{32}")  # no object's name starts with a dot
_READ_SIZE = 1 << 18


class StoreUnavailable(errors.Unavailable):
    """The filesystem under the object store failed or refused."""

    reason = "OBJECT_STORE_UNAVAILABLE"


class ObjectStore:
    """Immutable encrypted objects under one root.

    The content reaches the filesystem as `shared.keys.envelope` ciphertext only, bound to the object's name
    and to a `purpose` that readers MUST state alike. An object is visible whole or not at all: it is written
    under a temporary name in its directory, fsynced and linked into place; where the filesystem is not local,
    moved. Only the local filesystem refuses a taken name atomically, so elsewhere two writers MUST NOT share
    a name.
    """

    def __init__(self, url: str, keys: KeyProvider, *, use: str = "objects", **storage_options: Any) -> None:
        """Open the store at `url` (`file:///...`, `s3://...`), wrapping data keys under `use` of `keys`.

        A local root is made with mode 0700 where it is missing, in a directory that MUST exist. The
        `storage_options` are fsspec's. Raises `StoreUnavailable`.
        """
        self._filesystem, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False, **storage_options)
        self._local = isinstance(self._filesystem, LocalFileSystem)
        self._prefix = self._filesystem.unstrip_protocol(self._root).rstrip("/") + "/"
        self._keys = keys
        self._use = use
        try:
            if not self._local:
                self._filesystem.makedirs(self._root, exist_ok=True)
            elif not (root := Path(self._root)).is_dir():
                root.mkdir(mode=0o700, exist_ok=True)
                fsync_directory(root.parent)
        except OSError:
            raise StoreUnavailable("the root of the object store cannot be opened") from None

    def write(self, name: str, data: Iterable[bytes], *, purpose: str) -> ArtifactRef:
        """Store `data` under `name` and return its reference once it is durable.

        `name` is up to 8 segments of letters, digits, `_`, `.` and `-`, none starting with `.` or `-`. Raises
        `AlreadyExists` if it is taken, and whatever `data` raises; nothing is visible then.
        """
        path = self._path(name)
        directory = path.rpartition("/")[0]
        temporary = f"{directory}/.partial-{secrets.token_hex(16)}"
        plaintext = _Measured(data)
        encrypted = encrypt(plaintext, self._keys, use=self._use, purpose=purpose, name=name)
        with _filesystem_faults():
            self._refuse_taken(path)
            try:
                self._filesystem.makedirs(directory, exist_ok=True)
            except NotADirectoryError:  # one of the segments before the last is an object
                raise FileExistsError from None
        try:
            self._fill(temporary, encrypted.chunks)
            with _filesystem_faults():
                self._publish(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # what a failed removal leaves is for `sweep`
                self._filesystem.rm_file(temporary)
            raise
        return ArtifactRef(
            uri=self._prefix + name,
            digest=plaintext.digest(),
            size=plaintext.size,
            key_id=encrypted.key_id,
        )

    def read(self, ref: ArtifactRef, *, purpose: str, data_key: bytes | None = None) -> Iterator[bytes]:
        """Yield the plaintext in authentic chunks, checked against the digest and size of `ref` at the end.

        Callers MUST exhaust the iterator before they act on the data. `data_key` is what the owner's
        `OpenArtifact` gave; without it the store's own key provider is asked. Raises `DataLoss` if the object
        is not what was written, `NotFound`, `KeyDestroyed`, `InvalidArgument` for a URI outside this store.
        """
        name = self._name(ref)
        with self._open(ref) as (header, body):
            if data_key is None:
                data_key = header.unwrap(self._keys, use=self._use, purpose=purpose, name=name)
            plaintext = _Measured(header.decrypt(body, data_key, purpose=purpose, name=name))
            for chunk in plaintext:
                if plaintext.size > ref.size:
                    raise errors.DataLoss("the object is larger than its reference says")
                yield chunk
        if plaintext.size != ref.size or plaintext.digest() != ref.digest:
            raise errors.DataLoss("the object is not the one that its reference names")

    def read_bytes(self, ref: ArtifactRef, *, purpose: str, limit: int, data_key: bytes | None = None) -> bytes:
        """Return the whole plaintext; raises as `read` does, and `InvalidArgument` beyond `limit` bytes."""
        if ref.size > limit:
            raise errors.InvalidArgument("the object is larger than this reader accepts", field="size")
        return b"".join(self.read(ref, purpose=purpose, data_key=data_key))

    def data_key(self, ref: ArtifactRef, *, purpose: str) -> bytes:
        """Return this object's data key alone, for `OpenArtifact`; raises as `read` does."""
        with self._open(ref) as (header, _):
            return header.unwrap(self._keys, use=self._use, purpose=purpose, name=self._name(ref))

    def delete(self, ref: ArtifactRef) -> None:
        """Remove the object; raises `NotFound`. Copies in backups are the operator's to erase."""
        path = self._path(self._name(ref))
        with _filesystem_faults():
            self._filesystem.rm_file(path)
            if self._local:
                fsync_directory(Path(path).parent)

    def sweep(self, *, before: datetime) -> int:
        """Remove temporary files last written before `before` (aware) and return how many.

        Callers MUST leave room for the slowest write that may be under way in any process.
        """
        removed = 0
        with _filesystem_faults():
            for directory, _, names in self._filesystem.walk(self._root, on_error="raise"):
                for name in filter(_TEMPORARY.fullmatch, names):
                    path = f"{directory}/{name}"
                    with contextlib.suppress(FileNotFoundError):  # its writer has just finished
                        if self._filesystem.modified(path) < before:
                            self._filesystem.rm_file(path)
                            removed += 1
        return removed

    def _fill(self, temporary: str, chunks: Iterator[bytes]) -> None:
        with _filesystem_faults():
            file = self._filesystem.open(temporary, "wb")
        try:
            for chunk in chunks:  # outside the guard: what `data` raises is not the filesystem's fault
                with _filesystem_faults():
                    file.write(chunk)
            if self._local:
                with _filesystem_faults():
                    file.flush()
                    os.fsync(file.fileno())
        finally:
            with _filesystem_faults():
                file.close()

    def _publish(self, temporary: str, path: str) -> None:
        if self._local:
            Path(path).hardlink_to(temporary)  # unlike rename(2), link(2) fails where the name is taken
        else:
            self._refuse_taken(path)
        try:
            if self._local:
                Path(temporary).unlink()
                self._fsync_directories(Path(path).parent)
            else:
                self._filesystem.mv(temporary, path)
        except BaseException:  # the object may be there, but nobody will hold its reference
            with contextlib.suppress(OSError):
                self._filesystem.rm_file(path)
            raise

    def _fsync_directories(self, directory: Path) -> None:
        fsync_directory(directory)
        while directory != Path(self._root):  # directories may be as new as the object
            directory = directory.parent
            fsync_directory(directory)

    def _refuse_taken(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._filesystem.info(path)  # not `exists`, which takes every fault for absence
            raise FileExistsError

    @contextlib.contextmanager
    def _open(self, ref: ArtifactRef) -> Iterator[tuple[Header, Iterator[bytes]]]:
        path = self._path(self._name(ref))
        with _filesystem_faults():
            file = self._filesystem.open(path, "rb")
        with file:
            header, body = read_header(_blocks(file))
            if header.wrapped.key_id != ref.key_id:
                raise errors.DataLoss("the object is not the one that its reference names")
            yield header, body

    def _name(self, ref: ArtifactRef) -> str:
        if not ref.uri.startswith(self._prefix):
            raise errors.InvalidArgument("the URI is not in this store", field="uri")
        return ref.uri[len(self._prefix) :]

    def _path(self, name: str) -> str:
        segments = name.split("/")
        if len(segments) > _MAX_SEGMENTS or not all(map(_SEGMENT.fullmatch, segments)):
            raise errors.InvalidArgument("not the name of an object", field="name")
        return f"{self._root.rstrip('/')}/{name}"


class _Measured:
    """Passes chunks through, once, and knows afterwards how long they were and what they hashed to."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self._hash = hashlib.sha256()
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._hash.update(chunk)
            self.size += len(chunk)
            yield chunk

    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def _blocks(file: Any) -> Iterator[bytes]:
    while True:
        with _filesystem_faults():
            block = file.read(_READ_SIZE)
        if not block:
            return
        yield block


@contextlib.contextmanager
def _filesystem_faults() -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise errors.NotFound("no such object") from None
    except FileExistsError:
        raise errors.AlreadyExists("an object of that name exists") from None
    except OSError:
        raise StoreUnavailable("the object store failed") from None
