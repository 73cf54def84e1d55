"""One tenant's calls leave room for those of others, whatever it sends."""

import asyncio
from collections import Counter
from contextlib import asynccontextmanager

import grpc
import pytest
from agentfactory.v1 import agents_pb2, executions_pb2

from tests.integration.gateway.conftest import LIMIT, tenant_of_token

ALL = 16
HALF = 8
RUN = {"execution": {"agent": "a", "inline": "e30="}}
EXECUTION = "exe_0190f5ac-7e2d-7b3c-8a1b-0123456789ab"


def token(tenant, n=0):
    return {"Authorization": f"Bearer {tenant}.{n}.x", "Idempotency-Key": "1"}


class Waiting:
    """A control plane whose executions end when a test says so."""

    def __init__(self):
        self.end = asyncio.Event()
        self.under_way = Counter()
        self.most = Counter()

    async def execute(self, _, context):
        tenant = (await tenant_of_token(None, context)).tenant_id
        self.under_way[tenant] += 1
        self.most[tenant] = max(self.most[tenant], self.under_way[tenant])
        try:
            await self.end.wait()
        finally:
            self.under_way[tenant] -= 1
        return executions_pb2.ExecuteResponse()

    async def reached(self, tenant, count):
        async with asyncio.timeout(LIMIT.total_seconds()):
            while self.under_way[tenant] < count:
                await asyncio.sleep(0.01)


async def get_agent(*_):
    return agents_pb2.GetAgentResponse()


@asynccontextmanager
async def flooded(gateway, tenant="acme", tokens=1, **more):
    """Yield a client while a tenant has started more calls than there are, and the refusals it got."""
    plane = Waiting()
    answers = {"Execute": plane.execute, "GetAgent": get_agent, **more}
    async with gateway(answers, max_calls=ALL) as (client, *_):
        tasks = [
            asyncio.create_task(
                client.post("/v1/executions:execute", json=RUN, headers=token(tenant, n % tokens))
            )
            for n in range(4 * ALL)
        ]
        await plane.reached(tenant, HALF)
        async with asyncio.timeout(LIMIT.total_seconds()):
            while sum(task.done() for task in tasks) < 4 * ALL - HALF:
                await asyncio.sleep(0.01)
        try:
            yield client, plane, [task.result() for task in tasks if task.done()]
        finally:
            plane.end.set()
            await asyncio.gather(*tasks)


@pytest.mark.parametrize("tokens", [1, 4 * ALL], ids=["one token", "a token each"])
async def test_a_flood_of_one_tenant_is_refused_and_others_are_served(gateway, tokens):
    async with flooded(gateway, tokens=tokens) as (client, plane, refused):
        other = await client.get("/v1/agents/a", headers=token("globex"))
        own = await client.get("/v1/agents/a", headers=token("acme"))

    assert other.status_code == 200
    assert (own.status_code, own.json()["reason"]) == (429, "RESOURCE_EXHAUSTED")
    assert plane.most["acme"] == HALF
    assert {answer.status_code for answer in refused} == {429}
    assert {answer.headers["retry-after"] for answer in refused} <= {"1", "2"}
    assert refused[0].headers["content-type"] == "application/problem+json"


async def test_when_its_calls_have_ended_a_tenant_is_served_again(gateway):
    async with flooded(gateway) as (client, plane, _):
        plane.end.set()
        async with asyncio.timeout(LIMIT.total_seconds()):
            while (await client.get("/v1/agents/a", headers=token("acme"))).status_code == 429:
                await asyncio.sleep(0.01)


async def test_a_tenant_that_comes_second_gets_its_share(gateway):
    async with flooded(gateway) as (client, plane, _):
        tasks = [
            asyncio.create_task(client.post("/v1/executions:execute", json=RUN, headers=token("globex", n)))
            for n in range(ALL)
        ]
        await plane.reached("globex", ALL // 3)
        third = await client.get("/v1/agents/a", headers=token("initech"))
        plane.end.set()
        await asyncio.gather(*tasks)

    assert third.status_code == 200
    assert plane.most["globex"] == ALL // 3


async def test_tokens_that_nobody_knows_take_nothing_of_what_tenants_have(gateway):
    asked, asking = asyncio.Event(), 0

    async def slow_for_strangers(request, context):
        known = await tenant_of_token(request, context)
        if known.tenant_id == "stranger":
            nonlocal asking
            asking += 1
            await asked.wait()
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the token is refused")
        return known

    async with gateway({"GetAgent": get_agent, "GetCallerIdentity": slow_for_strangers}, max_calls=ALL) as (
        client,
        *_,
    ):
        assert (await client.get("/v1/agents/a", headers=token("acme"))).status_code == 200
        strangers = [
            asyncio.create_task(client.get("/v1/agents/a", headers=token("stranger", n))) for n in range(ALL)
        ]
        async with asyncio.timeout(LIMIT.total_seconds()):
            while asking < ALL // 8:
                await asyncio.sleep(0.01)
        known = await client.get("/v1/agents/a", headers=token("acme"))
        asked.set()
        answers = {answer.status_code for answer in await asyncio.gather(*strangers)}

    assert known.status_code == 200
    assert answers == {401}


async def test_an_event_stream_gives_its_place_back(gateway):
    async def one_event(*_):
        yield executions_pb2.WatchExecutionResponse()

    async with gateway({"WatchExecution": one_event}, max_calls=ALL) as (client, *_):
        for _ in range(2 * ALL):
            watched = await client.get(f"/v1/executions/{EXECUTION}:watch", headers=token("acme"))
            assert watched.status_code == 200, watched.text
