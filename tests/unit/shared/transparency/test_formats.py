"""Notes, checkpoints, proofs, paths and bundles: known answers, round trips, and strictness."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.transparency.checkpoint import Checkpoint, sign_checkpoint, verify_checkpoint
from shared.transparency.commitment import commit, new_salt, verify_commitment
from shared.transparency.encoding import decode_base64, decode_decimal
from shared.transparency.errors import Malformed, Unverified
from shared.transparency.merkle import hash_leaf
from shared.transparency.note import Signer, Verifier, open_note
from shared.transparency.proof import TlogProof
from shared.transparency.tiles import TileId, bundle_path, decode_bundle, encode_bundle, tile_path
from shared.transparency.tree import Tree

# The example key and note of golang.org/x/mod/sumdb/note.
GO_SKEY = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
GO_SIGNATURE = (
    "\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
SIGNER = Signer("log.example/audit", bytes(range(32)))
OTHER = Signer("log.example/audit", bytes(32))


def test_a_note_equals_the_one_that_go_makes() -> None:
    signer = Signer.parse(GO_SKEY)
    assert signer.verifier.vkey == GO_VKEY
    assert signer.skey == GO_SKEY
    assert signer.sign(GO_TEXT) == f"{GO_TEXT}\n{GO_SIGNATURE}"
    assert open_note(f"{GO_TEXT}\n{GO_SIGNATURE}", [Verifier.parse(GO_VKEY)]) == GO_TEXT


def test_a_signing_key_never_shows_itself() -> None:
    assert GO_SKEY[40:60] not in repr(Signer.parse(GO_SKEY))
    with pytest.raises(Malformed) as caught:
        Signer.parse(GO_SKEY.replace("c74f20a3", "c74f20a4"))
    assert "AYEK" not in str(caught.value)


@given(st.integers(0, len(GO_TEXT + GO_SIGNATURE)), st.characters())
def test_no_changed_character_of_a_note_is_accepted(at: int, character: str) -> None:
    note = f"{GO_TEXT}\n{GO_SIGNATURE}"
    changed = note[:at] + character + note[at + 1 :]
    if changed == note:
        return
    with pytest.raises((Malformed, Unverified)):
        open_note(changed, [Verifier.parse(GO_VKEY)])


def test_unknown_signatures_are_ignored_and_known_bad_ones_refused() -> None:
    cosigned = SIGNER.sign("text\n") + OTHER.sign("text\n").split("\n\n")[1]
    assert open_note(cosigned, [SIGNER.verifier]) == "text\n"
    assert open_note(cosigned, [OTHER.verifier, SIGNER.verifier]) == "text\n"
    forged = SIGNER.sign("text\n") + OTHER.sign("other\n").split("\n\n")[1]
    with pytest.raises(Unverified):
        open_note(forged, [OTHER.verifier, SIGNER.verifier])
    with pytest.raises(Unverified):
        open_note(SIGNER.sign("text\n"), [OTHER.verifier])
    with pytest.raises(Unverified):
        open_note(SIGNER.sign("text\n"), [])


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "name",
        "name+00000000+AQ==",
        GO_VKEY + "\n",
        GO_VKEY.replace("c7", "C7"),
        GO_VKEY.replace("Peter", "Peter "),
        GO_VKEY.replace("+AR", "+BR"),
        GO_VKEY[:-1],
    ],
)
def test_a_bent_key_is_refused(vkey: str) -> None:
    with pytest.raises(Malformed):
        Verifier.parse(vkey)


@given(st.text(max_size=300))
def test_arbitrary_text_never_verifies(text: str) -> None:
    with pytest.raises((Malformed, Unverified)):
        open_note(text, [SIGNER.verifier])
    with pytest.raises((Malformed, Unverified)):
        verify_checkpoint(text, SIGNER.verifier)
    with pytest.raises(Malformed):
        TlogProof.parse(text)


def test_oversized_notes_are_refused_before_they_are_read() -> None:
    with pytest.raises(Malformed):
        open_note("a" * 70_000, [SIGNER.verifier])
    many = SIGNER.sign("t\n") + OTHER.sign("t\n").split("\n\n")[1] * 64
    with pytest.raises(Malformed):
        open_note(many, [SIGNER.verifier])


CHECKPOINT = Checkpoint(origin=SIGNER.name, size=7, root=hash_leaf(b"x"))


@given(st.integers(1, 2**63 - 1), st.binary(min_size=32, max_size=32))
def test_a_checkpoint_round_trips(size: int, root: bytes) -> None:
    checkpoint = Checkpoint(origin=SIGNER.name, size=size, root=root)
    assert verify_checkpoint(sign_checkpoint(checkpoint, SIGNER), SIGNER.verifier) == checkpoint
    with pytest.raises(Unverified):
        verify_checkpoint(sign_checkpoint(checkpoint, SIGNER), OTHER.verifier)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "origin\n7\n",
        CHECKPOINT.text.replace("\n7\n", "\n07\n"),
        CHECKPOINT.text.replace("\n7\n", "\n-7\n"),
        CHECKPOINT.text.replace("\n7\n", "\n\u0667\n"),
        CHECKPOINT.text.replace("\n7\n", "\n9223372036854775808\n"),
        CHECKPOINT.text.replace("\n7\n", "\n0\n"),
        CHECKPOINT.text.replace("=", ""),
        CHECKPOINT.text + "\n",
        CHECKPOINT.text[:-1],
        "\n" + CHECKPOINT.text,
    ],
)
def test_a_bent_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        Checkpoint.parse(text)


def test_a_checkpoint_of_another_origin_is_refused() -> None:
    note = SIGNER.sign(CHECKPOINT.text.replace(SIGNER.name, "log.example/other"))
    with pytest.raises(Unverified):
        verify_checkpoint(note, SIGNER.verifier)
    with pytest.raises(ValueError):
        sign_checkpoint(Checkpoint(origin="other", size=1, root=bytes(32)), SIGNER)


@given(
    st.integers(0, 2**63 - 1),
    st.lists(st.binary(min_size=32, max_size=32), max_size=64),
    st.none() | st.binary(max_size=200),
)
def test_a_proof_round_trips(index: int, hashes: list[bytes], extra: bytes | None) -> None:
    proof = TlogProof(index=index, hashes=tuple(hashes), checkpoint=sign_checkpoint(CHECKPOINT, SIGNER), extra=extra)
    assert TlogProof.parse(proof.encode()) == proof


def test_a_proof_is_spelt_as_the_specification_says_and_verifies() -> None:
    tree = Tree()
    tree.append(hash_leaf(b"a"))
    tree.append(hash_leaf(b"b"))
    note = sign_checkpoint(Checkpoint(origin=SIGNER.name, size=2, root=tree.root()), SIGNER)
    proof = TlogProof(index=1, hashes=(hash_leaf(b"a"),), checkpoint=note, extra=b"hi")
    sibling = base64.b64encode(hash_leaf(b"a")).decode()
    assert proof.encode() == f"c2sp.org/tlog-proof@v1\nextra aGk=\nindex 1\n{sibling}\n\n{note}"
    assert TlogProof.parse(proof.encode()).verify(b"b", SIGNER.verifier).size == 2
    for leaf, log in ((b"a", SIGNER.verifier), (b"b", OTHER.verifier)):
        with pytest.raises(Unverified):
            proof.verify(leaf, log)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("@v1", "@v2"),
        ("index 3", "index 03"),
        ("index 3", "Index 3"),
        ("index 3\n", "index 3\nindex 3\n"),
        ("extra aGk=\n", "extra aGk\n"),
        ("extra aGk=\n", "extra aGl=\n"),
        ("extra aGk=\nindex 3\n", "index 3\nextra aGk=\n"),
        ("AAAA", "AAA"),
    ],
)
def test_a_bent_proof_is_refused(old: str, new: str) -> None:
    note = sign_checkpoint(CHECKPOINT, SIGNER)
    text = TlogProof(index=3, hashes=(bytes(32),), checkpoint=note, extra=b"hi").encode()
    assert old in text
    with pytest.raises(Malformed):
        TlogProof.parse(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("number", "path"),
    [(0, "000"), (7, "007"), (999, "999"), (1000, "x001/000"), (1_234_067, "x001/x234/067")],
)
def test_paths_are_those_of_the_specification(number: int, path: str) -> None:
    assert tile_path(TileId(1, number), 256) == f"tile/1/{path}"
    assert tile_path(TileId(1, number), 17) == f"tile/1/{path}.p/17"
    assert bundle_path(number, 256) == f"tile/entries/{path}"


@given(st.lists(st.binary(max_size=300), max_size=256))
def test_a_bundle_round_trips_and_a_torn_one_is_refused(leaves: list[bytes]) -> None:
    data = encode_bundle(leaves)
    assert decode_bundle(data, len(leaves)) == leaves
    for bent, width in (
        (data, len(leaves) + 1),
        (data + b"\0", len(leaves)),
        (data[:-1] or b"\0", len(leaves)),
    ):
        with pytest.raises(Malformed):
            decode_bundle(bent, width)


@given(st.binary(max_size=100), st.integers(0, 10))
def test_arbitrary_bundles_are_read_exactly_or_refused(data: bytes, width: int) -> None:
    try:
        leaves = decode_bundle(data, width)
    except Malformed:
        return
    assert encode_bundle(leaves) == data
    assert len(leaves) == width


@given(st.text(max_size=30))
def test_scalars_have_one_spelling(text: str) -> None:
    try:
        assert str(decode_decimal(text)) == text
    except Malformed:
        assert not (text.isascii() and text.isdigit() and str(int(text)) == text and int(text) < 2**63)
    try:
        decode_base64(text)
    except Malformed:
        return
    assert len(text) % 4 == 0


def test_a_commitment_binds_content_to_its_salt() -> None:
    salt = new_salt()
    commitment = commit(b"prompt", salt)
    verify_commitment(commitment, b"prompt", salt)
    for content, other in ((b"prompt2", salt), (b"prompt", new_salt()), (b"prompt", b"")):
        with pytest.raises(Unverified):
            verify_commitment(commitment, content, other)
