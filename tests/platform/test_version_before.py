"""Expand, then contract: the control plane of an earlier version works on today's schema, alone and beside today's.

Its code comes out of the repository's history and runs in processes of its own; nothing of it is imported here.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from agentfactory.v1 import templates_pb2

from cli.settings import CliSettings
from cli.stack import local
from cli.stack.children import stop
from cli.templates import reference
from control_plane.database.migrate import newest_revision
from tests.e2e.stack import Execution, TestStack, running_stack
from tests.platform import version_before
from tests.platform.callers import SUCCEEDED, call, request

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return version_before.unpack(tmp_path_factory.mktemp("before"))


@asynccontextmanager
async def control_plane_of_before(code: Path, stack: TestStack) -> AsyncIterator[local.Ports]:
    ports = local.Ports.free()
    child = await version_before.start_control_plane(code, stack, ports)
    try:
        yield ports
    finally:
        await stop(child)


def at(stack: TestStack, ports: local.Ports) -> CliSettings:
    return stack.settings.model_copy(update={"target": f"localhost:{ports.grpc}"})


async def run(settings: CliSettings, request_id: str | None = None) -> Execution:
    return (await call(settings, request(request_id=request_id)))[0]


def test_it_is_the_code_of_before(code):
    assert version_before.newest_schema(code) == version_before.SCHEMA
    assert newest_revision() > version_before.SCHEMA


async def test_the_version_before_serves_alone_on_the_schema_of_now(code):
    """What was made before it came is there for it; what it made is there, with its evidence, after it went."""
    async with running_stack(nodes=0) as stack:
        await stack.make_agent("actor")
        await stack.add_node(**version_before.imports_from(code))
        first = await run(stack.settings)
        await stack.kill_control_plane()
        child = await version_before.start_control_plane(code, stack, stack.ports)
        try:
            assert (await stack.get(first.execution_id)).receipt_id == first.receipt_id
            assert (await run(stack.settings, request_id="asked-of-the-version-before")).state == SUCCEEDED
            digest = await stack.publish("another")
        finally:
            await stop(child)

        await stack.start_control_plane()
        again = await run(stack.settings, request_id="asked-of-the-version-before")
        assert again.state == SUCCEEDED
        await stack.cli("receipt", "get", again.receipt_id)  # and every check of it holds
        published = templates_pb2.GetTemplateRequest(template=reference(digest))
        async with stack.client() as client:
            await client.templates.GetTemplate(published, timeout=10)
        assert (await run(stack.settings)).state == SUCCEEDED


async def test_two_versions_work_beside_each_other_on_one_database(code):
    """Whichever colour a caller reaches and whichever holds a node's session, executions end and are found.

    Nodes follow the colour that serves: one of now refuses the orders of a control plane without a log to ask.
    """
    async with running_stack(nodes=0) as stack, control_plane_of_before(code, stack) as old:
        await stack.make_agent("actor")
        both = (stack.settings, at(stack, old))
        at_the_old = {"AF_NODE_CONTROL_PLANES": f'["localhost:{old.grpc}"]'}
        before = version_before.imports_from(code)
        node = await stack.add_node(**before, **at_the_old)
        for settings in both:
            assert (await run(settings)).state == SUCCEEDED  # all of a node's side is of before

        for environment in (before, {}):
            await stop(node.running)
            node.environment = environment
            await stack.start_node(node)
            for settings in both:
                assert (await run(settings)).state == SUCCEEDED  # its session is with the version of now

        one = await run(at(stack, old), request_id="the same for both")
        assert (await run(stack.settings, request_id="the same for both")).execution_id == one.execution_id
