"""What stands around a fleet's workers, from the worker's own look at itself to the operator who asks for the node."""

import json

from agentfactory.v1 import nodes_pb2

from tests.e2e.stack import command, running_stack


async def test_operators_see_the_layers_of_each_node() -> None:
    async with running_stack(nodes=1) as stack:
        doctor = await command("sandbox", "doctor", "--json")
        here = {(each["layer"], each["active"], each["detail"]) for each in json.loads(doctor.out)}
        assert len(here) > 1, doctor.err
        (listed,) = await stack.list_nodes()
        async with stack.client() as client:
            answer = await client.fleet.GetNode(nodes_pb2.GetNodeRequest(node_id=listed.node_id), timeout=10)
        assert {(each.name, each.active, each.detail) for each in answer.node.sandbox_layers} == here
