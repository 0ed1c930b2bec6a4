package bastide.access_test

import data.bastide.access

now := 1700000000

question := {
	"time": now,
	"principal": {
		"subject": "ada@example.org",
		"kind": "person",
		"tenant": "default",
		"roles": ["writer"],
		"amr": ["pwd", "otp"],
		"auth_time": now - 10,
		"acknowledged_use_policy": null,
	},
	"workload": {"spiffe_id": "spiffe://test/client/cli"},
	"method": {"full_name": "/test.Service/Method", "mfa": false},
	"action": "test.thing.write",
	"resource": {"type": "thing", "name": "things/1", "tenant": "default"},
}

actions := {
	"test.thing.write": {"roles": ["writer"], "mfa": false},
	"test.thing.list": {"roles": ["*"], "mfa": false},
	"test.thing.own": {"roles": ["auditor"], "mfa": false, "owner": true, "any_tenant": true},
	"test.thing.destroy": {"roles": ["writer"], "mfa": true},
	"test.thing.slip": {"roles": ["writer"], "mfa": "no"},
	"test.thing.silent": {"roles": ["writer"]},
	"test.thing.approve": {"roles": ["writer"], "mfa": false, "distinct_from": ["submitters"]},
	"test.thing.disable": {"roles": ["writer"], "mfa": false, "distinct_from": ["owner"]},
	"test.thing.odd": {"roles": ["writer"], "mfa": false, "distinct_from": ["nobody-knows"]},
	"test.thing.create": {"roles": ["writer"], "mfa": false, "tenant_bound": true},
	"test.thing.audit": {"roles": ["writer"], "mfa": false, "any_tenant": true},
	"model_server.inference.generate": {"roles": ["writer"], "mfa": false},
}

roles := {
	"writer": {"clearance": "INTERNAL", "granted_by": ["reader"]},
	"reader": {"clearance": "PUBLIC", "granted_by": ["writer"]},
}

tenants := {"default": {"active": true, "purposes": ["known"]}}

decide(document) := decision if {
	decision := access.decision with input as document
		with data.bastide.actions as actions
		with data.bastide.roles as roles
		with data.bastide.tenants as tenants
		with data.bastide.revision as "test"
}

allowed(document) if decide(document).effect == "ALLOW"

codes(document) := {reason.code | some reason in decide(document).reasons}

changed(fields) := object.union(question, fields)

of(action, attributes) := object.union(
	object.remove(question, ["resource"]),
	{"action": action, "resource": object.union({"type": "thing", "name": "things/1"}, attributes)},
)

test_a_role_of_the_action_is_allowed if {
	decide(question) == {
		"effect": "ALLOW",
		"reasons": [{"code": "ALLOWED", "message": "A role of the caller allows the action.", "public": true}],
		"obligations": {},
		"limits": [],
		"revision": "test",
	}
}

test_another_role_is_denied if {
	document := changed({"principal": {"roles": ["reader"]}})
	codes(document) == {"ROLE_MISSING"}
	decide(document).effect == "DENY"
}

test_roles_are_given_by_those_whom_each_role_names if {
	allowed(of("test.thing.write", {"roles": []}))
	allowed(of("test.thing.write", {"roles": ["reader"]}))
	codes(of("test.thing.write", {"roles": ["reader", "writer"]})) == {"ROLE_NOT_GRANTABLE"}
	codes(of("test.thing.write", {"roles": ["unheard"]})) == {"ROLE_UNKNOWN"}
}

test_an_unknown_action_is_denied if {
	codes(changed({"action": "test.thing.unheard"})) == {"ACTION_UNKNOWN"}
}

test_inference_is_no_question_of_access if {
	codes(changed({"action": "model_server.inference.generate"})) == {"ACTION_UNKNOWN"}
}

test_malformed_input_is_denied_for_that_alone if {
	every document in [{}, object.remove(question, ["method"]), changed({"extra": 1}), changed({"time": "now"})] {
		codes(document) == {"INPUT_MALFORMED"}
		not allowed(document)
	}
}

test_every_known_role_may_do_what_is_for_all if {
	allowed(changed({"action": "test.thing.list", "principal": {"roles": ["reader"]}}))
	not allowed(changed({"action": "test.thing.list", "principal": {"roles": ["unheard-of"]}}))
}

test_an_owner_may_do_what_owners_may if {
	allowed(of("test.thing.own", {"owner": "ada@example.org", "tenant": "default"}))
}

test_somebody_elses_is_denied if {
	codes(of("test.thing.own", {"owner": "grace@example.org", "tenant": "default"})) == {"ROLE_MISSING"}
}

test_the_same_name_in_another_tenant_is_no_owner if {
	not allowed(of("test.thing.own", {"owner": "ada@example.org", "tenant": "other"}))
	not allowed(of("test.thing.own", {"owner": "ada@example.org"}))
}

test_an_owner_without_any_role_is_denied if {
	document := of("test.thing.own", {"owner": "ada@example.org", "tenant": "default"})
	not allowed(object.union(document, {"principal": {"roles": []}}))
}

test_a_second_factor_is_needed_where_the_table_says if {
	allowed(changed({"action": "test.thing.destroy"}))
	codes(changed({"action": "test.thing.destroy", "principal": {"amr": ["pwd"]}})) == {"MFA_REQUIRED"}
}

test_a_slip_in_the_table_still_needs_a_second_factor if {
	codes(changed({"action": "test.thing.slip", "principal": {"amr": ["pwd"]}})) == {"MFA_REQUIRED"}
}

test_a_second_factor_is_needed_where_the_method_says if {
	codes(changed({"method": {"mfa": true}, "principal": {"amr": ["pwd"]}})) == {"MFA_REQUIRED"}
}

test_a_second_person_is_needed if {
	allowed(of("test.thing.approve", {"submitters": ["grace@example.org"]}))
	not allowed(of("test.thing.approve", {"submitters": ["grace@example.org", "ada@example.org"]}))
	codes(of("test.thing.approve", {"submitters": ["ada@example.org"]})) == {"SECOND_PERSON_REQUIRED"}
}

test_without_submitters_nobody_is_a_second_person if {
	codes(of("test.thing.approve", {})) == {"SECOND_PERSON_REQUIRED"}
	not allowed(of("test.thing.approve", {"submitters": []}))
}

test_an_empty_list_of_submitters_makes_no_second_person_even_where_the_schema_lets_it_pass if {
	document := of("test.thing.approve", {"submitters": []})
	codes(document) == {"SECOND_PERSON_REQUIRED"} with data.schemas.access as {}
}

test_a_backend_is_no_second_person if {
	document := of("test.thing.approve", {"submitters": ["grace@example.org"]})
	"SECOND_PERSON_REQUIRED" in codes(object.union(document, {"principal": {"kind": "workload"}}))
}

test_an_action_that_says_nothing_of_a_second_factor_needs_it if {
	codes(changed({"action": "test.thing.silent", "principal": {"amr": ["pwd"]}})) == {"MFA_REQUIRED"}
}

test_nobody_changes_their_own_account if {
	allowed(of("test.thing.disable", {"owner": "grace@example.org"}))
	codes(of("test.thing.disable", {"owner": "ada@example.org"})) == {"SECOND_PERSON_REQUIRED"}
	codes(of("test.thing.disable", {})) == {"SECOND_PERSON_REQUIRED"}
}

test_an_unknown_distinction_is_denied if {
	codes(of("test.thing.odd", {"owner": "grace@example.org"})) == {"SECOND_PERSON_REQUIRED"}
}

test_another_tenants_resource_is_denied if {
	codes(changed({"resource": {"tenant": "other"}})) == {"TENANT_MISMATCH"}
}

test_a_bound_action_needs_a_tenant if {
	allowed(of("test.thing.create", {"tenant": "default"}))
	codes(of("test.thing.create", {})) == {"TENANT_MISMATCH"}
}

test_an_action_of_the_whole_suite_crosses_tenants if {
	allowed(of("test.thing.audit", {"tenant": "other"}))
}

test_a_resource_above_clearance_is_denied if {
	allowed(changed({"resource": {"classification": "INTERNAL"}}))
	codes(changed({"resource": {"classification": "PERSONAL"}})) == {"CLASSIFICATION_ABOVE_CLEARANCE"}
}

test_a_purpose_that_the_tenant_lacks_is_denied if {
	allowed(changed({"resource": {"purpose": "known"}}))
	codes(changed({"resource": {"purpose": "other"}})) == {"PURPOSE_NOT_APPROVED"}
}

test_a_caller_of_an_unknown_tenant_is_denied if {
	document := changed({"principal": {"tenant": "nowhere"}, "resource": {"tenant": "nowhere"}})
	codes(document) == {"TENANT_NOT_ACTIVE"}
}
