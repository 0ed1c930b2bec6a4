package bastide.identity_test

import data.bastide.identity

question := {"time": 1700000000, "workload": {"spiffe_id": "spiffe://test/client/a"}}

tenants := {"default": {"active": true, "purposes": []}, "gone": {"active": false, "purposes": []}}

roles := {"developer": {"clearance": "INTERNAL"}}

decide(document, registration) := decision if {
	decision := identity.decision with input as document
		with data.bastide.workloads as {"spiffe://test/client/a": registration}
		with data.bastide.tenants as tenants
		with data.bastide.roles as roles
		with data.bastide.revision as "test"
}

codes(document, registration) := {reason.code | some reason in decide(document, registration).reasons}

registered := {"tenant": "default", "roles": ["developer", "unheard-of"]}

test_a_registered_workload_gets_its_tenant_and_known_roles if {
	decision := decide(question, registered)
	decision.effect == "ALLOW"
	decision.obligations == {"tenant": "default", "roles": ["developer"]}
	codes(question, registered) == {"ALLOWED"}
}

test_an_unregistered_workload_is_denied if {
	stranger := {"time": 1700000000, "workload": {"spiffe_id": "spiffe://test/client/b"}}
	decision := decide(stranger, registered)
	decision.effect == "DENY"
	decision.obligations == {}
	codes(stranger, registered) == {"WORKLOAD_NOT_REGISTERED"}
}

test_a_workload_without_a_known_role_is_denied if {
	codes(question, {"tenant": "default", "roles": ["unheard-of"]}) == {"WORKLOAD_NOT_REGISTERED"}
}

test_a_workload_of_a_suspended_tenant_is_denied if {
	codes(question, {"tenant": "gone", "roles": ["developer"]}) == {"WORKLOAD_NOT_REGISTERED"}
}

test_malformed_input_is_denied if {
	codes({}, registered) == {"INPUT_MALFORMED"}
	codes({"workload": question.workload}, registered) == {"INPUT_MALFORMED"}
}
