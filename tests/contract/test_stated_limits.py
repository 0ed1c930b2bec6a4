"""Limits that no rule of a single field can state, and that the contract states in words, are enforced alike."""

from __future__ import annotations

import os

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from bastide.audit.v1 import audit_pb2, audit_pb2_grpc, record_pb2
from bastide.policy_guard.v1 import guard_pb2, guard_pb2_grpc
from bastide.types.v1 import decision_pb2, principal_pb2
from tests.contract.world import World

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("contract"), pytest.mark.timeout(120)]

KIB = 1024


def record(kind: record_pb2.RecordKind.ValueType, *, lease: int = 0, sealed: int = 0) -> record_pb2.Record:
    """Return a record without a decision, or with `sealed` bytes of text of a person and one that keeps them."""
    made = record_pb2.Record(record_id=os.urandom(8).hex(), kind=kind, call_id=os.urandom(8).hex(), method="-")
    made.occurred_at.GetCurrentTime()
    if lease:
        made.lease.FromSeconds(lease)
    if sealed:
        made.principal.CopyFrom(principal_pb2.Principal(subject="limit@example.org", tenant="default"))
        made.sealed_text = bytes(sealed)
        keeping = decision_pb2.Decision(obligations=decision_pb2.Obligations(retain_text=True))
        made.decision.CopyFrom(decision_pb2.SignedDecision(decision=keeping.SerializeToString(), signature=bytes(64)))
    return made


async def refused_field(call: grpc.aio.UnaryUnaryCall[Message, Message]) -> str:
    """Return the field that the refusal of `call` names; empty where it is taken."""
    if await call.code() is grpc.StatusCode.OK:
        return ""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT, refused.value.details()
    status, info = rpc_status.from_call(refused.value), error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    return info.metadata["field"]


async def append(world: World, *records: record_pb2.Record) -> str:
    stub = audit_pb2_grpc.AuditServiceStub(world.suite.channel("audit", "policy-guard"))
    return await refused_field(stub.AppendRecords(audit_pb2.AppendRecordsRequest(records=records), timeout=20))


async def check_access(world: World, **attributes: object) -> str:
    stub = guard_pb2_grpc.GuardServiceStub(world.suite.channel("policy-guard", "audit"))
    request = guard_pb2.CheckAccessRequest(
        token=world.everyone.token, workload=world.suite.workload("cli"), method="/x/y", action="audit.record.list"
    )
    request.resource.attributes.update(attributes)
    return await refused_field(stub.CheckAccess(request, timeout=20))


@pytest.mark.parametrize(
    ("kind", "lease", "field"),
    [
        (record_pb2.RECORD_KIND_AUTHORISED, 10, "records.decision"),
        (record_pb2.RECORD_KIND_ACCESS, 0, "records.decision"),
        (record_pb2.RECORD_KIND_DENIED, 0, "records.decision"),
        (record_pb2.RECORD_KIND_AUTHORISED, 0, "records.lease"),
        (record_pb2.RECORD_KIND_CHANGED, 10, "records.lease"),
        (record_pb2.RECORD_KIND_INTERRUPTED, 0, "records.kind"),
        (record_pb2.RECORD_KIND_CHANGE, 0, ""),
        (record_pb2.RECORD_KIND_CHANGED, 0, ""),
        (record_pb2.RECORD_KIND_SYSTEM, 0, ""),
    ],
)
async def test_a_record_without_what_its_kind_needs_is_refused(
    world: World, kind: record_pb2.RecordKind.ValueType, lease: int, field: str
) -> None:
    before = await world.suite.head()
    wanted = record(kind, lease=lease)
    assert await append(world, record(record_pb2.RECORD_KIND_SYSTEM), wanted) == field
    found = {item.record_id for item in await world.suite.records_since(before)}
    assert (wanted.record_id in found) == (not field)


async def test_records_are_together_at_most_three_mib(world: World) -> None:
    large = [record(record_pb2.RECORD_KIND_SYSTEM, sealed=895 * KIB) for _ in range(4)]
    assert await append(world, *large) == "records"
    assert await append(world, *large[:3]) == ""


async def test_facts_about_a_resource_are_at_most_eight_kib_of_canonical_json(world: World) -> None:
    text = "x" * (8 * KIB - len('{"fact":""}'))
    assert await check_access(world, fact=text) == ""
    assert await check_access(world, fact=text + "x") == "resource.attributes"
    assert await check_access(world, fact="x" * 20 * KIB) == "resource.attributes"
    assert await check_access(world, fact=float("nan")) == "resource.attributes"
