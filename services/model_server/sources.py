"""What an import reads: a directory of safetensors or one GGUF file, checked before anything parses it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import stat
from collections.abc import Iterable
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
_MAX_FILES = 1024
_READ_SIZE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A model file inside an installed Python distribution."""

    path: Path
    name: str
    version: str
    license: str | None


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
        path=Path(str(installed.locate_file(found[0]))),
        name=f"pypi:{metadata['Name']}",
        version=installed.version,
        license=next((metadata[key] for key in ("License-Expression", "License") if key in metadata), None),
    )


def regular_files(path: Path, *, max_bytes: int) -> dict[str, Path]:
    """Return the files of the model at `path`, a file or a flat directory, by name.

    Raises `UnsupportedModel`, saying why, for pickles, code, links that lead outside, anything that is not a
    plain file of a known kind, and more than `max_bytes` in all; `NotFound` if there is nothing.
    """
    try:
        root = path.resolve(strict=True)
        entries = sorted(root.iterdir()) if root.is_dir() else [root]
    except (OSError, RuntimeError):
        raise errors.NotFound("there is no model at that path") from None
    if len(entries) > _MAX_FILES:
        raise UnsupportedModel("the model has too many files")
    files = {entry.name: _checked(entry, root) for entry in entries}
    if sum(file.stat().st_size for file in files.values()) > max_bytes:
        raise UnsupportedModel(f"the model is larger than {max_bytes} bytes")
    return files


def fingerprint(files: Iterable[Path]) -> tuple[tuple[int, int, int, int], ...]:
    """Return device, inode, size and time of change of each file: equal twice if none changed in between."""
    states = [file.stat() for file in files]
    return tuple((state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns) for state in states)


def source_digest(files: dict[str, Path]) -> str:
    """Return the file's `sha256:` digest; for several, that of the RFC 8785 object of their digests by name."""
    digests = {name: _digest(file) for name, file in files.items()}
    if len(digests) == 1:
        return next(iter(digests.values()))
    return f"sha256:{hashlib.sha256(rfc8785.dumps(dict(digests))).hexdigest()}"


def _checked(entry: Path, root: Path) -> Path:
    try:
        file = entry.resolve(strict=True)
        mode = file.stat().st_mode
    except (OSError, RuntimeError):
        raise UnsupportedModel("the model holds a broken link") from None
    if not file.is_relative_to(root):
        raise UnsupportedModel("the model holds a link that leads outside its directory")
    if not stat.S_ISREG(mode):
        raise UnsupportedModel("the model holds something that is not a plain file")
    suffix = entry.suffix.lower()
    if suffix in _PICKLE:
        raise UnsupportedModel("pickled and other unsafe weight formats are refused; use safetensors or GGUF")
    if suffix in _CODE:
        raise UnsupportedModel("a model that brings its own code is refused")
    known = entry.name in _KNOWN_NAMES or entry.name.startswith(_KNOWN_PREFIXES)
    if not known and suffix not in {".safetensors", ".gguf"}:
        raise UnsupportedModel("the model holds a file of an unknown kind")
    return file


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_READ_SIZE):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"
