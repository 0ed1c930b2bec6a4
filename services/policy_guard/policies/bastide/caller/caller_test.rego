package bastide.caller_test

import data.bastide.caller

now := 1700000000

person := {
	"subject": "ada@example.org",
	"kind": "person",
	"tenant": "acme",
	"roles": ["reader", "unheard-of"],
	"amr": ["pwd", "otp"],
	"auth_time": now - 10,
	"acknowledged_use_policy": "1",
}

backend := {
	"subject": "spiffe://test/client/a",
	"kind": "workload",
	"tenant": "acme",
	"roles": ["reader", "writer"],
	"amr": [],
	"auth_time": null,
	"acknowledged_use_policy": null,
}

asked(principal) := {
	"time": now,
	"principal": principal,
	"workload": {"spiffe_id": "spiffe://test/client/a"},
}

with_fields(fields) := asked(object.union(person, fields))

codes := {denial.code | some denial in caller.denials}

tenants := {
	"acme": {"active": true, "purposes": []},
	"gone": {"active": false, "purposes": []},
}

roles := {
	"reader": {"clearance": "INTERNAL"},
	"writer": {"clearance": "CONFIDENTIAL"},
}

workloads := {"spiffe://test/client/a": {"tenant": "acme", "roles": ["reader"]}}

test_person_of_an_active_tenant_is_not_denied if {
	count(codes) == 0 with input as asked(person) with data.bastide.tenants as tenants
}

test_unknown_and_suspended_tenants_are_denied if {
	every tenant in ["nowhere", "gone"] {
		"TENANT_NOT_ACTIVE" in codes with input as with_fields({"tenant": tenant}) with data.bastide.tenants as tenants
	}
}

test_roles_that_the_data_does_not_know_do_not_count if {
	caller.roles == {"reader"} with input as asked(person) with data.bastide.roles as roles
}

test_a_backend_has_only_the_roles_of_its_registration if {
	caller.roles == {"reader"} with input as asked(backend)
		with data.bastide.roles as roles
		with data.bastide.workloads as workloads
}

test_a_backend_without_registration_is_denied if {
	"WORKLOAD_NOT_REGISTERED" in codes with input as asked(backend) with data.bastide.workloads as {}
}

test_a_backend_of_another_tenant_is_denied if {
	"WORKLOAD_NOT_REGISTERED" in codes with input as asked(object.union(backend, {"tenant": "gone"}))
		with data.bastide.workloads as workloads
}

test_a_backend_with_another_certificate_is_denied if {
	question := object.union(asked(backend), {"workload": {"spiffe_id": "spiffe://test/client/b"}})
	"WORKLOAD_NOT_REGISTERED" in codes with input as question with data.bastide.workloads as workloads
}

test_a_registered_backend_is_not_denied if {
	count(codes) == 0 with input as asked(backend)
		with data.bastide.tenants as tenants
		with data.bastide.workloads as workloads
}

test_clearance_is_that_of_the_highest_role if {
	caller.cleared("CONFIDENTIAL") with input as with_fields({"roles": ["reader", "writer"]}) with data.bastide.roles as roles
	not caller.cleared("CONFIDENTIAL") with input as asked(person) with data.bastide.roles as roles
}

test_without_a_role_nothing_is_cleared if {
	not caller.cleared("PUBLIC") with input as with_fields({"roles": []}) with data.bastide.roles as roles
}

test_an_unknown_classification_is_never_cleared if {
	not caller.cleared("SECRET") with input as asked(person) with data.bastide.roles as roles
}

mfa := {"max_age_seconds": 900, "clock_skew_seconds": 60}

test_a_recent_second_factor_counts if {
	every methods in [["mfa"], ["pwd", "otp"], ["pwd", "hwk", "mfa"]] {
		caller.second_factor with input as with_fields({"amr": methods}) with data.bastide.mfa as mfa
	}
}

test_one_factor_is_not_two if {
	every methods in [[], ["pwd"], ["otp"], ["hwk", "sms"]] {
		not caller.second_factor with input as with_fields({"amr": methods}) with data.bastide.mfa as mfa
	}
}

test_a_second_factor_ages if {
	caller.second_factor with input as with_fields({"auth_time": now - 900}) with data.bastide.mfa as mfa
	not caller.second_factor with input as with_fields({"auth_time": now - 901}) with data.bastide.mfa as mfa
}

test_a_second_factor_from_the_future_does_not_count if {
	caller.second_factor with input as with_fields({"auth_time": now + 60}) with data.bastide.mfa as mfa
	not caller.second_factor with input as with_fields({"auth_time": now + 61}) with data.bastide.mfa as mfa
}

test_a_second_factor_without_a_time_does_not_count if {
	not caller.second_factor with input as with_fields({"auth_time": null}) with data.bastide.mfa as mfa
}

test_a_backend_never_has_a_second_factor if {
	question := object.union(backend, {"amr": ["mfa"], "auth_time": now})
	not caller.second_factor with input as asked(question) with data.bastide.mfa as mfa
}
