# The built-in policy. Its SHA-256, with that of the operator's data, is in every decision and every order.
#
# A question is a rule of this package: publish_template, create_agent, execute, grant_capabilities, pull_artifact,
# admit_node, read_audit. Its answer is {"allowed": bool, "reason": string, "reasons": [string]}, and for the first
# three "limits": {every limit}. Undefined means denied.
package agentfactory

import rego.v1

# What one execution gets at most, whatever its manifest asks for.
ceilings := {
	"wall_ms": 600000,
	"cpu_ms": 600000,
	"memory_bytes": 1073741824,
	"output_bytes": 16777216,
	"log_bytes": 1048576,
	"open_files": 256,
	"fuel": 1000000000000,
	"table_elements": 10000000,
	"log_lines": 1048576,
	"scratch_bytes": 1073741824,
	"scratch_inodes": 100000,
	"random_bytes": 1073741824,
	"host_calls": 10000,
	"host_call_bytes": 67108864,
	"host_call_ms": 600000,
}

# What it gets where its manifest names nothing.
defaults := {
	"wall_ms": 10000,
	"cpu_ms": 10000,
	"memory_bytes": 67108864,
	"output_bytes": 1048576,
	"log_bytes": 262144,
	"open_files": 32,
	"fuel": 20000000000,
	"table_elements": 1000000,
	"log_lines": 65536,
	"scratch_bytes": 0,
	"scratch_inodes": 0,
	"random_bytes": 67108864,
	"host_calls": 1000,
	"host_call_bytes": 16777216,
	"host_call_ms": 10000,
}

max_input_bytes := 16777216

# What a tenant gets at most: data.tenants[<tenant id>].ceilings of a bundle, {"wall_ms": 1000, ...}; never above the
# ceilings of all.
default tenant_ceilings := {}

tenant_ceilings := data.tenants[input.subject.tenant_id].ceilings

# Where machines of clouds keep their credentials. Nobody may allow it.
dangerous_hosts := {
	"169.254.169.254",
	"169.254.170.2",
	"100.100.100.200",
	"[fd00:ec2::254]",
	"metadata.google.internal",
	"metadata",
}

is_dangerous(url) if {
	authority := split(url, "/")[2]
	some host in dangerous_hosts
	authority_is(authority, host)
}

authority_is(authority, host) if authority == host

authority_is(authority, host) if startswith(authority, concat("", [host, ":"]))

# Destinations that agents may reach: the operator's list (AF_CONTROL_ALLOWED_HTTP), none by default. An entry is for one
# method, or for all by "*", and for its URL with all that is below it.
http_allowed(wanted) if {
	some entry in data.operator.allowed_http
	entry.method in {wanted.method, "*"}
	at_or_below(wanted.url, entry.url)
}

# Language models that agents may ask, as ENDPOINT/MODEL, or ENDPOINT/* for all of one: the operator's list
# (AF_CONTROL_ALLOWED_LLM), none by default.
llm_allowed(model) if model in data.operator.allowed_llm

llm_allowed(model) if concat("", [split(model, "/")[0], "/*"]) in data.operator.allowed_llm

at_or_below(url, prefix) if url == prefix

at_or_below(url, prefix) if {
	endswith(prefix, "/")
	startswith(url, prefix)
}

at_or_below(url, prefix) if startswith(url, concat("", [prefix, "/"]))

publish_template := answer(publish_template_denials)

create_agent := answer(create_agent_denials)

execute := answer(execute_denials)

grant_capabilities := answer(grant_capabilities_denials)

pull_artifact := answer(node_denials)

admit_node := answer(node_denials)

read_audit := answer(read_audit_denials)

publish_template_denials contains "ROLE_NOT_ALLOWED" if not has_role({"admin", "author"})

publish_template_denials contains reason if some reason in template_denials

create_agent_denials contains "ROLE_NOT_ALLOWED" if not has_role({"admin", "author"})

create_agent_denials contains reason if some reason in template_denials

execute_denials contains "ROLE_NOT_ALLOWED" if not has_role({"admin", "author", "caller"})

execute_denials contains "INPUT_TOO_LARGE" if input.input_bytes > max_input_bytes

execute_denials contains reason if some reason in template_denials

grant_capabilities_denials contains "ROLE_NOT_ALLOWED" if not has_role({"admin", "author", "caller"})

grant_capabilities_denials contains reason if some reason in template_denials

# What a certificate of this installation says of a node is checked before: here its operator may say more.
node_denials contains "NODE_UNKNOWN" if not named_node

named_node if startswith(input.node.node_id, "nod_")

read_audit_denials contains "ROLE_NOT_ALLOWED" if not has_role({"admin", "operator", "auditor"})

template_denials contains "CAPABILITY_NOT_ALLOWED" if {
	some wanted in input.capabilities.http
	not http_allowed(wanted)
}

template_denials contains "CAPABILITY_NOT_ALLOWED" if {
	some model in input.capabilities.llm.models
	not llm_allowed(model)
}

template_denials contains "CAPABILITY_DANGEROUS" if {
	some wanted in input.capabilities.http
	is_dangerous(wanted.url)
}

template_denials contains "TEMPLATE_UNSIGNED" if input.template.publisher_key_id == ""

has_role(roles) if {
	some role in input.subject.roles
	role in roles
}

granted := {name: limit |
	some name, ceiling in ceilings
	tenants := object.get(tenant_ceilings, name, ceiling)
	limit := min([ceiling, tenants, object.get(input.limits, name, defaults[name])])
}

answer(denials) := {"allowed": true, "reason": "ALLOWED", "limits": granted} if count(denials) == 0

answer(denials) := {"allowed": false, "reason": sorted[0], "reasons": sorted, "limits": granted} if {
	count(denials) > 0
	sorted := sort(denials)
}
