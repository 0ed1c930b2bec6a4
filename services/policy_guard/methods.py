"""The method table of the policy guard."""

from __future__ import annotations

from bastide.policy_guard.v1 import guard_pb2, identity_pb2, policy_pb2
from shared.rpc.methods import change, peer, public, read

SERVICES = (
    guard_pb2.DESCRIPTOR.services_by_name["GuardService"],
    policy_pb2.DESCRIPTOR.services_by_name["PolicyService"],
    identity_pb2.DESCRIPTOR.services_by_name["IdentityService"],
)
ROWS = {
    "bastide.policy_guard.v1.GuardService": {
        "GuardInference": peer("model-server"),
        "CheckAccess": peer("audit", "model-server", "data-prep", "trainer"),
        "InspectContent": read("policy_guard.content.inspect", "content"),
        "IssueGrant": peer("data-prep", "trainer"),
        "CheckGrant": peer("audit", "model-server", "data-prep", "trainer"),
        "RevokeGrant": change("policy_guard.grant.revoke", "grant", mfa=True),
    },
    "bastide.policy_guard.v1.PolicyService": {
        "GetRevision": read("policy_guard.policy.get", "revision"),
        "ListRevisions": read("policy_guard.policy.list", "revision"),
        "ValidatePolicy": read("policy_guard.policy.validate", "revision"),
        "ProposePolicy": change("policy_guard.policy.propose", "revision", mfa=True),
        "ActivatePolicy": change("policy_guard.policy.activate", "revision", mfa=True, facts="revision_facts"),
        "RollbackPolicy": change("policy_guard.policy.rollback", "revision", mfa=True, facts="rollback_facts"),
        "EvaluatePolicy": read("policy_guard.policy.evaluate", "revision"),
    },
    "bastide.policy_guard.v1.IdentityService": {
        "GetSigningKeys": public(),
        "StartEnrollment": public(),
        "ConfirmEnrollment": public(change="policy_guard.user.enrol"),
        "SignIn": public(),
        "IssueWorkloadToken": public(),
        "GetUsePolicy": public(),
        "AcknowledgeUsePolicy": change("policy_guard.use_policy.acknowledge", "use_policy", mfa=False),
        "CreateUser": change("policy_guard.user.create", "user", mfa=True, facts="user_facts"),
        "GetUser": read("policy_guard.user.get", "user", facts="user_facts"),
        "ListUsers": read("policy_guard.user.list", "user", facts="user_list_facts"),
        "UpdateUser": change("policy_guard.user.update", "user", mfa=True, facts="user_facts"),
        "RecoverUser": change("policy_guard.user.recover", "user", mfa=True, facts="user_facts"),
    },
}
