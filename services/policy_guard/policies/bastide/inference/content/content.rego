# METADATA
# title: Content of an inference call
# description: >-
#   What findings in the prompt do to a call, and what must be done about content on both ways. Part of
#   data.bastide.inference, which asks only after the input was found well formed.
# schemas:
#   - input: schema.inference.data
package bastide.inference.content

import data.bastide.caller

denials contains {
	"code": "INJECTION_SUSPECTED",
	"message": "The prompt looks like an attempt to override instructions.",
	"public": true,
} if {
	some finding in input.findings
	finding.category == "INJECTION"
	finding.score >= data.bastide.content.injection_threshold
}

denials contains {
	"code": "TOPIC_DENIED",
	"message": "The prompt is about a topic that is not allowed for this purpose.",
	"public": true,
} if {
	some finding in input.findings
	finding.category == "TOPIC"
	finding.score >= topic_threshold(finding.label)
	not input.purpose in object.get(data.bastide.topics.exempt_purposes, finding.label, [])
}

# A topic that the data does not list is denied from the score for unlisted ones on.
topic_threshold(label) := object.get(data.bastide.topics.thresholds, label, data.bastide.topics.unlisted_threshold)

# A loaded model's tokenizer keeps such text apart from its template; of a remote one nobody knows.
denials contains {
	"code": "CONTROL_TOKEN",
	"message": "The prompt holds control tokens, which a remote model could obey.",
	"public": true,
} if {
	input.model.binding != "LOADED"
	some finding in input.findings
	finding.category == "CONTROL_TOKEN"
}

denials contains {
	"code": "CONTENT_BLOCKED",
	"message": "The prompt holds content that may not be sent.",
	"public": true,
} if {
	some finding in input.findings
	not sendable(finding.kind)
}

# A rule of its own: `not undefined in {...}` would be undefined, and deny nothing.
default sendable(_) := false

sendable(kind) if input_actions[kind] in {"PASS", "REDACT", "TOKENISE"}

input_actions[kind] := action if {
	some finding in input.findings
	kind := finding.kind
	action := action_of(data.bastide.content.input, kind, finding.category)
}

# What the answer will hold is not known yet, so every kind that the data knows gets its action.
output_actions[kind] := action if {
	some category, kinds in data.bastide.content.kinds
	some kind in kinds
	action := action_of(data.bastide.content.output, kind, category)
}

action_of(rules, kind, _) := rules.kinds[kind]

action_of(rules, kind, category) := rules.categories[category] if not rules.kinds[kind]

disclosure := data.bastide.content.disclosure[input.principal.kind]

default restore_surrogates := false

restore_surrogates if {
	some role in caller.roles
	role in data.bastide.content.restore_surrogates
}
