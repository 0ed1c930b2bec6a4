"""Length-prefixed messages on a pipe: 4 bytes, big-endian, then that many bytes. Every read has a maximum."""

from __future__ import annotations

import asyncio
import struct
from typing import BinaryIO

_LENGTH = struct.Struct(">I")


class FrameError(Exception):
    """The bytes are no frame, or the frame is longer than its reader accepts."""


def encode(body: bytes, *, maximum: int) -> bytes:
    """Return `body` as a frame. Raises FrameError when it is longer than `maximum` bytes."""
    if len(body) > maximum:
        raise FrameError(f"a message of {len(body)} bytes is over the limit of {maximum}")
    return _LENGTH.pack(len(body)) + body


def _length(header: bytes, maximum: int) -> int:
    length: int = _LENGTH.unpack(header)[0]
    if length > maximum:
        raise FrameError(f"a message of {length} bytes is over the limit of {maximum}")
    return length


async def read(reader: asyncio.StreamReader, *, maximum: int) -> bytes:
    """Return the next frame's body. Raises FrameError, and asyncio.IncompleteReadError at the pipe's end."""
    return await reader.readexactly(_length(await reader.readexactly(_LENGTH.size), maximum))


def read_blocking(pipe: BinaryIO, *, maximum: int) -> bytes | None:
    """Return the next frame's body, or None where the pipe ends between two frames. Raises FrameError."""
    header = pipe.read(_LENGTH.size)
    if not header:
        return None
    if len(header) < _LENGTH.size:
        raise FrameError("the pipe ended inside a length")
    length = _length(header, maximum)
    body = pipe.read(length)
    if len(body) < length:
        raise FrameError("the pipe ended inside a message")
    return body
