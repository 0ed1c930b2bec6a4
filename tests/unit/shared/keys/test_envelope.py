from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import errors
from shared.keys import FileKeyProvider, decrypt, encrypt, seal, unseal
from shared.keys.envelope import MAX_SEALED_SIZE, read_header
from shared.keys.stream import TAG_SIZE

CHUNK = 8
PLAINTEXT = bytes(range(4 * CHUNK))  # four full chunks: the boundaries are where truncation hides
BOUND = {"use": "objects", "purpose": "weights", "name": "models/one"}


def encrypted(keys: FileKeyProvider, plaintext: bytes = PLAINTEXT, **changed: str) -> bytes:
    return b"".join(encrypt([plaintext], keys, **{**BOUND, **changed}, chunk_size=CHUNK).chunks)


def decrypted(keys: FileKeyProvider, ciphertext: bytes, **changed: str) -> bytes:
    return b"".join(decrypt([ciphertext], keys, **{**BOUND, **changed}))


def decrypted_with(data_key: bytes, ciphertext: bytes) -> bytes:
    header, body = read_header([ciphertext])
    return b"".join(header.decrypt(body, data_key, purpose=BOUND["purpose"], name=BOUND["name"]))


def parts(ciphertext: bytes) -> tuple[bytes, list[bytes]]:
    header = bytes(read_header([ciphertext])[0])
    body = ciphertext[len(header) :]
    size = CHUNK + TAG_SIZE
    return header, [body[at : at + size] for at in range(0, len(body), size)]


def refused(keys: FileKeyProvider, ciphertext: bytes) -> bool:
    """Whether decryption refuses, having yielded nothing but a true prefix."""
    yielded = bytearray()
    try:
        for chunk in decrypt([ciphertext], keys, **BOUND):
            yielded += chunk
    except errors.DataLoss:
        return PLAINTEXT.startswith(yielded) and yielded != PLAINTEXT
    return False


@given(
    pieces=st.lists(st.binary(max_size=40), max_size=8),
    chunk_size=st.integers(1, 24),
    cut=st.integers(1, 64),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_round_trip_however_input_and_ciphertext_are_cut(
    keys: FileKeyProvider, pieces: list[bytes], chunk_size: int, cut: int
) -> None:
    ciphertext = b"".join(encrypt(pieces, keys, **BOUND, chunk_size=chunk_size).chunks)
    recut = [ciphertext[at : at + cut] for at in range(0, len(ciphertext), cut)]
    assert b"".join(decrypt(recut, keys, **BOUND)) == b"".join(pieces)


@given(garbage=st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_garbage_is_refused(keys: FileKeyProvider, garbage: bytes) -> None:
    for data in (garbage, b"BASTIDE\x01" + garbage):
        with pytest.raises(errors.DataLoss):
            decrypted(keys, data)


def test_flip_of_any_bit_of_any_byte_is_refused(keys: FileKeyProvider) -> None:
    ciphertext = encrypted(keys)
    for position, bit in itertools.product(range(len(ciphertext)), (0x01, 0x20, 0x80)):
        altered = bytearray(ciphertext)
        altered[position] ^= bit
        assert refused(keys, bytes(altered)), position


def test_header_altered_for_a_holder_of_the_data_key_is_refused(keys: FileKeyProvider) -> None:
    ciphertext = encrypted(keys)
    header, _ = read_header([ciphertext])
    data_key = header.unwrap(keys, **BOUND)
    for position in range(len(bytes(header))):
        altered = bytearray(ciphertext)
        altered[position] ^= 1
        with pytest.raises(errors.DataLoss):
            decrypted_with(data_key, bytes(altered))
    assert decrypted_with(data_key, ciphertext) == PLAINTEXT


def test_every_truncation_is_refused(keys: FileKeyProvider) -> None:
    ciphertext = encrypted(keys)
    for length in range(len(ciphertext)):
        assert refused(keys, ciphertext[:length]), length


def test_appended_bytes_are_refused(keys: FileKeyProvider) -> None:
    ciphertext = encrypted(keys)
    header, chunks = parts(ciphertext)
    for tail in (b"\0", b"\0" * TAG_SIZE, chunks[0], chunks[-1], ciphertext, bytes(1000)):
        assert refused(keys, ciphertext + tail)
    assert refused(keys, header + ciphertext)


def test_reordered_repeated_and_dropped_chunks_are_refused(keys: FileKeyProvider) -> None:
    header, chunks = parts(encrypted(keys))
    assert len(chunks) == 4
    sequences = itertools.chain.from_iterable(itertools.product(range(4), repeat=n) for n in range(6))
    for sequence in sequences:
        if sequence != (0, 1, 2, 3):
            assert refused(keys, header + b"".join(chunks[i] for i in sequence)), sequence


def test_chunks_and_headers_of_two_objects_do_not_mix(keys: FileKeyProvider) -> None:
    header, chunks = parts(encrypted(keys))
    other_header, other_chunks = parts(encrypted(keys))
    assert refused(keys, other_header + b"".join(chunks))
    for position in range(4):
        mixed = [*chunks[:position], other_chunks[position], *chunks[position + 1 :]]
        assert refused(keys, header + b"".join(mixed))


@pytest.mark.parametrize("changed", [{"purpose": "dataset"}, {"name": "models/two"}, {"use": "sealed"}])
def test_another_purpose_name_or_use_does_not_open(keys: FileKeyProvider, changed: dict[str, str]) -> None:
    with pytest.raises(errors.DataLoss):
        decrypted(keys, encrypted(keys), **changed)
    with pytest.raises(errors.DataLoss):
        decrypted(keys, encrypted(keys, **changed))


def test_boundary_between_purpose_and_name_is_bound(keys: FileKeyProvider) -> None:
    with pytest.raises(errors.DataLoss):
        decrypted(keys, encrypted(keys, purpose="ab", name="c"), purpose="a", name="bc")


def test_no_chunk_is_yielded_after_a_refused_one(keys: FileKeyProvider) -> None:
    header, chunks = parts(encrypted(keys))
    chunks[1] = bytes(len(chunks[1]))
    reader = decrypt([header, *chunks], keys, **BOUND)
    assert next(reader) == PLAINTEXT[:CHUNK]
    with pytest.raises(errors.DataLoss):
        next(reader)
    assert list(reader) == []


def test_encryption_streams(keys: FileKeyProvider) -> None:
    taken = 0

    def source() -> Iterator[bytes]:
        nonlocal taken
        while True:  # endless: only a stream gets anywhere
            taken += 1
            yield bytes(CHUNK)

    chunks = encrypt(source(), keys, **BOUND, chunk_size=CHUNK).chunks
    assert len(list(itertools.islice(chunks, 10))) == 10
    assert taken <= 11


def test_same_plaintext_never_gives_the_same_ciphertext(keys: FileKeyProvider) -> None:
    assert not set(parts(encrypted(keys))[1]) & set(parts(encrypted(keys))[1])


@pytest.mark.parametrize("chunk_size", [0, -1, (1 << 20) + 1])
def test_chunk_size_is_bounded(keys: FileKeyProvider, chunk_size: int) -> None:
    with pytest.raises(errors.InvalidArgument):
        encrypt([b""], keys, **BOUND, chunk_size=chunk_size)


@given(value=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_sealed_value_opens_in_its_place_only(keys: FileKeyProvider, value: bytes) -> None:
    sealed = seal(value, keys, use="sealed", purpose="prompt", name="row/1")
    assert len(sealed) <= len(value) + 130
    assert unseal(sealed, keys, use="sealed", purpose="prompt", name="row/1") == value
    with pytest.raises(errors.DataLoss):
        unseal(sealed, keys, use="sealed", purpose="prompt", name="row/2")


def test_large_value_is_not_sealed(keys: FileKeyProvider) -> None:
    with pytest.raises(errors.InvalidArgument):
        seal(bytes(MAX_SEALED_SIZE + 1), keys, use="sealed", purpose="prompt", name="row/1")


def test_header_is_read_without_reading_on(keys: FileKeyProvider, tmp_path: Path) -> None:
    ciphertext = encrypted(keys)
    read: list[int] = []

    def source() -> Iterable[bytes]:
        for byte in ciphertext:
            read.append(byte)
            yield bytes([byte])

    header, body = read_header(source())
    assert len(read) == len(bytes(header))
    assert b"".join([bytes(header), *body]) == ciphertext
