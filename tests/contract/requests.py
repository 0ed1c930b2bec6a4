"""A valid request for every method: what a right caller would send. A new method without one fails the contract test."""

from __future__ import annotations

import os
from collections.abc import Callable

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from bastide.audit.v1 import audit_pb2, record_pb2
from bastide.model_server.v1 import catalog_pb2, inference_pb2
from bastide.policy_guard.v1 import guard_pb2, identity_pb2, policy_pb2
from bastide.types.v1 import content_pb2, decision_pb2, evidence_pb2, principal_pb2
from tests.contract.world import World
from tests.suite import PASSWORD

VERSION = "models/tiny/versions/1"
_CALL = inference_pb2.InferenceCall(
    model="tiny",
    purpose="internal-assistant",
    messages=[content_pb2.Message(role=content_pb2.ROLE_USER, content="hello")],
    parameters=content_pb2.SamplingParameters(max_new_tokens=4),
)
_WORKLOAD = principal_pb2.Workload(spiffe_id="spiffe://bastide.local/client/cli", certificate_sha256=bytes(32))
_GRANT = decision_pb2.SignedGrant(grant=b"x", key_id="k", signature=bytes(64))
_STATEMENT = evidence_pb2.SignedStatement(envelope=b"{}")
_ARTIFACT = evidence_pb2.ArtifactRef(
    uri="model-server:x", digest=evidence_pb2.Digest(algorithm="sha256", value=bytes(32))
)


def _record(_world: World) -> audit_pb2.AppendRecordsRequest:
    record = record_pb2.Record(
        record_id=os.urandom(8).hex(), kind=record_pb2.RECORD_KIND_SYSTEM, call_id="contract", method="-"
    )
    record.occurred_at.GetCurrentTime()
    return audit_pb2.AppendRecordsRequest(records=[record])


def _grant_request(_world: World) -> guard_pb2.IssueGrantRequest:
    request = guard_pb2.IssueGrantRequest(token="x", workload=_WORKLOAD, job="jobs/1", purpose="evaluation")
    request.lifetime.FromSeconds(60)
    return request


def _session(world: World) -> guard_pb2.GuardInferenceRequest:
    return guard_pb2.GuardInferenceRequest(
        open=guard_pb2.OpenSession(
            token=world.everyone.token,
            workload=world.suite.workload("cli"),
            method="/bastide.model_server.v1.InferenceService/Generate",
            call_id=os.urandom(8).hex(),
            model=guard_pb2.ModelFacts(name="tiny", version=VERSION, loaded=True),
            purpose=_CALL.purpose,
            messages=_CALL.messages,
            parameters=_CALL.parameters,
        )
    )


def _unknown() -> str:
    """Return a subject of its own for each call: guesses at one name are slowed down."""
    return f"u{os.urandom(4).hex()}@example.org"


def _constant(message: Message) -> Callable[[World], Message]:
    return lambda _world: message


_A, _G, _M = "bastide.audit.v1.", "bastide.policy_guard.v1.", "bastide.model_server.v1."
REQUESTS: dict[str, Callable[[World], Message]] = {
    _A + "AuditService.AppendRecords": _record,
    _A + "AuditService.GetRecord": _constant(audit_pb2.GetRecordRequest(index=0)),
    _A + "AuditService.ListRecords": _constant(audit_pb2.ListRecordsRequest()),
    _A + "AuditService.TailRecords": _constant(audit_pb2.TailRecordsRequest(from_index=0)),
    _A + "AuditService.GetReceipt": lambda world: audit_pb2.GetReceiptRequest(call_id=world.recorded_call),
    _A + "LogService.GetCheckpoint": _constant(audit_pb2.GetCheckpointRequest()),
    _A + "LogService.GetInclusionProof": _constant(audit_pb2.GetInclusionProofRequest(index=0)),
    _A + "LogService.GetConsistencyProof": _constant(audit_pb2.GetConsistencyProofRequest(first=1)),
    _A + "LogService.GetTile": _constant(audit_pb2.GetTileRequest()),
    _A + "PrivacyService.EraseSubject": _constant(
        audit_pb2.EraseSubjectRequest(principal="x@example.org", ground="test", request_id="1")
    ),
    _A + "PrivacyService.GetErasure": _constant(audit_pb2.GetErasureRequest(name="erasures/1")),
    _A + "PrivacyService.ListErasures": _constant(audit_pb2.ListErasuresRequest()),
    _A + "ReportService.CreateReport": _constant(
        audit_pb2.CreateReportRequest(kind=audit_pb2.REPORT_KIND_TRANSPARENCY, request_id="1")
    ),
    _A + "ReportService.GetReport": _constant(audit_pb2.GetReportRequest(name="reports/1")),
    _A + "ReportService.ListReports": _constant(audit_pb2.ListReportsRequest()),
    _G + "GuardService.GuardInference": _session,
    _G + "GuardService.CheckAccess": lambda world: guard_pb2.CheckAccessRequest(
        token=world.everyone.token, workload=world.suite.workload("cli"), method="/x/y", action="audit.record.list"
    ),
    _G + "GuardService.InspectContent": _constant(guard_pb2.InspectContentRequest(text="hello")),
    _G + "GuardService.IssueGrant": _grant_request,
    _G + "GuardService.CheckGrant": _constant(guard_pb2.CheckGrantRequest(grant=_GRANT)),
    _G + "GuardService.RevokeGrant": _constant(guard_pb2.RevokeGrantRequest(grant_id="1")),
    _G + "PolicyService.GetRevision": _constant(policy_pb2.GetRevisionRequest(name="revisions/active")),
    _G + "PolicyService.ListRevisions": _constant(policy_pb2.ListRevisionsRequest()),
    _G + "PolicyService.ValidatePolicy": _constant(policy_pb2.ValidatePolicyRequest(bundle=b"not a bundle")),
    _G + "PolicyService.ProposePolicy": lambda world: policy_pb2.ProposePolicyRequest(bundle=world.bundle),
    _G + "PolicyService.ActivatePolicy": _constant(policy_pb2.ActivatePolicyRequest(name="revisions/active")),
    _G + "PolicyService.RollbackPolicy": _constant(policy_pb2.RollbackPolicyRequest()),
    _G + "PolicyService.EvaluatePolicy": _constant(policy_pb2.EvaluatePolicyRequest(question="access", input=b"{}")),
    _G + "IdentityService.GetSigningKeys": _constant(identity_pb2.GetSigningKeysRequest()),
    _G + "IdentityService.StartEnrollment": lambda world: identity_pb2.StartEnrollmentRequest(
        subject=world.newcomer, code=world.enrollment_code, password=PASSWORD
    ),
    _G + "IdentityService.ConfirmEnrollment": lambda _world: identity_pb2.ConfirmEnrollmentRequest(
        subject=_unknown(), code="y", totp="000000"
    ),
    _G + "IdentityService.SignIn": lambda world: identity_pb2.SignInRequest(
        subject=world.everyone.subject, password=PASSWORD
    ),
    _G + "IdentityService.IssueWorkloadToken": _constant(identity_pb2.IssueWorkloadTokenRequest()),
    _G + "IdentityService.GetUsePolicy": _constant(identity_pb2.GetUsePolicyRequest()),
    _G + "IdentityService.AcknowledgeUsePolicy": _constant(identity_pb2.AcknowledgeUsePolicyRequest(version="1")),
    _G + "IdentityService.CreateUser": lambda _world: identity_pb2.CreateUserRequest(
        user=identity_pb2.User(subject=_unknown(), tenant="default", roles=["user"])
    ),
    _G + "IdentityService.GetUser": _constant(identity_pb2.GetUserRequest(subject="mia@example.org")),
    _G + "IdentityService.ListUsers": _constant(identity_pb2.ListUsersRequest()),
    _G + "IdentityService.UpdateUser": _constant(
        identity_pb2.UpdateUserRequest(
            user=identity_pb2.User(subject="mia@example.org", tenant="default", roles=["model-manager"])
        )
    ),
    _G + "IdentityService.RecoverUser": _constant(identity_pb2.RecoverUserRequest(subject="mia@example.org")),
    _M + "InferenceService.Generate": _constant(inference_pb2.GenerateRequest(call=_CALL)),
    _M + "InferenceService.GenerateStream": _constant(inference_pb2.GenerateStreamRequest(call=_CALL)),
    _M + "CatalogService.CreateImportJob": lambda _world: catalog_pb2.CreateImportJobRequest(
        model_id="tiny", source="directory:absent", license="Apache-2.0", request_id=os.urandom(4).hex()
    ),
    _M + "CatalogService.GetImportJob": lambda world: catalog_pb2.GetImportJobRequest(name=world.import_job),
    _M + "CatalogService.ListImportJobs": _constant(catalog_pb2.ListImportJobsRequest()),
    _M + "CatalogService.CancelImportJob": lambda world: catalog_pb2.CancelImportJobRequest(name=world.import_job),
    _M + "CatalogService.WatchImportJob": lambda world: catalog_pb2.WatchImportJobRequest(name=world.import_job),
    _M + "CatalogService.DeclareModel": _constant(
        catalog_pb2.DeclareModelRequest(
            model_id="remote", declared=catalog_pb2.Declared(backend="absent", remote_model="m"), context_length=1024
        )
    ),
    _M + "CatalogService.SubmitModelVersion": _constant(
        catalog_pb2.SubmitModelVersionRequest(
            model_id="tiny", run="runs/1", artifacts=[_ARTIFACT], statements=[_STATEMENT], grant=_GRANT, request_id="1"
        )
    ),
    _M + "CatalogService.ApproveModelVersion": _constant(catalog_pb2.ApproveModelVersionRequest(name=VERSION)),
    _M + "CatalogService.GetModel": _constant(catalog_pb2.GetModelRequest(name="models/tiny")),
    _M + "CatalogService.ListModels": _constant(catalog_pb2.ListModelsRequest()),
    _M + "CatalogService.GetModelVersion": _constant(catalog_pb2.GetModelVersionRequest(name=VERSION)),
    _M + "CatalogService.ListModelVersions": _constant(catalog_pb2.ListModelVersionsRequest(parent="models/tiny")),
    _M + "CatalogService.GetModelCard": _constant(catalog_pb2.GetModelCardRequest(name=VERSION)),
    _M + "CatalogService.TraceModelVersion": _constant(catalog_pb2.TraceModelVersionRequest(name=VERSION)),
    _M + "CatalogService.CreateRelease": lambda _world: catalog_pb2.CreateReleaseRequest(
        parent="models/tiny",
        arms=[catalog_pb2.ReleaseArm(version=VERSION, weight=100)],
        request_id=os.urandom(4).hex(),
    ),
    _M + "CatalogService.GetRelease": _constant(catalog_pb2.GetReleaseRequest(parent="models/tiny")),
    _M + "CatalogService.ListReleases": _constant(catalog_pb2.ListReleasesRequest(parent="models/tiny")),
    _M + "CatalogService.RollbackRelease": _constant(catalog_pb2.RollbackReleaseRequest(parent="models/tiny")),
    _M + "CatalogService.OpenModelVersion": _constant(catalog_pb2.OpenModelVersionRequest(name=VERSION, grant=_GRANT)),
    _M + "CatalogService.OpenArtifact": _constant(catalog_pb2.OpenArtifactRequest(artifact=_ARTIFACT, grant=_GRANT)),
    "grpc.health.v1.Health.Check": _constant(health_pb2.HealthCheckRequest()),
    "grpc.health.v1.Health.List": _constant(health_pb2.HealthListRequest()),
    "grpc.health.v1.Health.Watch": _constant(health_pb2.HealthCheckRequest()),
    "grpc.reflection.v1alpha.ServerReflection.ServerReflectionInfo": _constant(
        reflection_pb2.ServerReflectionRequest(list_services="")
    ),
}
