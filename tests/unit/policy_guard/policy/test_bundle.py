import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.policy_guard import bundle, documents
from services.policy_guard.bundle import Bundle, read_archive, read_directory
from services.policy_guard.documents import BundleError
from shared import errors
from tests.unit.policy_guard.policy.conftest import DEFAULT

SMALL = Bundle(modules={"bastide/a/a.rego": "package bastide.a\n"}, data={"bastide": {"x": [1, "é", None]}})


def tar(*entries: tuple[tarfile.TarInfo | str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for entry, content in entries:
            info = tarfile.TarInfo(entry) if isinstance(entry, str) else entry
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def manifest(revision: str) -> bytes:
    return json.dumps({"revision": revision, "roots": list(bundle.ROOTS)}).encode()


def link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize("original", [SMALL, DEFAULT], ids=["small", "default"])
def test_an_archive_reads_back_as_the_same_bundle(original: Bundle) -> None:
    again = read_archive(original.archive())
    assert again == original
    assert again.revision == original.revision
    assert again.archive() == original.archive()


def test_the_served_archive_has_the_revision_but_no_tests() -> None:
    with tarfile.open(fileobj=io.BytesIO(DEFAULT.archive(tests=False)), mode="r:gz") as archive:
        names = archive.getnames()
        data = json.load(archive.extractfile("data.json"))
        stated = json.load(archive.extractfile(".manifest"))
    assert not any(name.endswith("_test.rego") for name in names)
    assert data["bastide"]["revision"] == stated["revision"] == DEFAULT.revision


def test_every_change_of_content_changes_the_revision() -> None:
    revisions = {
        SMALL.revision,
        Bundle(modules={**SMALL.modules, "bastide/a/a.rego": "package bastide.a\n\n"}, data=SMALL.data).revision,
        Bundle(modules={**SMALL.modules, "bastide/a/a_test.rego": ""}, data=SMALL.data).revision,
        Bundle(modules=SMALL.modules, data={"bastide": {"x": [1, "é", False]}}).revision,
    }
    assert len(revisions) == 4


@pytest.mark.parametrize(
    "archive",
    [
        b"",
        b"not gzip",
        gzip.compress(b"not tar" * 100),
        SMALL.archive()[:-20],
        tar((".manifest", b"[]"), ("data.json", b"{}")),
        tar((".manifest", manifest(SMALL.revision)), ("data.json", b"{}")),
        tar(("data.json", b'{"bastide": {"revision": "sha256:1"}}')),
        tar(("../data.json", b"{}")),
        tar(("bastide/../../data.json", b"{}")),
        tar((link("data.json", tarfile.SYMTYPE), b"")),
        tar((link("data.json", tarfile.LNKTYPE), b"")),
        tar((link("data.json", tarfile.CHRTYPE), b"")),
        tar(("bastide/a/a.rego", b"package bastide.a"), ("bastide/a/a.rego", b"package bastide.b")),
        tar(("bastide/a.rego", b"\xff")),
        tar(("bastide/run.sh", b"#!/bin/sh")),
        tar(("elsewhere/data.json", b"{}"), (".manifest", b"{}")),
        tar(("a.rego", b"x" * (bundle.MAX_FILE_BYTES + 1))),
        tar(*((f"bastide/{n}.rego", b"") for n in range(bundle.MAX_FILES + 1))),
        gzip.compress(bytes(bundle.MAX_UNPACKED_BYTES + 1)),
        bytes(bundle.MAX_ARCHIVE_BYTES + 1),
    ],
    # An archive carries the time it was packed at, and every xdist worker must name a test alike.
    ids=lambda archive: f"{len(archive)} bytes",
)
def test_an_archive_that_is_not_wholly_a_bundle_is_refused(archive: bytes) -> None:
    with pytest.raises(BundleError):
        read_archive(archive)


def test_an_altered_archive_is_refused() -> None:
    with tarfile.open(fileobj=io.BytesIO(SMALL.archive()), mode="r:gz") as archive:
        files = {name: archive.extractfile(name).read() for name in archive.getnames()}
    files["bastide/a/a.rego"] += b"\nallow := true\n"
    with pytest.raises(BundleError):
        read_archive(tar(*files.items()))


@given(st.binary(max_size=512))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    for candidate in (data, gzip.compress(data)):
        with pytest.raises(BundleError):
            read_archive(candidate)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_directory_mounts_documents_where_they_lie(tmp_path: Path) -> None:
    files = {
        "bastide/roles/data.yaml": "user: {clearance: PUBLIC}\n",
        "schemas/access/data.json": '{"type": "object"}',
        "bastide/a/a.rego": "package bastide.a\n",
        "README.md": "not part of it",
    }
    read = read_directory(write(tmp_path, files))
    assert read.data == {
        "bastide": {"roles": {"user": {"clearance": "PUBLIC"}}},
        "schemas": {"access": {"type": "object"}},
    }
    assert list(read.modules) == ["bastide/a/a.rego"]


@pytest.mark.parametrize(
    "files",
    [
        {"data.yaml": "bastide: {roles: {user: 1}}\n", "bastide/roles/data.yaml": "user: 2\n"},
        {"bastide/data.yaml": "roles: 1\n", "bastide/roles/data.yaml": "user: 2\n"},
        {"bastide/data.yaml": "- 1\n"},
        {"bastide/data.yaml": "revision: x\n"},
        {"other/data.yaml": "a: 1\n"},
        {"bastide/data.json": '{"a": 1, "a": 2}'},
        {"bastide/data.json": '{"a": 12345678901234567890}'},
    ],
)
def test_a_directory_that_contradicts_itself_or_its_roots_is_refused(tmp_path: Path, files: dict[str, str]) -> None:
    with pytest.raises(BundleError):
        read_directory(write(tmp_path, files))


def test_a_link_in_a_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.rego").symlink_to("/etc/passwd")
    with pytest.raises(BundleError):
        read_directory(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2\n",
        "a: &x [1]\nb: *x\n",
        "<<: {a: 1}\n",
        "1: a\n",
        "a: 2026-01-01\n",
        "a: !!python/object:os.system {}\n",
        "a: .inf\n",
        "a: !!binary aGk=\n",
        "? [a]\n: 1\n",
        "a: [\n",
        "a: 1\n---\nb: 2\n",
        "\x00",
        "a: " + "[" * 40 + "]" * 40 + "\n",
    ],
)
def test_yaml_beyond_json_is_refused(text: str) -> None:
    with pytest.raises(BundleError):
        documents.parse_yaml(text.encode(), where="data.yaml")


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', "[1e999]", "{", "", "[" * 5000])
def test_json_that_reads_two_ways_is_refused(text: str) -> None:
    with pytest.raises(BundleError):
        documents.parse_json(text.encode(), where="data.json")


@pytest.mark.parametrize("content", [b"[", b"[]", b'{"a": 1, "a": 2}', b"\xff", b"[" * 5000])
def test_input_that_is_no_object_is_refused_naming_its_field(content: bytes) -> None:
    with pytest.raises(errors.InvalidArgument) as refused:
        documents.parse_input(content)
    assert refused.value.field == "input"
    assert not isinstance(refused.value, BundleError)


@given(st.text(max_size=64))
def test_arbitrary_text_is_plain_data_or_refused(text: str) -> None:
    for parse in (documents.parse_json, documents.parse_yaml):
        try:
            value = parse(text.encode(errors="replace"), where="x")
        except BundleError:
            continue
        json.dumps(value, allow_nan=False)
