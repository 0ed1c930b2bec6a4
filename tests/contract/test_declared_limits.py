"""Every field of every request has a limit in the contract, built or not: none is bounded by luck."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import protovalidate
import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from bastide.audit.v1 import audit_pb2
from bastide.policy_guard.v1 import guard_pb2
from shared.errors import InvalidArgument
from shared.rpc.call import MAX_MESSAGE_BYTES
from shared.rpc.validation import validate
from tests.suite import ROOT

_F = FieldDescriptor
_GENERATED = ROOT / "protos" / "gen"
_MANY = 2_049
_LONG = {_F.TYPE_STRING: "x" * MAX_MESSAGE_BYTES, _F.TYPE_BYTES: bytes(MAX_MESSAGE_BYTES)}
# 32-bit numbers fit wherever they are taken; of a floating one NaN and infinity must be refused.
_BEYOND = {
    **{kind: (value,) for kind, value in _LONG.items()},
    _F.TYPE_UINT64: (2**64 - 1,),
    _F.TYPE_INT64: (2**63 - 1, -(2**63)),
    _F.TYPE_FLOAT: (math.nan, math.inf),
    _F.TYPE_DOUBLE: (math.nan, math.inf),
    _F.TYPE_ENUM: (2**31 - 1,),
}
_TIMES = (Timestamp.DESCRIPTOR.full_name, Duration.DESCRIPTOR.full_name)
# A tree of any shape: the guard measures it as canonical JSON.
_UNDECLARED = {"bastide.policy_guard.v1.Resource.attributes"}


def fields() -> Iterator[FieldDescriptor]:
    """Yield each field that a request of any service can hold, once."""
    seen: set[str] = set()
    for path in sorted(_GENERATED.rglob("*_pb2.py")):
        module = importlib.import_module(".".join(path.relative_to(_GENERATED).with_suffix("").parts))
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield from _fields(method.input_type, seen)


def _fields(kind: Descriptor, seen: set[str]) -> Iterator[FieldDescriptor]:
    if kind.full_name in seen or not kind.full_name.startswith("bastide."):
        return
    seen.add(kind.full_name)
    for field in kind.fields:
        yield field
        if (inner := field.message_type) is not None:
            value = inner.fields_by_name["value"].message_type if inner.GetOptions().map_entry else inner
            if value is not None:
                yield from _fields(value, seen)


def refused(field: FieldDescriptor, change: Callable[[Any, str], None]) -> bool:
    """Return whether a message with that change breaks a rule of `field`."""
    message = message_factory.GetMessageClass(field.containing_type)()
    change(message, field.name)
    violations = [item.proto.field for item in protovalidate.collect_violations(message)]
    return any(path is not None and path.elements[0].field_name == field.name for path in violations if path)


def unlimited(field: FieldDescriptor) -> Iterator[str]:
    """Yield what `field` takes without limit."""
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        yield from _unlimited_map(field, inner)
        return
    if field.is_repeated and not refused(field, _many(field)):
        yield "items"
    for value in _BEYOND.get(field.type, ()):
        if not refused(field, _put(field, value)):
            yield str(value)[:20]
    if inner is not None and inner.full_name in _TIMES:
        for seconds in (2**62, -(2**62)):
            if not refused(
                field, lambda message, name, seconds=seconds: setattr(getattr(message, name), "seconds", seconds)
            ):
                yield f"{seconds} s"


def _unlimited_map(field: FieldDescriptor, entry: Descriptor) -> Iterator[str]:
    key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]

    def entries(*keys: str, content: Any = None) -> Callable[[Any, str], None]:
        def change(message: Any, name: str) -> None:
            for item in keys:
                getattr(message, name)[item]  # makes the entry
                if content is not None:
                    getattr(message, name)[item] = content

        return change

    if not refused(field, entries(*map(str, range(_MANY)))):
        yield "entries"
    if key.type in _LONG and not refused(field, entries(str(_LONG[key.type]))):
        yield "keys"
    if value.type in _LONG and not refused(field, entries("x", content=_LONG[value.type])):
        yield "values"


def _many(field: FieldDescriptor) -> Callable[[Any, str], None]:
    item = {_F.TYPE_STRING: "", _F.TYPE_BYTES: b""}.get(field.type, 0)

    def change(message: Any, name: str) -> None:
        for _ in range(_MANY):
            getattr(message, name).add() if field.message_type is not None else getattr(message, name).append(item)

    return change


def _put(field: FieldDescriptor, value: Any) -> Callable[[Any, str], None]:
    def change(message: Any, name: str) -> None:
        getattr(message, name).append(value) if field.is_repeated else setattr(message, name, value)

    return change


def test_every_field_of_every_request_declares_its_limit() -> None:
    found = {field.full_name: tuple(unlimited(field)) for field in fields() if field.full_name not in _UNDECLARED}
    assert len(found) > 400
    assert {name: limits for name, limits in found.items() if limits} == {}
    assert all(descriptor_pool.Default().FindFieldByName(name) for name in _UNDECLARED)


def _since(seconds: int, nanos: int) -> Message:
    request = audit_pb2.ListRecordsRequest()
    request.filter.since.seconds, request.filter.since.nanos = seconds, nanos
    return request


def _reserve(seconds: int, nanos: int) -> Message:
    request = guard_pb2.GuardInferenceRequest(reserve=guard_pb2.Reserve(max_new_tokens=1))
    request.reserve.lease.seconds, request.reserve.lease.nanos = seconds, nanos
    return request


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (_since(253_402_300_800, 0), "filter.since"),
        (_since(-1, 0), "filter.since"),
        (_since(10, -5), "filter.since.nanos"),
        (_since(10, 1_000_000_000), "filter.since.nanos"),
        (_reserve(0, 500_000_000), "reserve.lease"),
        (_reserve(3600, 1), "reserve.lease"),
        (_reserve(10, -5), "reserve.lease.nanos"),
        (_reserve(10, 1_000_000_000), "reserve.lease.nanos"),
    ],
    ids=str,
)
def test_a_time_out_of_range_or_order_is_refused_by_its_name(request_: Message, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        validate(request_)
    assert caught.value.metadata["field"] == field


@pytest.mark.parametrize(
    "sound", [_since(0, 0), _since(253_402_300_799, 999_999_999), _reserve(1, 0), _reserve(3600, 0)]
)
def test_a_time_at_the_ends_of_its_range_is_taken(sound: Message) -> None:
    validate(sound)
