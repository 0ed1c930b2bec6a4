# METADATA
# title: Access
# description: May this principal call this method on this resource? Asked for everything but inference.
# schemas:
#   - input: schema.access.data
package bastide.access

import data.bastide.caller

# METADATA
# entrypoint: true
decision := {
	"effect": effect,
	"reasons": reasons,
	"obligations": {},
	"limits": [],
	"revision": data.bastide.revision,
}

default effect := "DENY"

effect := "ALLOW" if allow

default allow := false

# Each condition is stated; that nothing was found against a call is never enough.
allow if {
	input_ok
	role_allows
	caller.tenant_active
	count(denials) == 0
}

default input_ok := false

input_ok if json.match_schema(input, data.schemas.access)[0]

reasons := [{"code": "ALLOWED", "message": "A role of the caller allows the action.", "public": true}] if {
	allow
} else := [{"code": "INPUT_MALFORMED", "message": "The question is not well formed.", "public": false}] if {
	not input_ok
} else := [denial | some denial in denials]

# The action's row. Inference has a question of its own and no row here counts for it.
entry := data.bastide.actions[input.action] if input.action != data.bastide.inference.action

default role_allows := false

role_allows if {
	some role in caller.roles
	some permitted in entry.roles
	permitted in {role, "*"}
}

role_allows if {
	entry.owner == true
	input.resource.owner == input.principal.subject
	input.resource.tenant == input.principal.tenant
	count(caller.roles) > 0
}

denials contains denial if {
	input_ok
	some denial in caller.denials
}

denials contains {
	"code": "ACTION_UNKNOWN",
	"message": "Policy has no entry for the action.",
	"public": false,
} if {
	input_ok
	not entry
}

denials contains {
	"code": "ROLE_MISSING",
	"message": "None of the caller's roles allows the action.",
	"public": true,
} if {
	input_ok
	entry
	not role_allows
}

denials contains {
	"code": "MFA_REQUIRED",
	"message": "The action needs a recent second factor; sign in again with one.",
	"public": true,
} if {
	input_ok
	second_factor_needed
	not caller.second_factor
}

# Whatever is not plainly `mfa: false` needs it: a slip in the table must not drop a second factor.
second_factor_needed if input.method.mfa

second_factor_needed if object.get(entry, "mfa", true) != false

denials contains {
	"code": "SECOND_PERSON_REQUIRED",
	"message": "The action needs another person than the one it is about.",
	"public": true,
} if {
	input_ok
	some attribute in entry.distinct_from
	not distinct_from(attribute)
}

default distinct_from(_) := false

distinct_from("owner") if input.resource.owner != input.principal.subject

distinct_from("submitters") if {
	input.principal.kind == "person"
	count(input.resource.submitters) > 0
	not input.principal.subject in input.resource.submitters
}

denials contains {
	"code": "ROLE_NOT_GRANTABLE",
	"message": "The caller's roles do not allow giving this role.",
	"public": true,
} if {
	input_ok
	some role in input.resource.roles
	data.bastide.roles[role]
	not grantable(role)
}

denials contains {
	"code": "ROLE_UNKNOWN",
	"message": "There is no such role.",
	"public": true,
} if {
	input_ok
	some role in input.resource.roles
	not data.bastide.roles[role]
}

default grantable(_) := false

grantable(role) if {
	some granter in data.bastide.roles[role].granted_by
	granter in caller.roles
}

denials contains {
	"code": "TENANT_MISMATCH",
	"message": "The resource belongs to another tenant.",
	"public": false,
} if {
	input_ok
	not any_tenant
	tenant_differs
}

default any_tenant := false

any_tenant if entry.any_tenant == true

tenant_differs if input.resource.tenant != input.principal.tenant

tenant_differs if {
	entry.tenant_bound == true
	not input.resource.tenant
}

denials contains {
	"code": "CLASSIFICATION_ABOVE_CLEARANCE",
	"message": "The resource is classified above what the caller's roles may see.",
	"public": true,
} if {
	input_ok
	input.resource.classification
	not caller.cleared(input.resource.classification)
}

denials contains {
	"code": "PURPOSE_NOT_APPROVED",
	"message": "The purpose is not approved for the caller's tenant.",
	"public": true,
} if {
	input_ok
	input.resource.purpose
	not purpose_approved
}

default purpose_approved := false

purpose_approved if input.resource.purpose in data.bastide.tenants[input.principal.tenant].purposes
