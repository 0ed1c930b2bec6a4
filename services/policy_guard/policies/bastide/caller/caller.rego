# METADATA
# title: Who is calling
# description: >-
#   What every question asks about the caller: known tenant, roles that count, clearance, second factor.
#   Read `denials` together with your own, and only after the input was found well formed.
package bastide.caller

classifications := {
	"PUBLIC": 1,
	"INTERNAL": 2,
	"CONFIDENTIAL": 3,
	"PERSONAL": 4,
	"RESTRICTED": 5,
}

default tenant_active := false

tenant_active if data.bastide.tenants[input.principal.tenant].active == true

# A backend is who its registration says: same SPIFFE id as its certificate, same tenant as its token.
registration := data.bastide.workloads[input.principal.subject] if {
	input.principal.kind == "workload"
	input.workload.spiffe_id == input.principal.subject
}

# METADATA
# description: Claimed roles that the data knows; a backend's must also stand in its registration.
roles contains role if {
	input.principal.kind == "person"
	some role in input.principal.roles
	data.bastide.roles[role]
}

roles contains role if {
	some role in input.principal.roles
	data.bastide.roles[role]
	role in registration.roles
}

# METADATA
# description: Highest classification that any of the roles may see, as a number.
clearance := max({0} | {classifications[data.bastide.roles[role].clearance] | some role in roles})

default cleared(_) := false

cleared(classification) if classifications[classification] <= clearance

default second_factor := false

second_factor if {
	input.principal.kind == "person"
	two_factors
	is_number(input.time)
	is_number(input.principal.auth_time)
	age := input.time - input.principal.auth_time
	age <= data.bastide.mfa.max_age_seconds
	age >= 0 - data.bastide.mfa.clock_skew_seconds
}

two_factors if "mfa" in input.principal.amr

two_factors if {
	"pwd" in input.principal.amr
	"otp" in input.principal.amr
}

denials contains {
	"code": "TENANT_NOT_ACTIVE",
	"message": "The caller's tenant is unknown or suspended.",
	"public": true,
} if {
	not tenant_active
}

denials contains {
	"code": "WORKLOAD_NOT_REGISTERED",
	"message": "The calling workload is not registered for this tenant.",
	"public": true,
} if {
	input.principal.kind == "workload"
	not registered
}

registered if registration.tenant == input.principal.tenant
