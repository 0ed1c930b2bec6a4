# Whether the data documents agree with each other. Shapes are checked by schemas/documents.
package bastide_test

known_role(role) if data.bastide.roles[role]

known_role(role) if role == "*"

test_actions_name_known_roles if {
	every action in data.bastide.actions {
		every role in action.roles {
			known_role(role)
		}
	}
}

test_grants_name_known_roles_and_tenants if {
	every grant in data.bastide.models.grants {
		every role in grant.roles {
			data.bastide.roles[role]
		}
		every tenant in grant.tenants {
			tenant in (object.keys(data.bastide.tenants) | {"*"})
		}
	}
}

test_workloads_name_known_roles_and_tenants if {
	every workload in data.bastide.workloads {
		data.bastide.tenants[workload.tenant]
		every role in workload.roles {
			data.bastide.roles[role]
		}
	}
}

test_tenants_name_approved_purposes if {
	every tenant in data.bastide.tenants {
		every purpose in tenant.purposes {
			data.bastide.purposes.approved[purpose]
		}
	}
}

test_topics_are_exempt_for_approved_purposes if {
	every purposes in data.bastide.topics.exempt_purposes {
		every purpose in purposes {
			data.bastide.purposes.approved[purpose]
		}
	}
}

test_kinds_begin_with_their_category if {
	every category, kinds in data.bastide.content.kinds {
		every kind in kinds {
			strings.any_prefix_match(concat("", [kind, "_"]), concat("", [category, "_"]))
		}
	}
}

test_kinds_with_an_action_are_known if {
	known := {kind | some kinds in data.bastide.content.kinds; some kind in kinds}
	every flow in [data.bastide.content.input, data.bastide.content.output] {
		every kind, _ in flow.kinds {
			kind in known
		}
	}
}
