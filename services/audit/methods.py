"""The method table of the audit service."""

from __future__ import annotations

from bastide.audit.v1 import audit_pb2
from shared.rpc.methods import change, peer, public, read

_WRITERS = ("policy-guard", "model-server", "data-prep", "trainer")

SERVICES = tuple(audit_pb2.DESCRIPTOR.services_by_name.values())
ROWS = {
    "bastide.audit.v1.AuditService": {
        "AppendRecords": peer(*_WRITERS),
        "GetRecord": read("audit.record.get", "record"),
        "ListRecords": read("audit.record.list", "record"),
        "TailRecords": read("audit.record.tail", "record"),
        "GetReceipt": read("audit.receipt.get", "receipt", facts="receipt_facts"),
    },
    # Hashes and signatures only; recording these reads would feed the log that a witness watches.
    "bastide.audit.v1.LogService": {
        "GetCheckpoint": public(),
        "GetInclusionProof": public(),
        "GetConsistencyProof": public(),
        "GetTile": public(),
    },
    "bastide.audit.v1.PrivacyService": {
        "EraseSubject": change("audit.privacy.erase", "erasure", mfa=True),
        "GetErasure": read("audit.privacy.get", "erasure"),
        "ListErasures": read("audit.privacy.list", "erasure"),
    },
    "bastide.audit.v1.ReportService": {
        "CreateReport": change("audit.report.create", "report", mfa=False),
        "GetReport": read("audit.report.get", "report"),
        "ListReports": read("audit.report.list", "report"),
    },
}
