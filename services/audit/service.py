"""The audit service's RPCs: parse, ask the log, render."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from bastide.audit.v1 import audit_pb2, record_pb2
from bastide.types.v1 import evidence_pb2, principal_pb2
from services.audit.entry import Sealed
from services.audit.log import Log
from services.audit.people import People, Person
from services.audit.rendering import to_entry, to_filter, to_message
from services.audit.search import Filter
from shared.errors import InvalidArgument, NotFound
from shared.rpc.call import Call
from shared.transparency.tiles import TileId

APPEND_SECONDS = 5.0
MAX_APPEND_BYTES = 3 * 1024 * 1024
DEFAULT_PAGE = 100


class Recorder:
    """Takes records of one writer into the log: the network's, and this service's own."""

    def __init__(self, log: Log, people: People) -> None:
        """Write to `log`, with pseudonyms and sealing keys from `people`."""
        self._log = log
        self._people = people

    async def take(self, writer: str, records: Sequence[record_pb2.Record]) -> Sequence[audit_pb2.Appended]:
        """Append `records` of `writer`; see `Log.append_all` for what is raised."""
        now = self._log.clock()
        entries = []
        for record in records:
            pseudonym = ""
            sealed: tuple[Sealed, ...] = ()
            if record.HasField("principal"):
                pseudonym = await self._people.pseudonym(_person(record.principal))
                parts = {"opening": record.opening.SerializeToString(deterministic=True), "text": record.sealed_text}
                sealed = tuple(
                    [
                        await self._people.seal(pseudonym, writer, record.record_id, name, content)
                        for name, content in parts.items()
                        if content
                    ]
                )
            entries.append(to_entry(record, writer=writer, pseudonym=pseudonym, sealed=sealed, now=now))
        appended = await self._log.append_all(entries, within=APPEND_SECONDS)
        return [audit_pb2.Appended(index=item.index, leaf=item.leaf, proof=item.proof.encode()) for item in appended]


class LocalAudit:
    """The audit service as the writer of its own records."""

    def __init__(self, recorder: Recorder, *, writer: str) -> None:
        """Append as `writer`, this service's own SPIFFE id."""
        self._recorder = recorder
        self._writer = writer

    async def append(self, records: Sequence[record_pb2.Record]) -> Sequence[audit_pb2.Appended]:
        """See `shared.audit.AuditLog`."""
        return await self._recorder.take(self._writer, records)

    async def conclude(self, record: record_pb2.Record) -> audit_pb2.Appended:
        """See `shared.audit.AuditLog`: what the log's own store cannot take, no other file here would keep better."""
        (appended,) = await self.append([record])
        return appended


class AuditService:
    """bastide.audit.v1.AuditService."""

    def __init__(self, log: Log, recorder: Recorder, people: People) -> None:
        """Serve `log`."""
        self._log = log
        self._recorder = recorder
        self._people = people

    async def AppendRecords(
        self, request: audit_pb2.AppendRecordsRequest, call: Call
    ) -> audit_pb2.AppendRecordsResponse:
        """See the contract."""
        if request.ByteSize() > MAX_APPEND_BYTES:
            raise InvalidArgument(f"records: together at most {MAX_APPEND_BYTES} bytes", field="records")
        return audit_pb2.AppendRecordsResponse(
            appended=await self._recorder.take(call.caller.spiffe_id, request.records)
        )

    async def GetRecord(self, request: audit_pb2.GetRecordRequest, _call: Call) -> audit_pb2.GetRecordResponse:
        """See the contract."""
        record = await self._log.reader.get(request.index)
        proof = await self._log.reader.prove(record)
        return audit_pb2.GetRecordResponse(entry=to_message(record), proof=proof.encode())

    async def ListRecords(self, request: audit_pb2.ListRecordsRequest, _call: Call) -> audit_pb2.ListRecordsResponse:
        """See the contract."""
        page = await self._log.reader.search(
            to_filter(request.filter), page_size=request.page_size or DEFAULT_PAGE, page_token=request.page_token
        )
        return audit_pb2.ListRecordsResponse(
            entries=[to_message(record) for record in page.records], next_page_token=page.next_page_token
        )

    async def TailRecords(
        self, request: audit_pb2.TailRecordsRequest, _call: Call
    ) -> AsyncIterator[audit_pb2.TailRecordsResponse]:
        """See the contract."""
        reader = self._log.reader
        first = request.from_index if request.HasField("from_index") else (await reader.head()).size
        async for record in reader.tail(first, to_filter(request.filter)):
            yield audit_pb2.TailRecordsResponse(entry=to_message(record))

    async def receipt_facts(self, request: audit_pb2.GetReceiptRequest, call: Call) -> dict[str, Any]:
        """Say that the receipt is the caller's own where it is; what does not exist is nobody's."""
        try:
            record = await self._log.reader.newest(_by_id(request))
        except NotFound:
            return {}
        own = await self._people.find(Person(tenant=call.person.tenant, principal=call.person.subject))
        if own is None or record.fields.get("principal") != own:
            return {}
        return {"owner": call.person.subject, "tenant": call.person.tenant}

    async def GetReceipt(self, request: audit_pb2.GetReceiptRequest, _call: Call) -> audit_pb2.GetReceiptResponse:
        """See the contract."""
        record = await self._log.reader.newest(_by_id(request))
        proof = await self._log.reader.prove(record)
        return audit_pb2.GetReceiptResponse(
            receipt=evidence_pb2.Receipt(
                leaf=record.leaf,
                proof=proof.encode(),
                decision_id=record.fields.get("decision_id", ""),
                call_id=record.fields.get("call_id", ""),
            )
        )


class LogService:
    """bastide.audit.v1.LogService: hashes and signatures, never leaves."""

    def __init__(self, log: Log) -> None:
        """Serve `log`."""
        self._log = log

    async def GetCheckpoint(
        self, _request: audit_pb2.GetCheckpointRequest, _call: Call
    ) -> audit_pb2.GetCheckpointResponse:
        """See the contract."""
        return audit_pb2.GetCheckpointResponse(checkpoint=(await self._log.reader.head()).checkpoint)

    async def GetInclusionProof(
        self, request: audit_pb2.GetInclusionProofRequest, _call: Call
    ) -> audit_pb2.GetInclusionProofResponse:
        """See the contract."""
        size = request.tree_size or (await self._log.reader.head()).size
        path = await self._log.reader.inclusion(request.index, size)
        record = await self._log.reader.get(request.index)
        return audit_pb2.GetInclusionProofResponse(tree_size=size, leaf_hash=record.leaf_hash, path=path)

    async def GetConsistencyProof(
        self, request: audit_pb2.GetConsistencyProofRequest, _call: Call
    ) -> audit_pb2.GetConsistencyProofResponse:
        """See the contract."""
        second = request.second or (await self._log.reader.head()).size
        return audit_pb2.GetConsistencyProofResponse(
            second=second, path=await self._log.reader.consistency(request.first, second)
        )

    async def GetTile(self, request: audit_pb2.GetTileRequest, _call: Call) -> audit_pb2.GetTileResponse:
        """See the contract."""
        tile = TileId(level=request.level, number=request.index)
        return audit_pb2.GetTileResponse(hashes=await self._log.reader.tile(tile))


def _person(principal: principal_pb2.Principal) -> Person:
    return Person(tenant=principal.tenant, principal=principal.subject)


def _by_id(request: audit_pb2.GetReceiptRequest) -> Filter:
    return Filter(call_id=request.call_id, decision_id=request.decision_id)
