# METADATA
# title: Identity
# description: May this workload exchange its certificate for a token, and of which tenant and roles?
# schemas:
#   - input: schema.identity.data
package bastide.identity

# METADATA
# entrypoint: true
decision := {
	"effect": effect,
	"reasons": reasons,
	"obligations": obligations,
	"limits": [],
	"revision": data.bastide.revision,
}

default effect := "DENY"

effect := "ALLOW" if allow

default allow := false

allow if {
	input_ok
	data.bastide.tenants[registration.tenant].active == true
	count(roles) > 0
}

default input_ok := false

input_ok if json.match_schema(input, data.schemas.identity)[0]

registration := data.bastide.workloads[input.workload.spiffe_id]

roles := [role | some role in registration.roles; data.bastide.roles[role]]

default obligations := {}

obligations := {"tenant": registration.tenant, "roles": roles} if allow

reasons := [{"code": "ALLOWED", "message": "The workload is registered.", "public": true}] if {
	allow
} else := [{"code": "INPUT_MALFORMED", "message": "The question is not well formed.", "public": false}] if {
	not input_ok
} else := [{
	"code": "WORKLOAD_NOT_REGISTERED",
	"message": "The workload is not registered, or its tenant is suspended.",
	"public": true,
}]
