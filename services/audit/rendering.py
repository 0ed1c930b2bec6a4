"""Between the contract's messages and the log's entries."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from bastide.audit.v1 import audit_pb2, record_pb2
from bastide.types.v1 import decision_pb2, principal_pb2
from services.audit import entry
from services.audit.search import Filter
from shared.errors import InvalidArgument

_KINDS = {
    value: name.removeprefix("RECORD_KIND_").lower()
    for name, value in record_pb2.RecordKind.items()
    if value != record_pb2.RECORD_KIND_UNSPECIFIED
}
_KIND_VALUES = {name: value for value, name in _KINDS.items()}
# What the guard alone can have said.
_DECIDED = (record_pb2.RECORD_KIND_AUTHORISED, record_pb2.RECORD_KIND_ACCESS, record_pb2.RECORD_KIND_DENIED)
# What the leaf must not hold: personal facts, text, and what the entry has a place of its own for.
_OUTSIDE = ("record_id", "kind", "principal", "opening", "sealed_text")


def to_entry(
    record: record_pb2.Record, *, writer: str, pseudonym: str, sealed: tuple[entry.Sealed, ...], now: dt.datetime
) -> entry.Entry:
    """Return `record` as the log takes it. Raises InvalidArgument."""
    lease = record.lease.ToTimedelta() if record.HasField("lease") else None
    if (lease is not None) != (record.kind == record_pb2.RECORD_KIND_AUTHORISED):
        raise InvalidArgument("AUTHORISED records have a lease, others none", field="records.lease")
    if record.kind in _DECIDED and not record.HasField("decision"):
        raise InvalidArgument("AUTHORISED, ACCESS and DENIED records embed the decision", field="records.decision")
    decision = _decision(record)
    if record.sealed_text and not decision.obligations.retain_text:
        raise InvalidArgument("text is kept where the decision says so", field="records.sealed_text")
    if not pseudonym and (record.HasField("opening") or record.sealed_text):
        raise InvalidArgument("what is sealed is sealed for a principal", field="records.principal")
    if record.kind == record_pb2.RECORD_KIND_INTERRUPTED:
        raise InvalidArgument("only the audit service writes INTERRUPTED", field="records.kind")
    return entry.Entry(
        writer=writer,
        record_id=record.record_id,
        kind=_KINDS[record.kind],
        data=_facts(record),
        call_id=record.call_id,
        decision_id=decision.decision_id,
        tenant=record.principal.tenant,
        principal=pseudonym,
        model=record.inference.model,
        method=record.method,
        outcome=record.reason or "OK",
        lease_expires=None if lease is None else now + lease,
        sealed=sealed,
    )


def _facts(record: record_pb2.Record) -> dict[str, Any]:
    """Return the record as proto3 JSON with the contract's field names, without what belongs outside the leaf."""
    kept = record_pb2.Record()
    kept.CopyFrom(record)
    for field in _OUTSIDE:
        kept.ClearField(field)  # type: ignore[arg-type]  # the stubs know the names as literals only
    for commitment in kept.commitments:
        commitment.ClearField("salt")
    facts: dict[str, Any] = json_format.MessageToDict(kept, preserving_proto_field_name=True)
    if record.HasField("principal"):
        facts["principal"] = {
            "kind": principal_pb2.PrincipalKind.Name(record.principal.kind),
            "roles": list(record.principal.roles),
            "amr": list(record.principal.amr),
            "workload": record.principal.workload.spiffe_id,
        }
    return facts


def _decision(record: record_pb2.Record) -> decision_pb2.Decision:
    """The decision that `record` embeds; without one an empty decision, which allows nothing."""
    try:
        return decision_pb2.Decision.FromString(record.decision.decision)
    except DecodeError:
        raise InvalidArgument("the decision is not a Decision", field="records.decision") from None


def to_message(record: entry.Record) -> audit_pb2.Entry:
    """Return an entry as the contract spells it."""
    fields = record.fields
    message = audit_pb2.Entry(
        index=record.index,
        leaf=record.leaf,
        writer=record.writer,
        kind=_KIND_VALUES.get(fields.get("kind", ""), record_pb2.RECORD_KIND_UNSPECIFIED),
        call_id=fields.get("call_id", ""),
        decision_id=fields.get("decision_id", ""),
        method=fields.get("method", ""),
        status_code=json.loads(record.leaf)["record"]["data"].get("status_code", 0),
        reason=fields.get("outcome", ""),
        tenant=fields.get("tenant", ""),
        pseudonym=fields.get("principal", ""),
    )
    message.appended_at.FromDatetime(record.time)
    return message


def to_filter(wanted: audit_pb2.RecordFilter) -> Filter:
    """Return the contract's filter as a search."""
    return Filter(
        kinds=frozenset(_KINDS[kind] for kind in wanted.kinds),
        writer=wanted.writer,
        call_id=wanted.call_id,
        decision_id=wanted.decision_id,
        tenant=wanted.tenant,
        method=wanted.method,
        since=wanted.since.ToDatetime(dt.UTC) if wanted.HasField("since") else None,
        until=wanted.until.ToDatetime(dt.UTC) if wanted.HasField("until") else None,
    )
