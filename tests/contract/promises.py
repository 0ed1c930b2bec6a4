"""What every method promises: who may call it, and what a minimal, well-formed, rightly authorised call comes to.

Transcribed from the architecture ("Guarding everything else") and from the comments of the contracts, never from the
services' own method tables: the two are compared by `test_method_tables.py`. `mfa` is a recent second factor,
`peer(...)` names the workloads that may call, `right` is the answer to the request that `requests.py` makes.
"""

from __future__ import annotations

import dataclasses

import grpc

from shared.rpc.methods import Auth


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """A status and the reason in its ErrorInfo; no reason stands for none at all."""

    code: grpc.StatusCode
    reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Promise:
    """One method. `recorded` are the kinds of records, in order, that the right call leaves in the log."""

    auth: Auth
    mfa: bool = False
    peers: frozenset[str] = frozenset()
    right: Outcome
    recorded: tuple[str, ...] = ()
    unregistered: Outcome | None = None
    """The answer to a client that policy data does not register, where that differs."""


OK = Outcome(code=grpc.StatusCode.OK)
NOT_BUILT = Outcome(code=grpc.StatusCode.UNIMPLEMENTED, reason="NOT_BUILT_YET")
NO_SUCH_BACKEND = Outcome(code=grpc.StatusCode.FAILED_PRECONDITION, reason="SOURCE_NOT_ALLOWED")
NO_EARLIER_REVISION = Outcome(code=grpc.StatusCode.FAILED_PRECONDITION, reason="NO_EARLIER_REVISION")
WRONG_CODE = Outcome(code=grpc.StatusCode.UNAUTHENTICATED, reason="ENROLMENT_REFUSED")
NOT_REGISTERED = Outcome(code=grpc.StatusCode.PERMISSION_DENIED, reason="WORKLOAD_NOT_REGISTERED")


def public(right: Outcome = OK, *recorded: str, unregistered: Outcome | None = None) -> Promise:
    """Anyone with a client certificate."""
    return Promise(auth=Auth.PUBLIC, right=right, recorded=recorded, unregistered=unregistered)


def peer(*names: str, right: Outcome = OK) -> Promise:
    """These services only; leaves no record of its own."""
    return Promise(auth=Auth.PEER, peers=frozenset(names), right=right)


def read(right: Outcome = OK) -> Promise:
    """Under policy; recorded before it is answered."""
    return Promise(auth=Auth.POLICY, right=right, recorded=("access",))


def change(right: Outcome = OK, *, mfa: bool) -> Promise:
    """Under policy; recorded before it is made, and again with what became of it."""
    return Promise(auth=Auth.POLICY, mfa=mfa, right=right, recorded=("change", "changed"))


def session() -> Promise:
    """Judged by its guard session."""
    return Promise(auth=Auth.SESSION, right=OK, recorded=("authorised", "completed"))


_COMMON = {
    "grpc.health.v1.Health/Check": public(),
    "grpc.health.v1.Health/List": public(),
    "grpc.health.v1.Health/Watch": public(),
    "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": public(),
}
_AUDIT = {
    "bastide.audit.v1.AuditService/AppendRecords": peer("policy-guard", "model-server", "data-prep", "trainer"),
    "bastide.audit.v1.AuditService/GetRecord": read(),
    "bastide.audit.v1.AuditService/ListRecords": read(),
    "bastide.audit.v1.AuditService/TailRecords": read(),
    "bastide.audit.v1.AuditService/GetReceipt": read(),
    "bastide.audit.v1.LogService/GetCheckpoint": public(),
    "bastide.audit.v1.LogService/GetInclusionProof": public(),
    "bastide.audit.v1.LogService/GetConsistencyProof": public(),
    "bastide.audit.v1.LogService/GetTile": public(),
    "bastide.audit.v1.PrivacyService/EraseSubject": change(NOT_BUILT, mfa=True),
    "bastide.audit.v1.PrivacyService/GetErasure": read(NOT_BUILT),
    "bastide.audit.v1.PrivacyService/ListErasures": read(NOT_BUILT),
    "bastide.audit.v1.ReportService/CreateReport": change(NOT_BUILT, mfa=False),
    "bastide.audit.v1.ReportService/GetReport": read(NOT_BUILT),
    "bastide.audit.v1.ReportService/ListReports": read(NOT_BUILT),
}
_POLICY_GUARD = {
    "bastide.policy_guard.v1.GuardService/GuardInference": peer("model-server"),
    "bastide.policy_guard.v1.GuardService/CheckAccess": peer("audit", "model-server", "data-prep", "trainer"),
    "bastide.policy_guard.v1.GuardService/InspectContent": read(),
    "bastide.policy_guard.v1.GuardService/IssueGrant": peer("data-prep", "trainer", right=NOT_BUILT),
    "bastide.policy_guard.v1.GuardService/CheckGrant": peer(
        "audit", "model-server", "data-prep", "trainer", right=NOT_BUILT
    ),
    "bastide.policy_guard.v1.GuardService/RevokeGrant": change(NOT_BUILT, mfa=True),
    "bastide.policy_guard.v1.PolicyService/GetRevision": read(),
    "bastide.policy_guard.v1.PolicyService/ListRevisions": read(),
    "bastide.policy_guard.v1.PolicyService/ValidatePolicy": read(),
    "bastide.policy_guard.v1.PolicyService/ProposePolicy": change(mfa=True),
    "bastide.policy_guard.v1.PolicyService/ActivatePolicy": change(mfa=True),
    "bastide.policy_guard.v1.PolicyService/RollbackPolicy": change(NO_EARLIER_REVISION, mfa=True),
    "bastide.policy_guard.v1.PolicyService/EvaluatePolicy": read(),
    "bastide.policy_guard.v1.IdentityService/GetSigningKeys": public(),
    "bastide.policy_guard.v1.IdentityService/StartEnrollment": public(),
    "bastide.policy_guard.v1.IdentityService/ConfirmEnrollment": public(WRONG_CODE),
    "bastide.policy_guard.v1.IdentityService/SignIn": public(OK, "sign_in"),
    "bastide.policy_guard.v1.IdentityService/IssueWorkloadToken": public(OK, "sign_in", unregistered=NOT_REGISTERED),
    "bastide.policy_guard.v1.IdentityService/GetUsePolicy": public(),
    "bastide.policy_guard.v1.IdentityService/AcknowledgeUsePolicy": change(mfa=False),
    "bastide.policy_guard.v1.IdentityService/CreateUser": change(mfa=True),
    "bastide.policy_guard.v1.IdentityService/GetUser": read(),
    "bastide.policy_guard.v1.IdentityService/ListUsers": read(),
    "bastide.policy_guard.v1.IdentityService/UpdateUser": change(mfa=True),
    "bastide.policy_guard.v1.IdentityService/RecoverUser": change(mfa=True),
}
_MODEL_SERVER = {
    "bastide.model_server.v1.InferenceService/Generate": session(),
    "bastide.model_server.v1.InferenceService/GenerateStream": session(),
    "bastide.model_server.v1.CatalogService/CreateImportJob": change(mfa=True),
    "bastide.model_server.v1.CatalogService/GetImportJob": read(),
    "bastide.model_server.v1.CatalogService/ListImportJobs": read(),
    "bastide.model_server.v1.CatalogService/CancelImportJob": change(mfa=False),
    "bastide.model_server.v1.CatalogService/WatchImportJob": read(),
    "bastide.model_server.v1.CatalogService/DeclareModel": change(NO_SUCH_BACKEND, mfa=True),
    "bastide.model_server.v1.CatalogService/SubmitModelVersion": peer("trainer", right=NOT_BUILT),
    "bastide.model_server.v1.CatalogService/ApproveModelVersion": change(NOT_BUILT, mfa=True),
    "bastide.model_server.v1.CatalogService/GetModel": read(),
    "bastide.model_server.v1.CatalogService/ListModels": read(),
    "bastide.model_server.v1.CatalogService/GetModelVersion": read(),
    "bastide.model_server.v1.CatalogService/ListModelVersions": read(),
    "bastide.model_server.v1.CatalogService/GetModelCard": read(NOT_BUILT),
    "bastide.model_server.v1.CatalogService/TraceModelVersion": read(NOT_BUILT),
    "bastide.model_server.v1.CatalogService/CreateRelease": change(mfa=True),
    "bastide.model_server.v1.CatalogService/GetRelease": read(),
    "bastide.model_server.v1.CatalogService/ListReleases": read(),
    "bastide.model_server.v1.CatalogService/RollbackRelease": change(mfa=True),
    "bastide.model_server.v1.CatalogService/OpenModelVersion": peer("data-prep", "trainer", right=NOT_BUILT),
    "bastide.model_server.v1.CatalogService/OpenArtifact": peer("data-prep", "trainer", right=NOT_BUILT),
}
PROMISES: dict[str, dict[str, Promise]] = {
    service: {f"/{name}": promise for name, promise in {**methods, **_COMMON}.items()}
    for service, methods in (("audit", _AUDIT), ("policy-guard", _POLICY_GUARD), ("model-server", _MODEL_SERVER))
}
"""Service -> full method name as on the wire -> promise."""
