"""The services' method tables say what the architecture says, and nothing is forgotten."""

from __future__ import annotations

import pytest
import yaml

from shared.rpc.methods import Auth, Method, Recording
from tests.contract.promises import PROMISES, Promise
from tests.contract.requests import REQUESTS
from tests.contract.tables import TABLES
from tests.contract.world import POLICIES

# The architecture's table of services, of those that are built.
SERVED = {
    "audit": {"AuditService", "LogService", "PrivacyService", "ReportService"},
    "policy-guard": {"GuardService", "PolicyService", "IdentityService"},
    "model-server": {"InferenceService", "CatalogService"},
}
# The architecture's table of `auth`: its examples by name. What it does not name there is in PROMISES.
EXAMPLES = {
    Auth.PUBLIC: {"Check", "GetSigningKeys", "SignIn"},
    Auth.PEER: {"AppendRecords", "CheckAccess", "GuardInference", "OpenArtifact"},
    Auth.SESSION: {"Generate", "GenerateStream"},
}
# "Administrative actions (policy activation, model release, erasure, key rotation) need a recent second factor."
SECOND_FACTOR = {"ActivatePolicy", "RollbackPolicy", "CreateRelease", "RollbackRelease", "EraseSubject"}
# "Reads of proofs, tiles and checkpoints leave metrics only, or a witness would feed the log it watches."
UNRECORDED = {"GetCheckpoint", "GetInclusionProof", "GetConsistencyProof", "GetTile"}
RECORDED = {Recording.NONE: (), Recording.ACCESS: ("access",), Recording.CHANGE: ("change", "changed")}
ROWS = [(service, method) for service, table in TABLES.items() for method in table]


def declared(row: Method | Promise) -> tuple[object, ...]:
    return row.auth, row.mfa, sorted(row.peers)


def test_each_service_serves_what_the_architecture_says() -> None:
    for service, table in TABLES.items():
        package = f"/bastide.{service.replace('-', '_')}.v1."
        own = {name.removeprefix(package).split("/")[0] for name in table if name.startswith("/bastide.")}
        assert own == SERVED[service]


@pytest.mark.parametrize("service", TABLES)
def test_every_method_has_a_promise_and_every_promise_a_method(service: str) -> None:
    assert set(TABLES[service]) == set(PROMISES[service])


@pytest.mark.parametrize(("service", "method"), ROWS)
def test_the_row_says_what_was_promised(service: str, method: str) -> None:
    row, promise = TABLES[service][method], PROMISES[service][method]
    assert declared(row) == declared(promise)
    if row.auth is Auth.POLICY:
        assert RECORDED[row.recording] == promise.recorded
    else:
        assert row.recording is (Recording.CHANGE if method.endswith("/ConfirmEnrollment") else Recording.NONE)


def test_the_examples_of_the_architecture_are_authorised_as_it_says() -> None:
    by_name = {method.split("/")[-1]: row for table in TABLES.values() for method, row in table.items()}
    assert {
        auth: {name for name in names if by_name[name].auth is auth} for auth, names in EXAMPLES.items()
    } == EXAMPLES
    assert {name for name in SECOND_FACTOR if by_name[name].mfa} == SECOND_FACTOR
    unrecorded = {name for name in UNRECORDED if by_name[name] == Method(auth=Auth.PUBLIC)}
    assert unrecorded == UNRECORDED


def test_every_method_has_a_request_and_every_guarded_one_an_action_of_policy() -> None:
    actions = yaml.safe_load((POLICIES / "bastide/actions/data.yaml").read_text())
    for table in TABLES.values():
        for name, row in table.items():
            assert table.descriptors[name].full_name in REQUESTS
            if row.auth in (Auth.POLICY, Auth.SESSION):
                assert row.action in actions, name
