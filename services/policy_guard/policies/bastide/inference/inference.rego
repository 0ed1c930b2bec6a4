# METADATA
# title: Inference
# description: >-
#   May this call of a model go on, and under which obligations and limits? Asked once a call, with the findings in
#   the prompt among the facts; the output is inspected against the obligations without asking again.
# schemas:
#   - input: schema.inference.data
package bastide.inference

import data.bastide.caller
import data.bastide.inference.budgets
import data.bastide.inference.content

# METADATA
# description: The one action this question is about.
action := "model_server.inference.generate"

# METADATA
# entrypoint: true
decision := {
	"effect": effect,
	"reasons": reasons,
	"obligations": obligations,
	"limits": limits,
	"revision": data.bastide.revision,
}

default effect := "DENY"

effect := "ALLOW" if allow

default allow := false

# Each condition is stated; that nothing was found against a call is never enough.
allow if {
	input_ok
	caller.tenant_active
	role_allows
	model_granted
	purpose_approved
	use_policy_acknowledged
	count(denials) == 0
}

default input_ok := false

input_ok if {
	json.match_schema(input, data.schemas.inference)[0]
	every finding in input.findings {
		kind_fits(finding)
		labelled(finding)
	}
}

# A kind is its category or begins with it, so that what holds for a category holds for all its kinds.
kind_fits(finding) if finding.kind == finding.category

kind_fits(finding) if startswith(finding.kind, concat("", [finding.category, "_"]))

# Topics are judged by their label.
labelled(finding) if finding.category != "TOPIC"

labelled(finding) if finding.label != ""

reasons := [{"code": "ALLOWED", "message": "Every condition is met.", "public": true}] if {
	allow
} else := [{"code": "INPUT_MALFORMED", "message": "The question is not well formed.", "public": false}] if {
	not input_ok
} else := [denial | some denial in denials]

default obligations := {}

obligations := {
	"input_actions": content.input_actions,
	"output_actions": content.output_actions,
	"release": purpose.release,
	"max_new_tokens": budgets.max_new_tokens,
	"disclosure": content.disclosure,
	"retain_text": purpose.retain_text,
	"restore_surrogates": content.restore_surrogates,
} if {
	allow
}

default limits := []

limits := budgets.limits if allow

purpose := data.bastide.purposes.approved[input.purpose]

default role_allows := false

role_allows if {
	some role in caller.roles
	role in data.bastide.actions[action].roles
}

denials contains denial if {
	input_ok
	some denial in caller.denials
}

denials contains denial if {
	input_ok
	some denial in content.denials
}

denials contains {
	"code": "ROLE_MISSING",
	"message": "None of the caller's roles allows the use of models.",
	"public": true,
} if {
	input_ok
	not role_allows
}

# One grant must cover model, tenant, role and classification together.
default model_granted := false

model_granted if {
	some grant in data.bastide.models.grants
	covers(grant.models, input.model.name)
	covers(grant.tenants, input.principal.tenant)
	some role in caller.roles
	role in grant.roles
	within(input.model.classification, grant.max_classification)
}

covers(names, _) if "*" in names

covers(names, name) if name in names

within(classification, highest) if {
	caller.classifications[classification] <= caller.classifications[highest]
}

denials contains {
	"code": "MODEL_NOT_GRANTED",
	"message": "The model is not granted to the caller.",
	"public": true,
} if {
	input_ok
	not model_granted
}

denials contains {
	"code": "CLASSIFICATION_ABOVE_CLEARANCE",
	"message": "The model is classified above what the caller's roles may see.",
	"public": true,
} if {
	input_ok
	not caller.cleared(input.model.classification)
}

default purpose_approved := false

purpose_approved if {
	purpose
	input.purpose in data.bastide.tenants[input.principal.tenant].purposes
}

denials contains {
	"code": "PURPOSE_NOT_APPROVED",
	"message": "The purpose is not approved for the caller's tenant.",
	"public": true,
} if {
	input_ok
	not purpose_approved
}

denials contains {
	"code": "PURPOSE_NOT_PERMITTED_BY_MODEL",
	"message": "The model learnt from data that was not given for this purpose.",
	"public": true,
} if {
	input_ok
	count(input.model.permitted_purposes) > 0
	not input.purpose in input.model.permitted_purposes
}

denials contains {
	"code": "MODEL_NOT_LOADED",
	"message": "The purpose needs a model whose bytes the suite has loaded itself.",
	"public": true,
} if {
	input_ok
	input.model.binding != "LOADED"
	not declared_accepted
}

default declared_accepted := false

declared_accepted if purpose.accepts_declared == true

# A person accepts the acceptable-use policy; for a backend its registration does.
acknowledged := input.principal.acknowledged_use_policy if input.principal.kind == "person"

acknowledged := caller.registration.acknowledged_use_policy if input.principal.kind == "workload"

default use_policy_acknowledged := false

use_policy_acknowledged if acknowledged == data.bastide.purposes.use_policy.version

denials contains {
	"code": "USE_POLICY_NOT_ACKNOWLEDGED",
	"message": "The acceptable-use policy in force has not been accepted.",
	"public": true,
} if {
	input_ok
	not use_policy_acknowledged
}
