"""What a request must be before a handler sees it: within the limits that its contract declares."""

from __future__ import annotations

import functools
from typing import Any

import protovalidate
from google.protobuf.descriptor import Descriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from shared.errors import InvalidArgument

_TIMES = (Timestamp.DESCRIPTOR.full_name, Duration.DESCRIPTOR.full_name)
_SECOND_NANOS = 1_000_000_000


def validate(message: Message) -> None:
    """Check `message` against the limits that its contract declares. Raises InvalidArgument naming the first field.

    Beyond protovalidate's rules, which weigh a time as the sum of its parts, `nanos` of a timestamp is 0 to
    999,999,999 and that of a duration less than a second with the sign of its seconds (google/protobuf/timestamp.proto,
    duration.proto): whatever else converts times refuses to read others.
    """
    violations = protovalidate.collect_violations(message, fail_fast=True)
    if violations:
        field = _path(violations[0].proto.field)
        raise InvalidArgument(f"{field}: {violations[0].proto.message}", field=field)
    if _holds_times(message.DESCRIPTOR):
        _check_times(message, "")


def _check_times(message: Message, path: str) -> None:
    if isinstance(message, Timestamp | Duration):
        if not _in_order(message):
            at = f"{path}.nanos"
            raise InvalidArgument(f"{at}: not the nanoseconds of a {message.DESCRIPTOR.name}", field=at)
        return
    for field, value in message.ListFields():
        if field.message_type is None or not _holds_times(field.message_type):
            continue
        name = f"{path}.{field.name}" if path else field.name
        if not field.is_repeated:
            _check_times(value, name)
            continue
        items = value.items() if field.message_type.GetOptions().map_entry else enumerate(value)
        for key, item in items:
            _check_times(item, f"{name}[{key}]")


def _in_order(time: Timestamp | Duration) -> bool:
    if isinstance(time, Timestamp):
        return 0 <= time.nanos < _SECOND_NANOS
    return abs(time.nanos) < _SECOND_NANOS and time.seconds * time.nanos >= 0


@functools.cache
def _holds_times(kind: Descriptor) -> bool:
    """Whether a message of `kind` can hold a time, however deep."""
    found, waiting = {kind.full_name}, [kind]
    while waiting:
        for field in waiting.pop().fields:
            inner = field.message_type
            if inner is not None and inner.full_name not in found:
                found.add(inner.full_name)
                waiting.append(inner)
    return not found.isdisjoint(_TIMES)


def _path(path: Any) -> str:
    """Spell a violation's field path as the contract does: `call.messages[0].content`."""
    text = ""
    for element in path.elements if path is not None else ():
        text += ("." if text else "") + element.field_name
        subscript = element.subscript
        if subscript is not None:
            text += f"[{subscript.value}]"
    return text or "request"
