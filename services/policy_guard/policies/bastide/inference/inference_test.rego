package bastide.inference_test

import data.bastide.inference

now := 1700000000

question := {
	"time": now,
	"principal": {
		"subject": "ada@example.org",
		"kind": "person",
		"tenant": "default",
		"roles": ["user"],
		"amr": ["pwd"],
		"auth_time": now - 10,
		"acknowledged_use_policy": "7",
	},
	"workload": {"spiffe_id": "spiffe://test/client/cli"},
	"method": {"full_name": "/test.Service/Generate", "mfa": false},
	"action": "model_server.inference.generate",
	"model": {
		"name": "small",
		"version": "models/small/versions/1",
		"binding": "LOADED",
		"classification": "INTERNAL",
		"permitted_purposes": [],
	},
	"purpose": "open",
	"parameters": {"max_new_tokens": 0, "stream": true},
	"findings": [],
}

bastide := {
	"actions": {"model_server.inference.generate": {"roles": ["user"], "mfa": false}},
	"roles": {"user": {"clearance": "INTERNAL"}, "expert": {"clearance": "RESTRICTED"}},
	"tenants": {"default": {"active": true, "purposes": ["open", "careful", "vanished"]}},
	"workloads": {"spiffe://test/client/cli": {
		"tenant": "default",
		"roles": ["user"],
		"acknowledged_use_policy": "7",
	}},
	"models": {"grants": [
		{"models": ["small"], "tenants": ["default"], "roles": ["user"], "max_classification": "INTERNAL"},
		{"models": ["theirs"], "tenants": ["other"], "roles": ["user"], "max_classification": "INTERNAL"},
		{"models": ["*"], "tenants": ["*"], "roles": ["expert"], "max_classification": "RESTRICTED"},
	]},
	"purposes": {
		"use_policy": {"version": "7"},
		"approved": {
			"open": {"accepts_declared": true, "release": "STREAMED", "retain_text": false},
			"careful": {"accepts_declared": false, "release": "BUFFERED", "retain_text": true},
			"unassigned": {"accepts_declared": false, "release": "BUFFERED", "retain_text": true},
		},
	},
	"content": {
		"kinds": {"PERSONAL": ["PERSONAL_EMAIL", "PERSONAL_PHONE"], "SECRET": ["SECRET_KEY"], "ODD": ["ODD"]},
		"input": {
			"kinds": {"PERSONAL_EMAIL": "TOKENISE", "SECRET_KEY": "BLOCK"},
			"categories": {
				"PERSONAL": "REDACT",
				"INJECTION": "PASS",
				"TOPIC": "PASS",
				"CONTROL_TOKEN": "PASS",
			},
		},
		"output": {"kinds": {"PERSONAL_PHONE": "PASS"}, "categories": {"PERSONAL": "REDACT", "SECRET": "BLOCK"}},
		"injection_threshold": 0.8,
		"disclosure": {"person": "By a machine.", "workload": ""},
		"restore_surrogates": ["user"],
	},
	"topics": {"thresholds": {"weapons": 0.5}, "unlisted_threshold": 0.9, "exempt_purposes": {"weapons": ["careful"]}},
	"limits": {
		"max_new_tokens": {"default": 1000, "tenants": {"default": 800}, "models": {"tiny": 10}},
		"budgets": {
			"TENANT": {"default": [{"unit": "TOKENS", "limit": 9, "window_seconds": 60}], "named": {}},
			"PRINCIPAL": {
				"default": [{"unit": "REQUESTS", "limit": 5, "window_seconds": 60}],
				"named": {"grace@example.org": [{"unit": "REQUESTS", "limit": 50, "window_seconds": 60}]},
			},
			"MODEL": {"default": [], "named": {}},
		},
	},
	"mfa": {"max_age_seconds": 900, "clock_skew_seconds": 60},
}

decide(document) := decision if {
	decision := inference.decision with input as document
		with data.bastide.actions as bastide.actions
		with data.bastide.roles as bastide.roles
		with data.bastide.tenants as bastide.tenants
		with data.bastide.workloads as bastide.workloads
		with data.bastide.models as bastide.models
		with data.bastide.purposes as bastide.purposes
		with data.bastide.content as bastide.content
		with data.bastide.topics as bastide.topics
		with data.bastide.limits as bastide.limits
		with data.bastide.revision as "test"
}

codes(document) := {reason.code | some reason in decide(document).reasons}

changed(fields) := object.union(question, fields)

found(findings) := changed({"findings": findings})

finding(kind, category, score) := {
	"kind": kind,
	"category": category,
	"detector": "test",
	"label": "",
	"score": score,
	"count": 1,
}

topic(label, score) := object.union(finding("TOPIC", "TOPIC", score), {"label": label})

test_a_whole_question_is_allowed if {
	decision := decide(question)
	decision.effect == "ALLOW"
	decision.revision == "test"
	codes(question) == {"ALLOWED"}
}

test_malformed_input_is_denied_for_that_alone if {
	every document in [
		{},
		object.remove(question, ["findings"]),
		changed({"extra": 1}),
		changed({"purpose": null}),
		changed({"action": "model_server.model.get"}),
		found([object.remove(finding("INJECTION", "INJECTION", 1), ["score"])]),
	] {
		codes(document) == {"INPUT_MALFORMED"}
		decide(document).effect == "DENY"
		decide(document).obligations == {}
		decide(document).limits == []
	}
}

test_a_kind_outside_its_category_is_malformed if {
	codes(found([finding("SECRET_KEY", "PERSONAL", 1)])) == {"INPUT_MALFORMED"}
	codes(found([finding("PERSONALLY", "PERSONAL", 1)])) == {"INPUT_MALFORMED"}
}

test_a_topic_without_a_label_is_malformed if {
	codes(found([finding("TOPIC", "TOPIC", 0.1)])) == {"INPUT_MALFORMED"}
}

test_a_caller_of_an_unknown_tenant_is_denied if {
	"TENANT_NOT_ACTIVE" in codes(changed({"principal": {"tenant": "nowhere"}}))
}

test_a_caller_without_a_role_for_models_is_denied if {
	"ROLE_MISSING" in codes(changed({"principal": {"roles": ["expert"]}}))
}

test_a_model_that_no_grant_covers_is_denied if {
	codes(changed({"model": {"name": "large"}})) == {"MODEL_NOT_GRANTED"}
	"MODEL_NOT_GRANTED" in codes(changed({"model": {"classification": "PERSONAL"}}))
}

test_a_model_granted_to_another_tenant_is_denied if {
	codes(changed({"model": {"name": "theirs"}})) == {"MODEL_NOT_GRANTED"}
}

test_a_grant_for_every_model_covers_any if {
	document := changed({"model": {"name": "large"}, "principal": {"roles": ["user", "expert"]}})
	decide(document).effect == "ALLOW"
}

test_a_model_above_clearance_is_denied if {
	"CLASSIFICATION_ABOVE_CLEARANCE" in codes(changed({"model": {"classification": "RESTRICTED"}}))
}

test_a_purpose_that_the_tenant_or_the_data_lacks_is_denied if {
	every purpose in ["unassigned", "vanished", "unheard-of"] {
		codes(changed({"purpose": purpose})) == {"PURPOSE_NOT_APPROVED"}
	}
}

test_a_purpose_that_the_models_data_was_not_given_for_is_denied if {
	decide(changed({"model": {"permitted_purposes": ["open"]}})).effect == "ALLOW"
	codes(changed({"model": {"permitted_purposes": ["careful"]}})) == {"PURPOSE_NOT_PERMITTED_BY_MODEL"}
}

test_a_declared_model_serves_only_purposes_that_accept_it if {
	declared := {"model": {"binding": "DECLARED"}}
	decide(changed(declared)).effect == "ALLOW"
	codes(changed(object.union(declared, {"purpose": "careful"}))) == {"MODEL_NOT_LOADED"}
}

test_the_use_policy_in_force_must_be_accepted if {
	every version in ["6", "", null] {
		codes(changed({"principal": {"acknowledged_use_policy": version}})) == {"USE_POLICY_NOT_ACKNOWLEDGED"}
	}
}

backend := changed({"principal": {
	"subject": "spiffe://test/client/cli",
	"kind": "workload",
	"amr": [],
	"auth_time": null,
	"acknowledged_use_policy": null,
}})

test_a_backends_registration_accepts_the_use_policy_for_it if {
	decide(backend).effect == "ALLOW"
	decide(backend).obligations.disclosure == ""
}

test_a_backend_cannot_accept_it_by_its_token if {
	document := object.union(backend, {"principal": {"subject": "spiffe://test/x", "acknowledged_use_policy": "7"}})
	"USE_POLICY_NOT_ACKNOWLEDGED" in codes(document)
}

test_obligations_name_what_to_do_with_each_kind if {
	findings := [finding("PERSONAL_EMAIL", "PERSONAL", 1), finding("PERSONAL_PHONE", "PERSONAL", 1)]
	decide(found(findings)).obligations == {
		"input_actions": {"PERSONAL_EMAIL": "TOKENISE", "PERSONAL_PHONE": "REDACT"},
		"output_actions": {"PERSONAL_EMAIL": "REDACT", "PERSONAL_PHONE": "PASS", "SECRET_KEY": "BLOCK"},
		"release": "STREAMED",
		"max_new_tokens": 800,
		"disclosure": "By a machine.",
		"retain_text": false,
		"restore_surrogates": true,
	}
}

test_a_careful_purpose_buffers_and_retains if {
	obligations := decide(changed({"purpose": "careful"})).obligations
	obligations.release == "BUFFERED"
	obligations.retain_text
}

test_a_kind_that_nothing_covers_is_denied if {
	codes(found([finding("ODD", "ODD", 0.1)])) == {"CONTENT_BLOCKED"}
}

test_a_blocked_kind_is_denied if {
	codes(found([finding("SECRET_KEY", "SECRET", 1)])) == {"CONTENT_BLOCKED"}
}

test_injection_is_denied_from_the_threshold_on if {
	codes(found([finding("INJECTION", "INJECTION", 0.8)])) == {"INJECTION_SUSPECTED"}
	decide(found([finding("INJECTION", "INJECTION", 0.79)])).obligations.input_actions == {"INJECTION": "PASS"}
}

test_topics_are_denied_by_their_thresholds if {
	codes(found([topic("weapons", 0.5)])) == {"TOPIC_DENIED"}
	codes(found([topic("gardening", 0.9)])) == {"TOPIC_DENIED"}
	decide(found([topic("weapons", 0.4), topic("gardening", 0.8)])).effect == "ALLOW"
}

test_a_purpose_can_be_exempt_from_a_topic if {
	decide(object.union(found([topic("weapons", 1)]), {"purpose": "careful"})).effect == "ALLOW"
}

test_control_tokens_are_denied_for_models_that_are_only_declared if {
	document := found([finding("CONTROL_TOKEN", "CONTROL_TOKEN", 1)])
	decide(document).effect == "ALLOW"
	codes(object.union(document, {"model": {"binding": "DECLARED"}})) == {"CONTROL_TOKEN"}
}

test_the_least_cap_on_new_tokens_wins if {
	decide(changed({"parameters": {"max_new_tokens": 5}})).obligations.max_new_tokens == 5
	decide(changed({"parameters": {"max_new_tokens": 5000}})).obligations.max_new_tokens == 800
	tiny := changed({"model": {"name": "tiny"}, "principal": {"roles": ["user", "expert"]}})
	decide(tiny).obligations.max_new_tokens == 10
}

test_surrogates_are_restored_only_for_roles_that_may_see_them if {
	decision := inference.decision with input as question
		with data.bastide.actions as bastide.actions
		with data.bastide.roles as bastide.roles
		with data.bastide.tenants as bastide.tenants
		with data.bastide.models as bastide.models
		with data.bastide.purposes as bastide.purposes
		with data.bastide.content as object.union(bastide.content, {"restore_surrogates": ["expert"]})
		with data.bastide.limits as bastide.limits
		with data.bastide.revision as "test"
	decision.obligations.restore_surrogates == false
}

test_limits_of_every_scope_come_along if {
	{limit | some limit in decide(question).limits} == {
		{"scope": "TENANT", "unit": "TOKENS", "limit": 9, "window_seconds": 60},
		{"scope": "PRINCIPAL", "unit": "REQUESTS", "limit": 5, "window_seconds": 60},
	}
}

test_a_named_limit_replaces_the_default if {
	some limit in decide(changed({"principal": {"subject": "grace@example.org"}})).limits
	limit.scope == "PRINCIPAL"
	limit.limit == 50
}
