"""A policy bundle: Rego modules and one data document, under a revision that is the digest of both.

On disk a bundle is a directory (`services/policy_guard/policies` is the default one); between processes and in the
record store it is OPA's bundle format, a gzipped tar with `.manifest`, `data.json` and the modules
(https://www.openpolicyagent.org/docs/latest/management-bundles/). The revision also stands in the data, as
`data.bastide.revision`, so that every result can carry it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import rfc8785

from services.policy_guard import documents
from services.policy_guard.documents import BundleError
from services.policy_guard.lint import TEST_SUFFIX

ROOTS = ("bastide", "samples", "schemas")
"""Top-level names of the data tree that a bundle owns, as its manifest declares them."""

MAX_FILES = 512
MAX_FILE_BYTES = 1 << 20
MAX_TOTAL_BYTES = 8 << 20
MAX_ARCHIVE_BYTES = 2 << 20
MAX_UNPACKED_BYTES = 10 << 20

_DATA_NAMES = frozenset({"data.json", "data.yaml"})


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Rego modules (path -> source) and data. Build it with `read_directory` or `read_archive` only."""

    modules: Mapping[str, str]
    """Every `.rego` file, tests included, by its path in the bundle."""
    data: Mapping[str, Any]
    """The merged data documents, without the revision."""
    revision: str = field(init=False)
    """`sha256:` and the hex digest of the canonical contents (RFC 8785 JSON of modules, data and roots)."""

    def __post_init__(self) -> None:
        """Compute the revision. Raises BundleError where the data has no canonical form."""
        contents: Any = {"data": self.data, "modules": dict(self.modules), "roots": list(ROOTS)}
        try:
            digest = hashlib.sha256(rfc8785.dumps(contents)).hexdigest()
        except (rfc8785.CanonicalizationError, RecursionError):
            raise BundleError("the data holds a value without a canonical form") from None
        object.__setattr__(self, "revision", f"sha256:{digest}")

    @property
    def rules(self) -> dict[str, str]:
        """The modules that decide: all but the tests."""
        return {path: text for path, text in self.modules.items() if not path.endswith(TEST_SUFFIX)}

    @property
    def served_data(self) -> dict[str, Any]:
        """The data as engines serve it: with the revision in it."""
        return {**self.data, "bastide": {**self.data.get("bastide", {}), "revision": self.revision}}

    def archive(self, *, tests: bool = True) -> bytes:
        """Return the bundle in OPA's format, byte for byte the same for the same revision."""
        files = {
            ".manifest": rfc8785.dumps({"revision": self.revision, "roots": list(ROOTS), "rego_version": 1}),
            "data.json": rfc8785.dumps(self.served_data),
        } | {path: text.encode() for path, text in (self.modules if tests else self.rules).items()}
        packed = io.BytesIO()
        with (
            gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as compressed,
            tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for path, content in sorted(files.items()):
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        return packed.getvalue()


def read_directory(root: Path) -> Bundle:
    """Read a bundle from its directory; other files than Rego modules and data documents are not part of it.

    Raises BundleError for a link, a file over its limit, or a document that is malformed or given twice.
    """
    files: dict[str, bytes] = {}
    for path in sorted(root.rglob("*")):
        if path.name not in _DATA_NAMES and path.suffix != ".rego":
            continue
        name = path.relative_to(root).as_posix()
        if path.is_symlink() or not path.is_file():
            raise BundleError("only plain files belong in a bundle", where=name)
        with path.open("rb") as file:
            files[name] = file.read(MAX_FILE_BYTES + 1)
        _check_bounds(files, name)
    return _assemble(files)


def read_archive(archive: bytes) -> Bundle:
    """Read and verify a bundle in OPA's format.

    Raises BundleError where the archive is malformed, over a limit, leaves its root, or where the revision that its
    manifest or data states is not the digest of what it holds.
    """
    if len(archive) > MAX_ARCHIVE_BYTES:
        raise BundleError("the archive is over its limit")
    files: dict[str, bytes] = {}
    try:
        # Unpacked up to its bound before anything looks inside, so that headers cannot claim more memory either.
        with gzip.GzipFile(fileobj=io.BytesIO(archive)) as compressed:
            unpacked = compressed.read(MAX_UNPACKED_BYTES + 1)
        if len(unpacked) > MAX_UNPACKED_BYTES:
            raise BundleError("the archive unpacks to more than its limit")
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as tar:
            for member in tar:
                _read_member(tar, member, files)
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error):
        raise BundleError("not a gzipped tar archive") from None
    manifest = documents.parse_json(files.pop(".manifest", b""), where=".manifest")
    if not isinstance(manifest, dict):
        raise BundleError("not an object", where=".manifest")
    stated = _take_revision(files)
    bundle = _assemble(files)
    if manifest.get("revision") != bundle.revision or stated != bundle.revision:
        raise BundleError("the stated revision is not the digest of the contents", where=".manifest")
    return bundle


def _read_member(tar: tarfile.TarFile, member: tarfile.TarInfo, files: dict[str, bytes]) -> None:
    path = PurePosixPath(member.name)
    name = path.as_posix().removeprefix("/")
    if ".." in path.parts or not member.isreg() or name in files:
        raise BundleError("only distinct plain files inside the bundle belong in it", where=name)
    content = tar.extractfile(member)
    assert content is not None
    files[name] = content.read(MAX_FILE_BYTES + 1)
    _check_bounds(files, name)


def _check_bounds(files: Mapping[str, bytes], name: str) -> None:
    if len(files[name]) > MAX_FILE_BYTES:
        raise BundleError("the file is over its limit", where=name)
    if len(files) > MAX_FILES or sum(map(len, files.values())) > MAX_TOTAL_BYTES:
        raise BundleError("the bundle is over its limit")


def _take_revision(files: dict[str, bytes]) -> object:
    root = documents.parse_json(files.get("data.json", b""), where="data.json")
    bastide = root.get("bastide") if isinstance(root, dict) else None
    stated = bastide.pop("revision", None) if isinstance(bastide, dict) else None
    files["data.json"] = rfc8785.dumps(root)
    return stated


def _assemble(files: Mapping[str, bytes]) -> Bundle:
    modules: dict[str, str] = {}
    data: dict[str, Any] = {}
    for name, content in sorted(files.items()):
        path = PurePosixPath(name)
        if path.suffix == ".rego":
            try:
                modules[name] = content.decode()
            except UnicodeDecodeError:
                raise BundleError("not UTF-8", where=name) from None
        elif path.name in _DATA_NAMES:
            documents.mount(data, path.parent.parts, documents.parse(content, where=name), where=name)
        else:
            raise BundleError("neither a Rego module nor a data document", where=name)
    if not set(data) <= set(ROOTS):
        raise BundleError("data outside the bundle's roots", where=", ".join(sorted(set(data) - set(ROOTS))))
    if isinstance(data.get("bastide"), dict) and "revision" in data["bastide"]:
        raise BundleError("the revision is computed, never given", where="bastide.revision")
    return Bundle(modules=modules, data=data)
