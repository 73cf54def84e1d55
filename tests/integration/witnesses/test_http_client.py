"""A witness that says anything: each answer has one meaning, and none takes more than its bound."""

import asyncio
import ssl
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from control_plane.witnesses.domain import Cosigned, Refusal, Refused, Stale, Witness
from control_plane.witnesses.http_client import MAX_ANSWER_BYTES, HttpWitnessClient
from shared.checkpoints import COSIGNATURE, VerifierKey
from shared.signatures import PrivateKey

KEY = VerifierKey(name="w", kind=COSIGNATURE, public=PrivateKey.generate_ed25519().public)
BODY = b"old 0\n\nnote"
SIZE = "Content-Type: text/x.tlog.size\r\n"


def answer(status, body=b"", headers=""):
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


ENDLESS = b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (MAX_ANSWER_BYTES + 1)
ANSWERS = {
    "cosigned": (answer(200, "— w AAAA\n".encode()), Cosigned(lines="— w AAAA\n".encode())),
    "a size": (answer(409, b"17\n", SIZE), Stale(size=17)),
    "a size with parameters": (
        answer(409, b"17\n", SIZE.replace("size", "size; charset=utf-8")),
        Stale(size=17),
    ),
    "no number": (answer(409, b"-1\n", SIZE), Refusal.MALFORMED),
    "a number of another script": (answer(409, b"\xd9\xa1\n", SIZE), Refusal.MALFORMED),
    "a huge number": (answer(409, b"9" * 40, SIZE), Refusal.MALFORMED),
    "a conflict of roots": (answer(409), Refusal.OTHER_ROOT),
    "unknown key": (answer(403), Refusal.UNKNOWN_KEY),
    "unknown log": (answer(404), Refusal.UNKNOWN_LOG),
    "bad proof": (answer(422), Refusal.BAD_PROOF),
    "busy": (answer(429), Refusal.BUSY),
    "broken": (answer(500), Refusal.FAILED),
    "a redirect": (answer(307, headers="Location: http://127.0.0.1:1/\r\n"), Refusal.FAILED),
    "too much": (ENDLESS, Refusal.MALFORMED),
    "no http": (b"hello\r\n\r\n", Refusal.UNREACHABLE),
    "nothing": (b"", Refusal.UNREACHABLE),
}


@asynccontextmanager
async def witness(said, *, hold=False):
    """Yield a witness that answers so, and what it was told."""
    told = []

    async def serve(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        told.append(head + await reader.readexactly(len(BODY)))
        if hold:
            await reader.read()
        writer.write(said)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield Witness(url=f"http://127.0.0.1:{port}/below/", key=KEY), told


@asynccontextmanager
async def client(seconds=5.0):
    made = HttpWitnessClient(timeout=timedelta(seconds=seconds), trusted=ssl.create_default_context())
    try:
        yield made
    finally:
        await made.close()


@pytest.mark.parametrize("name", ANSWERS)
async def test_every_answer_has_one_meaning(name):
    said, expected = ANSWERS[name]
    async with witness(said) as (one, told), client() as asking:
        got = await asking.add_checkpoint(one, BODY)
    if isinstance(expected, Refusal):
        assert isinstance(got, Refused)
        assert got.refusal is expected
    else:
        assert got == expected
    [request] = told
    assert request.startswith(b"POST /below/add-checkpoint HTTP/1.1\r\n")
    assert request.endswith(b"\r\n\r\n" + BODY)


async def test_one_that_does_not_answer_costs_its_time_and_no_more():
    async with witness(b"", hold=True) as (one, _), client(0.2) as asking:
        async with asyncio.timeout(20):
            got = await asking.add_checkpoint(one, BODY)
    assert got == Refused(refusal=Refusal.UNREACHABLE, detail=got.detail)


async def test_one_that_is_not_there_is_unreachable():
    async with client() as asking:
        got = await asking.add_checkpoint(Witness(url="http://127.0.0.1:1", key=KEY), BODY)
    assert isinstance(got, Refused)
    assert got.refusal is Refusal.UNREACHABLE
