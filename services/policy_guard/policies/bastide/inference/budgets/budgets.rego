# METADATA
# title: Budgets and caps of an inference call
# description: >-
#   What is named for a tenant, principal or model goes before the default. Part of data.bastide.inference, which asks
#   only after the input was found well formed.
# schemas:
#   - input: schema.inference.data
package bastide.inference.budgets

limits := [limit |
	some scope, name in {
		"MODEL": input.model.name,
		"PRINCIPAL": input.principal.subject,
		"TENANT": input.principal.tenant,
	}
	budgets := data.bastide.limits.budgets[scope]
	some budget in object.get(budgets.named, name, budgets.default)
	limit := object.union({"scope": scope}, budget)
]

# METADATA
# description: The least of the caps on new tokens, the request's own wish (0 is none) among them.
max_new_tokens := min(caps)

caps contains data.bastide.limits.max_new_tokens.default

caps contains data.bastide.limits.max_new_tokens.tenants[input.principal.tenant]

caps contains data.bastide.limits.max_new_tokens.models[input.model.name]

caps contains input.parameters.max_new_tokens if input.parameters.max_new_tokens > 0
