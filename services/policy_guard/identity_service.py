"""bastide.policy_guard.v1.IdentityService: enrolment, sign-in, tokens and people."""

from __future__ import annotations

import datetime as dt
from typing import Any

from bastide.audit.v1 import record_pb2
from bastide.policy_guard.v1 import identity_pb2
from services.policy_guard import users as domain
from services.policy_guard.acknowledgements import Acknowledgements
from services.policy_guard.enrolment import Enrolment
from services.policy_guard.judge import Judge
from services.policy_guard.sign_in import SignIn
from services.policy_guard.standing import Standing
from services.policy_guard.token_issuer import TokenIssuer
from services.policy_guard.users import Users
from shared.audit import AuditLog, record_of
from shared.errors import FailedPrecondition, NotFound, PermissionDenied
from shared.identity.principal import Kind, Principal
from shared.rpc.call import Call


class NotRegistered(PermissionDenied):
    """Policy data registers no such workload."""

    reason = "WORKLOAD_NOT_REGISTERED"


class IdentityService:
    """People and backends get their tokens here. What changes who may do what is recorded before it is answered."""

    def __init__(
        self,
        *,
        users: Users,
        enrolment: Enrolment,
        sign_in: SignIn,
        issuer: TokenIssuer,
        acknowledgements: Acknowledgements,
        standing: Standing,
        judge: Judge,
        audit: AuditLog,
    ) -> None:
        """Join the parts."""
        self._users = users
        self._enrolment = enrolment
        self._sign_in = sign_in
        self._issuer = issuer
        self._acknowledgements = acknowledgements
        self._standing = standing
        self._judge = judge
        self._audit = audit

    async def GetSigningKeys(
        self, _request: identity_pb2.GetSigningKeysRequest, _call: Call
    ) -> identity_pb2.GetSigningKeysResponse:
        """See the contract."""
        return identity_pb2.GetSigningKeysResponse(
            jwks=self._issuer.jwks(), issuer=self._issuer.issuer, audience=self._issuer.audience
        )

    async def StartEnrollment(
        self, request: identity_pb2.StartEnrollmentRequest, _call: Call
    ) -> identity_pb2.StartEnrollmentResponse:
        """See the contract."""
        uri = await self._enrolment.start(request.subject, request.code, request.password)
        return identity_pb2.StartEnrollmentResponse(totp_uri=uri)

    async def ConfirmEnrollment(
        self, request: identity_pb2.ConfirmEnrollmentRequest, call: Call
    ) -> identity_pb2.ConfirmEnrollmentResponse:
        """See the contract."""
        proven = await self._enrolment.prove(request.subject, request.code, request.totp)
        user = await self._users.get(request.subject)
        call.principal = _principal(call, subject=user.subject, tenant=user.tenant, kind=Kind.PERSON, roles=user.roles)
        await call.allowed()
        await self._enrolment.complete(proven, spiffe_id=call.caller.spiffe_id)
        return identity_pb2.ConfirmEnrollmentResponse()

    async def SignIn(self, request: identity_pb2.SignInRequest, call: Call) -> identity_pb2.SignInResponse:
        """See the contract."""
        person = await self._sign_in.sign_in(
            request.subject, request.password, request.totp, spiffe_id=call.caller.spiffe_id
        )
        await self._record(
            call,
            "policy_guard.user.sign_in",
            subject=person.subject,
            tenant=person.tenant,
            kind=Kind.PERSON,
            roles=person.roles,
            amr=person.amr,
        )
        self._standing.forget(person.subject)
        issued = self._issuer.issue_to_person(person, call.caller)
        response = identity_pb2.SignInResponse(token=issued.token)
        response.expires_at.FromDatetime(issued.expires_at)
        return response

    async def IssueWorkloadToken(
        self, _request: identity_pb2.IssueWorkloadTokenRequest, call: Call
    ) -> identity_pb2.IssueWorkloadTokenResponse:
        """See the contract."""
        registered = await self._judge.registration(call.caller)
        if registered is None:
            raise NotRegistered("this certificate's workload is not registered")
        await self._record(
            call,
            "policy_guard.workload.sign_in",
            subject=call.caller.spiffe_id,
            tenant=registered.tenant,
            kind=Kind.WORKLOAD,
            roles=registered.roles,
        )
        issued = self._issuer.issue_to_workload(call.caller, tenant=registered.tenant, roles=registered.roles)
        response = identity_pb2.IssueWorkloadTokenResponse(token=issued.token)
        response.expires_at.FromDatetime(issued.expires_at)
        return response

    async def GetUsePolicy(
        self, _request: identity_pb2.GetUsePolicyRequest, _call: Call
    ) -> identity_pb2.GetUsePolicyResponse:
        """See the contract."""
        use_policy = self._judge.use_policy
        return identity_pb2.GetUsePolicyResponse(version=use_policy.version, text=use_policy.text)

    async def AcknowledgeUsePolicy(
        self, request: identity_pb2.AcknowledgeUsePolicyRequest, call: Call
    ) -> identity_pb2.AcknowledgeUsePolicyResponse:
        """See the contract."""
        if request.version != self._judge.use_policy.version:
            raise FailedPrecondition("another version of the acceptable-use policy is in force")
        await self._acknowledgements.acknowledge(call.person.subject, request.version)
        return identity_pb2.AcknowledgeUsePolicyResponse()

    async def user_facts(self, request: Any, call: Call) -> dict[str, Any]:
        """Facts for policy: whose tenant and who it is; for a change, the roles that they would have and have."""
        if isinstance(request, identity_pb2.CreateUserRequest):
            return {"tenant": request.user.tenant, "roles": list(request.user.roles)}
        updated = isinstance(request, identity_pb2.UpdateUserRequest)
        subject = request.user.subject if updated else request.subject
        try:
            user = await self._users.get(subject)
        except NotFound:
            # Whoever may look for people of their own tenant learns from the handler that there is none.
            return {"tenant": call.person.tenant, "owner": subject}
        facts: dict[str, Any] = {"tenant": user.tenant, "owner": user.subject}
        if not isinstance(request, identity_pb2.GetUserRequest):
            facts["roles"] = sorted({*user.roles, *(request.user.roles if updated else ())})
        return facts

    async def user_list_facts(self, _request: Any, call: Call) -> dict[str, Any]:
        """Facts for policy: whose people are listed."""
        return {"tenant": call.person.tenant}

    async def CreateUser(self, request: identity_pb2.CreateUserRequest, _call: Call) -> identity_pb2.CreateUserResponse:
        """See the contract."""
        user, code = await self._users.create(
            request.user.subject, tenant=request.user.tenant, roles=tuple(request.user.roles)
        )
        response = identity_pb2.CreateUserResponse(user=await self._message(user), enrollment_code=code.code)
        response.code_expires_at.FromDatetime(code.expires_at)
        return response

    async def GetUser(self, request: identity_pb2.GetUserRequest, _call: Call) -> identity_pb2.GetUserResponse:
        """See the contract."""
        return identity_pb2.GetUserResponse(user=await self._message(await self._users.get(request.subject)))

    async def ListUsers(self, request: identity_pb2.ListUsersRequest, call: Call) -> identity_pb2.ListUsersResponse:
        """See the contract."""
        page = await self._users.list(call.person.tenant, requested=request.page_size, page_token=request.page_token)
        return identity_pb2.ListUsersResponse(
            users=[await self._message(user) for user in page.users], next_page_token=page.next_page_token
        )

    async def UpdateUser(self, request: identity_pb2.UpdateUserRequest, _call: Call) -> identity_pb2.UpdateUserResponse:
        """See the contract."""
        user = await self._users.update(
            request.user.subject,
            tenant=request.user.tenant,
            roles=tuple(request.user.roles),
            disabled=request.user.disabled,
        )
        return identity_pb2.UpdateUserResponse(user=await self._message(user))

    async def RecoverUser(
        self, request: identity_pb2.RecoverUserRequest, _call: Call
    ) -> identity_pb2.RecoverUserResponse:
        """See the contract."""
        code = await self._users.recover(request.subject)
        response = identity_pb2.RecoverUserResponse(enrollment_code=code.code)
        response.code_expires_at.FromDatetime(code.expires_at)
        return response

    async def _message(self, user: domain.User) -> identity_pb2.User:
        acknowledged = await self._acknowledgements.acknowledged(user.subject, in_force=self._judge.use_policy.version)
        message = identity_pb2.User(
            subject=user.subject,
            tenant=user.tenant,
            roles=user.roles,
            disabled=user.disabled,
            enrolled=user.enrolled,
            acknowledged_use_policy=acknowledged or "",
        )
        message.created_at.FromDatetime(user.created_at)
        return message

    async def _record(
        self,
        call: Call,
        action: str,
        *,
        subject: str,
        tenant: str,
        kind: Kind,
        roles: tuple[str, ...],
        amr: tuple[str, ...] = (),
    ) -> None:
        """Record a sign-in: no record, no token."""
        await self._audit.append(
            [
                record_of(
                    record_pb2.RECORD_KIND_SIGN_IN,
                    call_id=call.call_id,
                    method=call.method,
                    action=action,
                    principal=_principal(call, subject=subject, tenant=tenant, kind=kind, roles=roles, amr=amr),
                )
            ]
        )


def _principal(
    call: Call, *, subject: str, tenant: str, kind: Kind, roles: tuple[str, ...], amr: tuple[str, ...] = ()
) -> Principal:
    """Return whom the request itself proves, for the record."""
    return Principal(
        subject=subject,
        kind=kind,
        tenant=tenant,
        roles=roles,
        amr=amr,
        authenticated_at=dt.datetime.now(dt.UTC) if kind is Kind.PERSON else None,
        workload=call.caller,
    )
