import asyncio
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.child import frames


def feed(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


@given(st.lists(st.binary(max_size=64), max_size=8))
def test_frames_round_trip_on_both_readers(bodies: list[bytes]) -> None:
    stream = b"".join(frames.encode(body, maximum=64) for body in bodies)
    pipe = io.BytesIO(stream)
    assert [frames.read_blocking(pipe, maximum=64) for _ in bodies] == bodies
    assert frames.read_blocking(pipe, maximum=64) is None

    async def drain() -> list[bytes]:
        reader = feed(stream)
        return [await frames.read(reader, maximum=64) for _ in bodies]

    assert asyncio.run(drain()) == bodies


@given(st.binary(max_size=96))
def test_arbitrary_bytes_give_a_bounded_body_or_an_error(data: bytes) -> None:
    try:
        body = frames.read_blocking(io.BytesIO(data), maximum=64)
    except frames.FrameError:
        return
    assert body is None or len(body) <= 64


def test_a_body_over_the_maximum_is_refused_by_writer_and_reader() -> None:
    with pytest.raises(frames.FrameError):
        frames.encode(b"x" * 65, maximum=64)
    with pytest.raises(frames.FrameError):
        frames.read_blocking(io.BytesIO(frames.encode(b"x" * 65, maximum=65)), maximum=64)


async def test_a_stream_that_ends_inside_a_frame_is_an_error() -> None:
    with pytest.raises(asyncio.IncompleteReadError):
        await frames.read(feed(frames.encode(b"abc", maximum=64)[:-1]), maximum=64)
