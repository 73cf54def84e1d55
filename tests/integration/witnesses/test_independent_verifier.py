"""Checkpoints, proofs and cosignatures of ours before a verifier that shares no line with us."""

import base64

import pytest
from sqlalchemy import select

from control_plane.database.tables import log_entries
from shared.checkpoints import ED25519, VerifierKey, parse_checkpoint
from shared.signatures import PrivateKey
from tests.builders.executions import TENANT
from tests.fixtures.go_verifier import verdicts
from tests.fixtures.omniwitness import omniwitness
from tests.integration.log.test_log import KEY, ORIGIN, record
from tests.integration.witnesses.stage import replica
from tests.integration.witnesses.test_omniwitness import LOGS, witness_of

LOG_KEY = VerifierKey(name=ORIGIN, kind=ED25519, public=KEY.public).text
OTHER_KEY = PrivateKey.generate_ed25519().public


def flipped(data: bytes, at: int = 0) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def with_other_signature(note: str, line: int) -> str:
    """Flip a bit of the signature of one line below a note, counted from its end."""
    lines = note.split("\n")
    name, _, data = lines[line].rpartition(" ")
    lines[line] = f"{name} {base64.b64encode(flipped(base64.b64decode(data), -1)).decode()}"
    return "\n".join(lines)


@pytest.fixture
async def true_cases(world, tmp_path):
    """A case of each kind, all of which hold: the log of a replica that a real witness cosigned."""
    with omniwitness(tmp_path, LOGS) as running:
        async with replica(world, [witness_of(running)]) as one:
            await one.witnesses.start()
            await one.signed(3)
            first = await one.log.checkpoint()
            [subject, *_] = await record(world, 300)
            await one.signed(1)
            await one.witnesses.round()
            published = await one.log.published()
            proof = await one.log.prove_inclusion(TENANT, subject)
            path, newest = await one.log.prove_consistency(parse_checkpoint(first).checkpoint.size, 0)
    async with world.database.reading() as connection:
        entries = await connection.execute(select(log_entries.c.commitment).order_by(log_entries.c.log_index))
        leaf = entries.scalars().all()[proof.entry.log_index]
    base = {"Origin": ORIGIN, "LogKey": LOG_KEY}
    witnessed = {**base, "Note": published.witnessed.decode(), "Witnesses": [running.key.text]}
    return {
        "checkpoint": {**base, "Kind": "checkpoint", "Note": published.checkpoint.decode()},
        "cosignature": {**witnessed, "Kind": "checkpoint"},
        "inclusion": {
            **witnessed,
            "Kind": "inclusion",
            "Note": proof.checkpoint.decode(),
            "Index": proof.entry.log_index,
            "Leaf": leaf,
            "Proof": list(proof.path),
        },
        "consistency": {
            **base,
            "Kind": "consistency",
            "First": first.decode(),
            "Note": newest.decode(),
            "Proof": list(path),
        },
    }


def tampered(cases) -> dict[str, dict]:
    checkpoint, cosignature = cases["checkpoint"], cases["cosignature"]
    inclusion, consistency = cases["inclusion"], cases["consistency"]
    lines = checkpoint["Note"].split("\n")
    larger = "\n".join([lines[0], str(int(lines[1]) + 1), *lines[2:]])
    other_root = "\n".join([*lines[:2], base64.b64encode(bytes(32)).decode(), *lines[3:]])
    other_key = VerifierKey(name=ORIGIN, kind=ED25519, public=OTHER_KEY).text
    other_witness = VerifierKey(name=cosignature["Witnesses"][0].split("+")[0], kind=4, public=OTHER_KEY).text
    return {
        "size": {**checkpoint, "Note": larger},
        "root": {**checkpoint, "Note": other_root},
        "signature": {**checkpoint, "Note": with_other_signature(checkpoint["Note"], -2)},
        "another log key": {**checkpoint, "LogKey": other_key},
        "another origin": {**checkpoint, "Origin": ORIGIN + "x"},
        "cosignature": {**cosignature, "Note": with_other_signature(cosignature["Note"], -2)},
        "another witness key": {**cosignature, "Witnesses": [other_witness]},
        "no cosignature": {**checkpoint, "Witnesses": cosignature["Witnesses"]},
        "index": {**inclusion, "Index": inclusion["Index"] + 1},
        "leaf": {**inclusion, "Leaf": flipped(inclusion["Leaf"])},
        "inclusion path": {**inclusion, "Proof": [flipped(inclusion["Proof"][0]), *inclusion["Proof"][1:]]},
        "inclusion path cut": {**inclusion, "Proof": inclusion["Proof"][:-1]},
        "inclusion path longer": {**inclusion, "Proof": [*inclusion["Proof"], bytes(32)]},
        "consistency path": {
            **consistency,
            "Proof": [flipped(consistency["Proof"][0]), *consistency["Proof"][1:]],
        },
        "consistency path cut": {**consistency, "Proof": consistency["Proof"][:-1]},
        "backwards": {**consistency, "First": consistency["Note"], "Note": consistency["First"]},
    }


async def test_what_we_say_holds_before_an_independent_verifier_and_nothing_tampered_does(true_cases):
    assert dict(zip(true_cases, verdicts(list(true_cases.values())), strict=True)) == dict.fromkeys(
        true_cases, ""
    )
    wrong = tampered(true_cases)
    accepted = [
        name for name, verdict in zip(wrong, verdicts(list(wrong.values())), strict=True) if not verdict
    ]
    assert accepted == []
