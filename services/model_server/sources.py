"""What an import reads: a directory of safetensors or one GGUF file, checked and copied before anything parses it.

The files lie where other people write. Each is read once, into sealed memory; its digest is over the very bytes that
are parsed, and nothing that happens to it later changes or ends anything here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import itertools
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import rfc8785

from services.model_server.architectures import UnsupportedModel
from shared import errors

_PICKLE = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".msgpack", ".h5"})
_CODE = frozenset({".py", ".pyc", ".pyi", ".ipynb", ".sh", ".so", ".dll", ".dylib", ".exe"})
_KNOWN_NAMES = frozenset(
    {
        *("config.json", "generation_config.json", "chat_template.jinja", "model.safetensors.index.json"),
        *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
        *("vocab.json", "merges.txt", ".gitattributes"),
    }
)
_KNOWN_PREFIXES = ("README", "LICENSE", "NOTICE", "USE_POLICY")
_MAX_FILES = 256  # each takes a file descriptor
_READ_SIZE = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe would keep who opens it waiting
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A model file inside an installed Python distribution."""

    path: Path
    name: str
    version: str
    license: str | None


@dataclass(frozen=True, kw_only=True)
class SourceFiles:
    """The files of one model by name, as paths of read-only memory; they end with the block that read them.

    `digest` is the file's `sha256:` digest; for several, that of the RFC 8785 object of their digests by name.
    """

    files: Mapping[str, Path]
    digest: str


def packaged_model(distribution: str) -> PackagedModel:
    """Return the one GGUF file that the installed `distribution` carries, without importing its code.

    Raises `NotFound` if it is not installed, `UnsupportedModel` unless it carries exactly one GGUF file.
    """
    try:
        installed = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise errors.NotFound("no such distribution is installed") from None
    found = [file for file in installed.files or () if file.suffix == ".gguf"]
    if len(found) != 1:
        raise UnsupportedModel("the distribution does not carry exactly one GGUF file")
    metadata = installed.metadata
    return PackagedModel(
        path=Path(str(installed.locate_file(found[0]))).resolve(),
        name=f"pypi:{metadata['Name']}",
        version=installed.version,
        license=next((metadata[key] for key in ("License-Expression", "License") if key in metadata), None),
    )


@contextlib.contextmanager
def read_source(path: Path, *, max_bytes: int) -> Iterator[SourceFiles]:
    """Read the model at `path`, a file or a flat directory, into memory for the length of the block (Linux only).

    No link is followed but one beside its target. Raises `UnsupportedModel`, saying why, for pickles, code, links
    that lead outside, anything that is not a plain file of a known kind or cannot be read, more than `max_bytes` in
    all, and files that change meanwhile; `NotFound` if there is nothing.
    """
    with contextlib.ExitStack() as held:
        folder, names = _open_folder(path, held)
        if len(names) > _MAX_FILES:
            raise UnsupportedModel("the model has too many files")
        targets = {name: _target(path, folder, name) for name in names}
        before = {name: _checked(folder, name, target) for name, target in targets.items()}
        if sum(state.st_size for state in before.values()) > max_bytes:
            raise UnsupportedModel(f"the model is larger than {max_bytes} bytes")
        files: dict[str, Path] = {}
        digests: dict[str, str] = {}
        for name, target in targets.items():
            files[name], digests[name] = _read(folder, target, before[name], held)
        for name, target in targets.items():  # the files belong together
            if _identity(_checked(folder, name, target)) != _identity(before[name]):
                raise _changed()
        digest = next(iter(digests.values())) if len(digests) == 1 else _sha256(rfc8785.dumps(dict(digests)))
        yield SourceFiles(files=files, digest=digest)


def _open_folder(path: Path, held: contextlib.ExitStack) -> tuple[int, list[str]]:
    """Return the folder that holds the model, open, and the names of the model's files in it."""
    try:
        try:
            folder = os.open(path, _FOLDER | os.O_NOFOLLOW)
            held.callback(os.close, folder)
            with os.scandir(folder) as entries:
                return folder, sorted(entry.name for entry in itertools.islice(entries, _MAX_FILES + 1))
        except NotADirectoryError:
            folder = os.open(path.parent, _FOLDER)
            held.callback(os.close, folder)
            return folder, [path.name]
    except OSError:
        raise errors.NotFound("there is no model at that path") from None


def _target(path: Path, folder: int, name: str) -> str:
    """Return the name of the file in `folder` that `name` is, or is a link to."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UnsupportedModel("the model holds a file whose name is not UTF-8") from None
    with _refusing(name):
        if not stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
            return name
        here = Path(os.path.realpath(path))
        target = Path(os.path.realpath(here / name))
    if target.parent != here:
        raise UnsupportedModel("the model holds a link that leads outside its directory")
    return target.name


def _checked(folder: int, name: str, target: str) -> os.stat_result:
    """Return the state of a file of the model; raises `UnsupportedModel` for what a model may not hold."""
    with _refusing(name):
        state = os.stat(target, dir_fd=folder, follow_symlinks=False)
    if not stat.S_ISREG(state.st_mode):
        raise UnsupportedModel("the model holds something that is not a plain file")
    suffix = Path(name).suffix.lower()
    if suffix in _PICKLE:
        raise UnsupportedModel("pickled and other unsafe weight formats are refused; use safetensors or GGUF")
    if suffix in _CODE:
        raise UnsupportedModel("a model that brings its own code is refused")
    known = name in _KNOWN_NAMES or name.startswith(_KNOWN_PREFIXES)
    if not known and suffix not in {".safetensors", ".gguf"}:
        raise UnsupportedModel("the model holds a file of an unknown kind")
    return state


def _read(folder: int, target: str, state: os.stat_result, held: contextlib.ExitStack) -> tuple[Path, str]:
    """Copy a file into sealed memory that `held` ends, and return its path there and its digest."""
    digest = hashlib.sha256()
    memory = os.memfd_create("bastide-import", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    held.callback(os.close, memory)
    with _refusing(target):
        source = os.fdopen(os.open(target, _FILE, dir_fd=folder), "rb")
    with source, os.fdopen(memory, "wb", closefd=False) as copy:
        if _identity(os.fstat(source.fileno())) != _identity(state):
            raise _changed()
        left = state.st_size
        while left:
            with _refusing(target):
                block = source.read(min(left, _READ_SIZE))
            if not block:
                raise _changed()
            digest.update(block)
            copy.write(block)
            left -= len(block)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
    return Path(f"/proc/self/fd/{memory}"), f"sha256:{digest.hexdigest()}"


def _identity(state: os.stat_result) -> tuple[int, ...]:
    """Return what is equal twice if a file did not change in between; nobody can set its time of change (ctime)."""
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


@contextlib.contextmanager
def _refusing(name: str) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise UnsupportedModel(f"{name} cannot be read, or is no longer there") from None


def _changed() -> UnsupportedModel:
    return UnsupportedModel("the model's files changed while they were read")


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
