"""Extreme values for every scalar field of a request, however deep: what the wire can carry and a caller may try."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

_F = FieldDescriptor
_HUGE = 3 * 1024 * 1024
_MAX_DEPTH = 8
_DOUBLES = (math.nan, math.inf, -math.inf, 5e-324, -5e-324, 1.7976931348623157e308)
_SIGNED_32, _SIGNED_64 = (-(2**31), -1, 2**31 - 1), (-(2**63), -1, 2**63 - 1)
_UNSIGNED_32, _UNSIGNED_64 = (2**31, 2**32 - 1), (2**63 - 1, 2**63, 2**64 - 1)
_STRINGS = ("", "\0", "9" * 40, "models/tiny/versions/99999999999999999999", "\U0010ffff" * 60, "x" * _HUGE)
_BYTES = (b"", b"\0", b"\xff" * 32, b"\xff" * _HUGE)
_VALUES: dict[int, tuple[Any, ...]] = {
    _F.TYPE_DOUBLE: _DOUBLES,
    _F.TYPE_FLOAT: (math.nan, math.inf, -math.inf, 1e-45, -1e-45, 3.4028234663852886e38),
    _F.TYPE_INT32: _SIGNED_32,
    _F.TYPE_ENUM: _SIGNED_32,
    _F.TYPE_INT64: _SIGNED_64,
    _F.TYPE_UINT32: _UNSIGNED_32,
    _F.TYPE_UINT64: _UNSIGNED_64,
    _F.TYPE_BOOL: (),
    _F.TYPE_STRING: _STRINGS,
    _F.TYPE_BYTES: _BYTES,
}
# The last second that a timestamp may name, the longest duration, and what is beyond them or out of order within.
_LAST, _LONGEST = 253_402_300_799, 315_576_000_000
_NANOS = (-5, 1, 1_000_000_000, 2**31 - 1)
_SECONDS = (-(2**63), -62_135_596_801, 0, _LAST + 1, _LONGEST + 1, 2**63 - 1)
_TIMES = (*((seconds, 0) for seconds in _SECONDS), *((10, nanos) for nanos in _NANOS), (_LAST, 999_999_999))

Change = Callable[[Message], None]


def extremes(kind: Descriptor) -> Iterator[tuple[str, Change]]:
    """Yield each extreme of each field that a message of `kind` can hold: a path with the value, and how to set it.

    A change MUST be made to a copy of a valid request, so that what it meets first is the value.
    """
    yield from _of(kind, "", lambda message: message, 0)


def _of(kind: Descriptor, path: str, reach: Callable[[Message], Any], depth: int) -> Iterator[tuple[str, Change]]:
    for field in kind.fields:
        here = f"{path}{field.name}"
        inner = field.message_type
        if inner is None:
            for value in _VALUES[field.type]:
                yield f"{here}={_shown(value)}", _setter(reach, field, value)
        elif inner.GetOptions().map_entry:
            yield from _of_map(field, here, reach, depth)
        elif inner.full_name == Struct.DESCRIPTOR.full_name:
            for number, content in enumerate(_structs()):
                yield f"{here}=struct {number}", _merger(_step(reach, field), content)
        elif inner.full_name in (Timestamp.DESCRIPTOR.full_name, Duration.DESCRIPTOR.full_name):
            for seconds, nanos in _TIMES:
                yield f"{here}={seconds} s {nanos} ns", _time_setter(_step(reach, field), seconds, nanos)
        elif depth < _MAX_DEPTH:
            yield from _of(inner, f"{here}.", _step(reach, field), depth + 1)


def _of_map(
    field: FieldDescriptor, path: str, reach: Callable[[Message], Any], depth: int
) -> Iterator[tuple[str, Change]]:
    assert field.message_type is not None
    key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
    for item in _VALUES[key.type]:
        yield f"{path} key={_shown(item)}", _entry_setter(reach, field, item, None)
    if value.message_type is None:
        for item in _VALUES[value.type]:
            yield f"{path} value={_shown(item)}", _entry_setter(reach, field, "a", item)
    elif depth < _MAX_DEPTH:
        yield from _of(value.message_type, f"{path}[a].", lambda m: getattr(reach(m), field.name)["a"], depth + 1)


def _step(reach: Callable[[Message], Any], field: FieldDescriptor) -> Callable[[Message], Any]:
    """Return how to reach the message in `field`, the first of several; it is made where there is none."""

    def step(message: Message) -> Any:
        found = getattr(reach(message), field.name)
        if field.is_repeated:
            return found[0] if len(found) else found.add()
        found.SetInParent()
        return found

    return step


def _setter(reach: Callable[[Message], Any], field: FieldDescriptor, value: Any) -> Change:
    def change(message: Message) -> None:
        holder = reach(message)
        if field.is_repeated:
            getattr(holder, field.name)[:] = [value]
        else:
            setattr(holder, field.name, value)

    return change


def _entry_setter(reach: Callable[[Message], Any], field: FieldDescriptor, key: Any, value: Any) -> Change:
    def change(message: Message) -> None:
        entries = getattr(reach(message), field.name)
        if value is None:
            entries[key]  # makes the entry, with the default of its kind
        else:
            entries[key] = value

    return change


def _time_setter(reach: Callable[[Message], Any], seconds: int, nanos: int) -> Change:
    def change(message: Message) -> None:
        time = reach(message)
        time.seconds, time.nanos = seconds, nanos

    return change


def _merger(reach: Callable[[Message], Any], content: Struct) -> Change:
    return lambda message: reach(message).MergeFrom(content)


def _structs() -> Iterator[Struct]:
    for number in (*_DOUBLES, 2.0**53, 1e300):
        one = Struct()
        one.fields["x"].number_value = number
        yield one
    empty, deep, wide, name = Struct(), Struct(), Struct(), Struct()
    empty.fields["x"].Clear()
    level = deep
    for _ in range(25):
        level = level.fields["x"].struct_value
    level.fields["x"].number_value = math.nan
    wide.fields["x"].string_value = "x" * _HUGE
    name.fields["\0" * 9000].bool_value = True
    yield from (empty, deep, wide, name)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:20]}... of {len(value)}"
