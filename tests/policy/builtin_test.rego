# Run by `opa test` against the policy as it ships, see tests/contract/policy/test_builtin_rego.py.
package builtin_test

import data.agentfactory

asked := {
	"question": "execute",
	"subject": {"identity": "spiffe://local/caller/a", "tenant_id": "default", "roles": ["caller"]},
	"template": {"name": "redact", "version": "1.0.0", "digest": "sha256:00", "publisher_key_id": "key"},
	"agent": "redactor",
	"input_bytes": 10,
	"capabilities": {"http": []},
	"limits": {},
}

with_role(role) := object.union(asked, {"subject": {"roles": [role]}})

with_http(url) := object.union(asked, {"capabilities": {"http": [{"method": "GET", "url": url}]}})

test_a_caller_executes if {
	answer := agentfactory.execute with input as asked
	answer.allowed
	answer.reason == "ALLOWED"
}

test_every_limit_is_granted if {
	answer := agentfactory.execute with input as asked
	object.keys(answer.limits) == object.keys(agentfactory.ceilings)
}

test_others_do_not_execute if {
	every role in {"operator", "node", "auditor", ""} {
		answer := agentfactory.execute with input as with_role(role)
		not answer.allowed
		answer.reason == "ROLE_NOT_ALLOWED"
	}
}

test_callers_neither_publish_nor_create if {
	not agentfactory.publish_template.allowed with input as asked
	not agentfactory.create_agent.allowed with input as asked
}

test_authors_publish_and_create if {
	agentfactory.publish_template.allowed with input as with_role("author")
	agentfactory.create_agent.allowed with input as with_role("author")
}

test_nothing_is_allowed_without_input if {
	not agentfactory.execute.allowed with input as {}
	not agentfactory.publish_template.allowed with input as {}
	not agentfactory.create_agent.allowed with input as {}
}

test_a_template_without_a_publisher_is_refused if {
	unsigned := object.union(asked, {"template": {"publisher_key_id": ""}})
	answer := agentfactory.execute with input as unsigned
	answer.reason == "TEMPLATE_UNSIGNED"
}

test_what_the_operator_allows_may_be_called if {
	allowed := [{"method": "GET", "url": "https://a.test/"}]
	answer := agentfactory.execute with input as with_http("https://a.test/v1") with data.operator.allowed_http as allowed
	answer.allowed
}

test_nothing_else_may_be_called if {
	answer := agentfactory.execute with input as with_http("https://b.test/") with data.operator.allowed_http as []
	answer.reason == "CAPABILITY_NOT_ALLOWED"
}

test_credentials_of_the_machine_are_out_of_reach_whatever_is_allowed if {
	allowed := [{"method": "*", "url": "http://169.254.169.254/"}, {"method": "*", "url": "http://metadata:80/"}]
	every url in {"http://169.254.169.254/latest", "http://metadata:80/x"} {
		answer := agentfactory.execute with input as with_http(url) with data.operator.allowed_http as allowed
		answer.reason == "CAPABILITY_DANGEROUS"
	}
}

test_a_tenants_ceiling_cuts if {
	tenants := {"default": {"ceilings": {"wall_ms": 5}}}
	answer := agentfactory.execute with input as asked with data.tenants as tenants
	answer.limits.wall_ms == 5
	answer.limits.cpu_ms == agentfactory.defaults.cpu_ms
}

test_a_tenants_ceiling_lifts_nothing if {
	tenants := {"default": {"ceilings": {"wall_ms": 999999999}}}
	wide := object.union(asked, {"limits": {"wall_ms": 999999999}})
	answer := agentfactory.execute with input as wide with data.tenants as tenants
	answer.limits.wall_ms == agentfactory.ceilings.wall_ms
}

test_another_tenants_ceiling_is_not_ours if {
	tenants := {"other": {"ceilings": {"wall_ms": 5}}}
	answer := agentfactory.execute with input as asked with data.tenants as tenants
	answer.limits.wall_ms == agentfactory.defaults.wall_ms
}

with_llm(model) := object.union(asked, {"capabilities": {"http": [], "llm": {"models": [model], "max_tokens": 10}}})

test_models_are_denied_unless_the_operator_lists_them if {
	denied := agentfactory.execute with input as with_llm("local/small")
	denied.reason == "CAPABILITY_NOT_ALLOWED"
	other := agentfactory.execute with input as with_llm("local/small") with data.operator as {"allowed_llm": ["local/large"]}
	not other.allowed
	near := agentfactory.execute with input as with_llm("local2/small") with data.operator as {"allowed_llm": ["local/*"]}
	not near.allowed
}

test_listed_models_are_allowed if {
	every entry in {"local/small", "local/*"} {
		answer := agentfactory.execute with input as with_llm("local/small") with data.operator as {"allowed_llm": [entry]}
		answer.allowed
	}
}
