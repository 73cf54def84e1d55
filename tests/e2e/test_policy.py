"""Policy from the command line to a running agent: a bundle denies, a rollback allows again, a node has its own."""

import base64
import json

from agentfactory.v1 import executions_pb2

from tests.e2e.stack import running_stack

AGENT = "careful"
NODE_POLICY = """package agentfactory
import rego.v1
accept_order := {"allowed": false, "reason": "SECRET_TENANT"} if input.agent == "careful"
else := {"allowed": true, "reason": "ALLOWED"}
"""


async def test_a_bundle_denies_executions_and_one_command_goes_back() -> None:
    async with running_stack(nodes=1) as stack:
        await stack.make_agent(AGENT)
        execution, _ = await stack.execute(AGENT, b"sleep 1")
        assert execution.state == executions_pb2.EXECUTION_STATE_SUCCEEDED
        folder = stack.folder / "policy"
        await stack.cli("policy", "init", str(folder))
        await stack.cli("policy", "check", str(folder))
        assert (await stack.cli("policy", "test", str(folder), "--json")).json()["passed"]
        rules = folder / "builtin.rego"
        rules.write_text(rules.read_text() + '\nexecute_denials contains "MAINTENANCE"\n')
        failed = await stack.cli("policy", "test", str(folder), "--json", expect=1)
        assert not failed.json().get("passed", False)
        (folder / "builtin_test.rego").unlink()

        await stack.cli("policy", "publish", str(folder), expect=3)  # not signed
        signed = await stack.cli("policy", "sign", str(folder), "--version", "1", "--json")
        digest = signed.json()["digest"]
        assert (await stack.cli("policy", "publish", str(folder), "--json")).json()["digest"] == digest
        changed = (await stack.cli("policy", "diff", "1", "--question", "execute", "--json")).json()
        assert changed["replayed"] == len(changed["changed"]) == 1
        activated = (await stack.cli("policy", "activate", "1", "--json")).json()
        assert activated["bundle"]["active"]

        input_file = stack.folder / "input"
        input_file.write_bytes(b"sleep 1")
        denied = await stack.cli("run", AGENT, "--input", str(input_file), "--json", expect=3)
        assert "MAINTENANCE" in denied.json()["error"]["message"]
        listed = (await stack.cli("policy", "decisions", "--result", "denied", "--json")).json()
        newest = listed["decisions"][0]
        assert (newest["reason"], newest["policyDigest"]) == ("MAINTENANCE", digest)

        back = (await stack.cli("policy", "rollback", "--json")).json()
        assert back["previousDigest"] == digest
        execution, _ = await stack.execute(AGENT, b"sleep 1")
        assert execution.state == executions_pb2.EXECUTION_STATE_SUCCEEDED
        again = await stack.cli("policy", "reevaluate", newest["decisionId"], "--json")
        assert again.json()["same"]
        shown = await stack.cli("policy", "decision", newest["decisionId"])
        assert "MAINTENANCE" in shown.out
        assert "builtin" in (await stack.cli("policy", "show")).out
        assert (await stack.cli("policy", "list", "--json")).json()["bundles"][0]["version"] == 1
        actions = {
            entry["action"] for entry in (await stack.cli("audit", "list", "--json")).json()["auditEntries"]
        }
        assert {"policy.published", "policy.activated", "policy.rolled_back", "execution.denied"} <= actions
        questions = {
            decision["question"]
            for decision in (await stack.cli("policy", "decisions", "--json")).json()["decisions"]
        }
        assert {"admit_node", "pull_artifact", "read_audit", "execute", "create_agent"} <= questions


async def test_a_node_refuses_by_its_own_policy_and_signs_why() -> None:
    async with running_stack(nodes=0) as stack:
        policy = stack.folder / "node.rego"
        policy.write_text(NODE_POLICY)
        await stack.add_node(AF_NODE_POLICY_FILE=str(policy))
        await stack.make_agent(AGENT)
        await stack.make_agent("free")
        execution, _ = await stack.execute(AGENT, b"sleep 1")
        assert execution.state == executions_pb2.EXECUTION_STATE_REJECTED
        receipt = await stack.cli("receipt", "get", execution.execution_id, "--json")
        envelope = json.loads(base64.b64decode(receipt.json()["envelope"]))
        assert b"SECRET_TENANT" in base64.b64decode(envelope["payload"])
        execution, _ = await stack.execute("free", b"sleep 1")
        assert execution.state == executions_pb2.EXECUTION_STATE_SUCCEEDED
