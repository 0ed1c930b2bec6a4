import json
import subprocess

import pytest

from services.policy_guard.bundle import Bundle
from services.policy_guard.engine import PolicyEngine
from services.policy_guard.engines import choose_engine
from services.policy_guard.validation import Report, validate
from tests.unit.policy_guard.policy.conftest import DEFAULT, POLICIES, merged, opa_binary, with_data, with_module

ACCESS = "bastide/access/access.rego"


async def checks(bundle: Bundle, *, tenants: tuple[str, ...] = ("default",)) -> set[str]:
    engine = choose_engine(engine="embedded")
    try:
        report = await validate(bundle, engine, administrator_tenants=tenants)
    finally:
        await engine.close()
    assert report.ok == (not report.problems)
    return {problem.check for problem in report.problems}


async def test_the_default_bundle_is_valid_on_both_engines(engine: PolicyEngine) -> None:
    report = await validate(DEFAULT, engine, administrator_tenants=["default"])
    assert report == Report(revision=DEFAULT.revision, problems=(), tests=report.tests)
    assert len(report.tests) > 50
    assert engine.current is None


@pytest.mark.parametrize(
    ("bundle", "check"),
    [
        (with_module(ACCESS, ("default effect", "default effect effect")), "parse"),
        (with_module(ACCESS, ("default effect", "x := http.send({})\n\ndefault effect")), "builtins"),
        (with_module(ACCESS, ("default effect", "unsafe := nowhere\n\ndefault effect")), "tests"),
        (with_module(ACCESS, ("package bastide.access\n", "package bastide.other\n")), "lint"),
        (with_module(ACCESS, ("default effect", "unused(x) := [x]\n\ndefault effect")), "coverage"),
        (with_module(ACCESS, ("\tnot input.principal.subject in input.resource.submitters\n", "")), "tests"),
        (with_data({"bastide": {"mfa": {"max_age_seconds": "900"}}}), "schema"),
        (with_data({"bastide": {"tenants": {"default": {"active": "yes"}}}}), "schema"),
        (with_data({"bastide": {"actions": {"a.b.c": {"roles": ["user"]}}}}), "schema"),
        (with_data({"bastide": {"actions": {"a.b.c": {"roles": ["usr"], "mfa": False}}}}), "tests"),
        (with_data({"schemas": {"access": {"type": "nonsense"}}}), "schema"),
        (with_data({"schemas": {"access": 1}}), "schema"),
        (with_data({"samples": {"access": {"user-may-not-read-records": {"effect": "ALLOW"}}}}), "samples"),
        (Bundle(modules=DEFAULT.modules, data={**DEFAULT.data, "samples": {}}), "samples"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_bundle_with_a_fault_is_reported_by_the_check_that_finds_it(bundle: Bundle, check: str) -> None:
    assert check in await checks(bundle)


async def test_an_input_schema_that_lets_malformed_input_through_is_found() -> None:
    open_schema = {**DEFAULT.data["schemas"]["access"], "required": [], "additionalProperties": True}
    loose = Bundle(
        modules=DEFAULT.rules, data={**DEFAULT.data, "schemas": {**DEFAULT.data["schemas"], "access": open_schema}}
    )
    engine = choose_engine(engine="embedded")
    report = await validate(loose, engine, administrator_tenants=["default"])
    await engine.close()
    assert not report.ok


def actions(**change: object) -> Bundle:
    rows = {f"policy_guard.policy.{name}": value for name, value in change.items()}
    return with_data({"bastide": {"actions": rows}})


@pytest.mark.parametrize(
    "bundle",
    [
        actions(activate={"roles": ["security-officer"]}),
        actions(rollback={"roles": ["auditor"]}),
        actions(activate={"mfa": False, "distinct_from": ["owner"]}),
        with_data({"bastide": {"mfa": {"max_age_seconds": 900, "clock_skew_seconds": 0}, "roles": {}}}),
    ],
    ids=["activation taken away", "rollback taken away", "a person the resource lacks", "harmless"],
)
async def test_a_policy_that_locks_administrators_out_is_refused(
    bundle: Bundle, request: pytest.FixtureRequest
) -> None:
    found = await checks(bundle)
    if request.node.callspec.id == "harmless":
        assert found == set()
    else:
        assert "lifecycle" in found or "samples" in found


async def test_a_policy_that_lets_the_proposer_activate_is_refused() -> None:
    row = dict(DEFAULT.data["bastide"]["actions"]["policy_guard.policy.activate"])
    del row["distinct_from"]
    bastide = {**DEFAULT.data["bastide"]}
    bastide["actions"] = {**bastide["actions"], "policy_guard.policy.activate": row}
    assert await checks(Bundle(modules=DEFAULT.modules, data={**DEFAULT.data, "bastide": bastide})) == {"lifecycle"}


async def test_a_tenant_whose_administrators_would_be_locked_out_is_found() -> None:
    assert await checks(DEFAULT, tenants=("default", "acme")) == {"lifecycle"}
    assert await checks(DEFAULT, tenants=()) == {"lifecycle"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "--strict", "--bundle", "."],
        ["check", "--strict", "--schema", "schemas", "bastide"],
        ["fmt", "--diff", "--fail", "."],
        ["test", "--bundle", ".", "--coverage", "--threshold", "100"],
    ],
    ids=" ".join,
)
def test_opas_own_tools_find_nothing(arguments: list[str]) -> None:
    done = subprocess.run(
        [opa_binary(), *arguments], cwd=POLICIES, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_opa_reads_the_directory_as_we_do() -> None:
    done = subprocess.run(
        [opa_binary(), "eval", "--bundle", ".", "--format", "raw", "data.bastide.actions"],
        cwd=POLICIES,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout) == merged(DEFAULT.data["bastide"]["actions"], {})
