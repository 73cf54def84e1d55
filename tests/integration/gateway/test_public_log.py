"""The public log through a gateway: nobody's identity goes with it, and a crowd of readers asks once."""

import asyncio

from agentfactory.v1 import audit_pb2

from control_plane.gateway.public_log import MAX_ASKING
from tests.integration.gateway.conftest import LIMIT


async def test_no_token_goes_through_even_where_there_is_one(gateway):
    async def get_checkpoint(request, _):
        return audit_pb2.GetCheckpointResponse(checkpoint=b"signed")

    async with gateway({"GetCheckpoint": get_checkpoint}) as (client, scripted, _, _):
        answer = await client.get("/log/checkpoint")
    assert (answer.status_code, answer.content) == (200, b"signed")
    (metadata,) = scripted.metadata
    assert "authorization" not in metadata
    assert metadata["x-forwarded-by"] == "gateway/gateway"


async def test_a_witnessed_checkpoint_goes_before_a_newer_one(gateway):
    async def get_checkpoint(request, _):
        return audit_pb2.GetCheckpointResponse(checkpoint=b"signed", witnessed=b"cosigned")

    async with gateway({"GetCheckpoint": get_checkpoint}) as (client, _, _, _):
        assert (await client.get("/log/checkpoint")).content == b"cosigned"


async def test_a_tile_is_asked_for_once_and_readers_of_many_are_bounded(gateway):
    release, asked = asyncio.Event(), []

    async def get_log_tile(request, _):
        asked.append(request)
        await release.wait()
        return audit_pb2.GetLogTileResponse(hashes=bytes([request.index]) * 32 * request.width)

    async with gateway({"GetLogTile": get_log_tile}) as (client, _, _, _):
        async with asyncio.timeout(LIMIT.total_seconds()):
            same = [asyncio.create_task(client.get("/log/tile/0/001.p/2")) for _ in range(20)]
            others = [
                asyncio.create_task(client.get(f"/log/tile/0/{index:03}.p/2"))
                for index in range(2, 2 + MAX_ASKING)
            ]
            [first, *_], _ = await asyncio.wait(others, return_when=asyncio.FIRST_COMPLETED)
            release.set()
            answers = await asyncio.gather(*same)
            codes = [answer.status_code for answer in await asyncio.gather(*others)]
            again = await client.get("/log/tile/0/001.p/2")
    assert (await first).status_code == 503
    assert (await first).headers["retry-after"] == "1"
    assert sorted(codes) == [200] * (MAX_ASKING - 1) + [503]
    assert {answer.content for answer in (*answers, again)} == {bytes([1]) * 64}
    assert len(asked) == MAX_ASKING


async def test_a_wrong_path_asks_nobody(gateway):
    async def never(request, _):
        raise AssertionError

    async with gateway({"GetLogTile": never}) as (client, scripted, _, _):
        for path in ("0/00", "0/000.p/256", "0/000.p/257", "0/000%2Fx", "0/%30%30%30/"):
            assert (await client.get("/log/tile/" + path)).status_code == 404, path
    assert scripted.metadata == []
