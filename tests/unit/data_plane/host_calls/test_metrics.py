"""What metrics say of host calls; their labels are the node's words, never the guest's or anybody else's."""

import asyncio

import pytest

from shared.errors import HostCallRefusedError
from shared.manifest import Capabilities
from shared.resources import NO_RESOURCES
from tests.unit.data_plane.host_calls.builders import World, get


async def test_calls_are_counted_by_method_and_result_with_their_bytes_and_time():
    world = World(capabilities=Capabilities(http=(get(),)))
    await world.fetch()
    await world.fetch()
    await world.fetch_refused("https://elsewhere.test/")
    assert world.counted("host_calls_total", method="http.fetch", result="ok") == 2
    assert world.counted("host_calls_total", method="http.fetch", result="NOT_GRANTED") == 1
    assert world.counted("host_call_seconds_count", method="http.fetch") == 3


async def test_bytes_are_those_that_the_guest_sends_and_reads():
    world = World()
    request = b'{"method":"kv.get"}'
    reply = await world.calls.answer(request, NO_RESOURCES)
    assert world.counted("host_call_bytes_total", method="kv.get", direction="request") == len(request)
    assert world.counted("host_call_bytes_total", method="kv.get", direction="response") == len(
        reply.response
    )


@pytest.mark.parametrize(
    "request_bytes", [b'{"method":"format.disk"}', b"no json", b'{"method":"http.fetch "}']
)
async def test_the_guests_words_become_no_labels(request_bytes):
    world = World()
    await world.raw(request_bytes)
    assert world.counted("host_call_seconds_count", method="unknown") == 1
    assert labels(world, "method") == {"unknown"}


async def test_the_control_planes_words_become_no_labels():
    world = World(capabilities=Capabilities(kv=True))
    world.control_plane.error = HostCallRefusedError("no", refusal="SOMETHING_NEW_42")
    assert await world.refusal("kv.get", key="a") == "SOMETHING_NEW_42"
    assert world.counted("host_calls_total", method="kv.get", result="OTHER") == 1
    assert labels(world, "result") == {"OTHER"}


async def test_a_call_that_the_end_of_the_run_cuts_off_is_counted_as_such():
    world = World(capabilities=Capabilities(http=(get(),)))
    world.transport.gate.clear()
    call = asyncio.create_task(world.fetch())
    while not world.transport.requests:
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait([call])
    assert world.counted("host_calls_total", method="http.fetch", result="CANCELLED") == 1


def labels(world: World, name: str) -> set[str]:
    return {
        sample.labels[name]
        for family in world.registry.collect()
        if family.name.startswith("agentfactory_node_host_call")
        for sample in family.samples
        if name in sample.labels
    }
