"""What templates cost: ``python -m tests.bench.templates [--agents N]``. Writes build/bench/templates.json.

Creating agents at the service over a real Postgres, beside the smallest durable transaction of the same database;
judging a body by its schema, beside reading the same JSON and beside the reference implementation; and how small
packed manifests are.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable

import jsonschema

from control_plane.templates.domain import TemplateRef
from shared.json_bodies import check_body
from shared.manifest import MAX_MANIFEST_BYTES, encode_manifest
from shared.packages import pack, unpack
from shared.schemas import JsonSchema
from tests.bench.report import Figure, measured, publish, quantile
from tests.fixtures.postgres import PostgresServer, postgres_18_binaries, running_server
from tests.integration.control_plane.registry import AUTHOR, TENANT, open_registry, package
from tests.unit.shared.builders import a_manifest

ROUNDS = 5
BODY_CHECKS = 500
CREATE_BAR_MS = 5.0
SECONDS = 300

RECORD = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": 1},
        "kind": {"enum": ["invoice", "order", "note"]},
        "text": {"type": "string", "maxLength": 400},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 32}, "maxItems": 8},
    },
    "required": ["id", "kind"],
    "additionalProperties": False,
}
SCHEMA = {"type": "object", "properties": {"records": {"type": "array", "items": RECORD}}}
RECORDS = [{"id": number + 1, "kind": "invoice", "text": "x" * 60, "tags": ["a", "b"]} for number in range(8)]
BODY = json.dumps({"records": RECORDS}).encode()


async def timed(count: int, work: Callable[[int], Awaitable[object]]) -> list[float]:
    """Return the milliseconds that each call took, one after the other."""
    took = []
    for number in range(count):
        begun = time.perf_counter()
        await work(number)
        took.append((time.perf_counter() - begun) * 1e3)
    return took


async def creating(server: PostgresServer, database: str, agents: int) -> list[Figure]:
    """Creating an agent of a template that was used before, p50 and p95 of each round."""
    took: list[list[float]] = []
    beside: list[list[float]] = []
    async with open_registry(server, database) as registry:
        version = await registry.publish(await package())
        ref = TemplateRef(digest=version.digest)
        await registry.run("CREATE TABLE plain (number int)")

        async def create(number: int, word: str) -> object:
            return await registry.agents.create(
                AUTHOR, name=f"{word}-{number}", template=ref, parameters=b'{"depth":3}'
            )

        await timed(20, lambda number: create(number, "warm"))
        for number in range(ROUNDS):
            took.append(await timed(agents, lambda one, word=f"round{number}": create(one, word)))
            beside.append(await timed(agents, lambda _: registry.run("INSERT INTO plain VALUES (1)")))
        page = await registry.agents.list(TENANT, page_size=500, page_token="")
        assert len(page.agents) == min(500, 20 + ROUNDS * agents)
    return [
        measured(
            f"create agent, {name}",
            [quantile(one, share) for one in took],
            "ms",
            beside=("one INSERT, committed", [quantile(one, share) for one in beside]),
            at_most=bar,
        )
        for name, share, bar in (("median", 0.5, None), ("p95", 0.95, CREATE_BAR_MS))
    ]


async def judging() -> list[Figure]:
    """CPU time of one body of about 1 KiB against a schema of ten rules."""
    ours, peer = JsonSchema.from_object(SCHEMA), jsonschema.Draft202012Validator(SCHEMA)
    mine, reading, theirs = [], [], []
    for _ in range(ROUNDS):
        begun = time.process_time()
        for _ in range(BODY_CHECKS):
            await check_body(ours, BODY, "input")
        middle = time.process_time()
        for _ in range(BODY_CHECKS):
            json.loads(BODY)
        end = time.process_time()
        for _ in range(BODY_CHECKS // 20):
            peer.validate(json.loads(BODY))
        last = time.process_time()
        mine.append((middle - begun) / BODY_CHECKS * 1e6)
        reading.append((end - middle) / BODY_CHECKS * 1e6)
        theirs.append((last - end) / (BODY_CHECKS // 20) * 1e6)
    judged = f"judge a body of {len(BODY)} bytes, CPU"
    return [
        measured(judged, mine, "µs", beside=beside)
        for beside in (("json.loads of it", reading), ("jsonschema", theirs))
    ]


def packing() -> list[Figure]:
    """How small a packed manifest is: one with a schema of a few rules, and one of much the same 60 times."""
    properties = {f"field_{number}": RECORD["properties"] for number in range(60)}
    large = {"properties": {name: {"properties": inner} for name, inner in properties.items()}}
    figures = []
    for name, schema in (("small", SCHEMA), ("large", large)):
        plain = encode_manifest(a_manifest(parameters_schema=JsonSchema.from_object(schema)))
        packed = pack(plain)
        assert unpack(packed, what="manifest", max_bytes=MAX_MANIFEST_BYTES) == plain
        figures.append(
            measured(
                f"manifest.json.zst of a {name} manifest",
                [len(packed)],
                "bytes",
                beside=("canonical JSON", [len(plain)]),
            )
        )
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.templates", description=__doc__)
    parser.add_argument("--agents", type=int, default=200, help="of one round")
    agents = parser.parse_args().agents
    binaries = postgres_18_binaries()
    if binaries is None:
        raise SystemExit("PostgreSQL 18 is not installed")
    with running_server(binaries, durable=True) as server:
        database = server.new_database()
        figures = asyncio.run(asyncio.wait_for(creating(server, database, agents), SECONDS))
    return publish("templates", [*figures, *asyncio.run(judging()), *packing()])


if __name__ == "__main__":
    sys.exit(main())
