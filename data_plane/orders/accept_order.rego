# What a node asks itself before it runs an order that passed every other check, unless AF_NODE_POLICY_FILE names
# another file. The answer is {"allowed": bool, "reason": string}; undefined means denied.
package agentfactory

import rego.v1

accept_order := {"allowed": true, "reason": "ALLOWED"}
