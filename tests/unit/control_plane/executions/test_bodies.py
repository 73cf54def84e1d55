"""Large inputs and outputs: checked against their header, bounded, read in pieces."""

import asyncio

import pytest

from control_plane.executions import bodies
from control_plane.executions.bodies import DOWNLOAD_CHUNK_BYTES
from control_plane.executions.domain import MAX_BODY_BYTES, BodyKind
from shared.digests import sha256_digest
from shared.errors import InvalidInputError, NotFoundError, ResourceExhaustedError
from tests.builders.executions import TENANT
from tests.unit.control_plane.executions.conftest import SUBJECT, ask

CONTENT = b"large" * 20_000


async def pieces(*parts):
    for part in parts:
        yield part


async def upload(stack, *parts, digest=None, size=None):
    whole = b"".join(parts)
    return await stack.bodies.upload(
        SUBJECT,
        digest=digest or sha256_digest(whole),
        size_bytes=len(whole) if size is None else size,
        chunks=pieces(*parts),
    )


async def test_an_upload_becomes_the_input_of_a_later_request(stack):
    body_id = await upload(stack, CONTENT[:1000], CONTENT[1000:])

    execution = await stack.service.submit(SUBJECT, ask(inline=None, body_id=body_id), method="Execute")
    downloaded = [
        piece async for piece in stack.bodies.download(TENANT, execution.execution_id, BodyKind.INPUT)
    ]

    assert b"".join(downloaded) == CONTENT
    assert execution.input_bytes == len(CONTENT)


@pytest.mark.parametrize(
    "lie",
    [{"size": len(CONTENT) - 1}, {"size": len(CONTENT) + 1}, {"digest": sha256_digest(b"other")}],
)
async def test_an_upload_that_is_not_what_its_header_says_is_refused(stack, lie):
    with pytest.raises(InvalidInputError):
        await upload(stack, CONTENT, **lie)


async def test_an_upload_above_16_mib_is_refused_before_it_is_read(stack):
    with pytest.raises(InvalidInputError, match=str(MAX_BODY_BYTES)):
        await upload(stack, b"x", size=MAX_BODY_BYTES + 1)


async def test_uploads_at_the_same_time_are_bounded(stack):
    gate, reading = asyncio.Event(), asyncio.Event()

    async def slow():
        yield b"x"
        reading.set()
        await gate.wait()

    first = asyncio.ensure_future(
        stack.bodies.upload(SUBJECT, digest=sha256_digest(b"x"), size_bytes=1, chunks=slow())
    )
    await reading.wait()
    with pytest.raises(ResourceExhaustedError):
        await upload(stack, b"y")
    gate.set()
    await first


async def test_a_caller_cannot_fill_the_database_with_what_it_never_uses(stack, monkeypatch):
    monkeypatch.setattr(bodies, "MAX_UNUSED_BYTES", 2 * len(CONTENT))
    await upload(stack, CONTENT)
    body_id = await upload(stack, CONTENT)
    with pytest.raises(ResourceExhaustedError):
        await upload(stack, CONTENT)
    await stack.service.submit(SUBJECT, ask(inline=None, body_id=body_id), method="Execute")
    await upload(stack, CONTENT)


async def test_a_body_that_is_not_there_is_not_found(stack):
    execution = await stack.service.submit(SUBJECT, ask(), method="Execute")
    with pytest.raises(NotFoundError):
        _ = [one async for one in stack.bodies.download(TENANT, execution.execution_id, BodyKind.OUTPUT)]


async def test_a_download_comes_in_pieces(stack):
    content = b"z" * (DOWNLOAD_CHUNK_BYTES + 1)
    body_id = await upload(stack, content)
    execution = await stack.service.submit(SUBJECT, ask(inline=None, body_id=body_id), method="Execute")
    sizes = [
        len(piece) async for piece in stack.bodies.download(TENANT, execution.execution_id, BodyKind.INPUT)
    ]
    assert sizes == [DOWNLOAD_CHUNK_BYTES, 1]
