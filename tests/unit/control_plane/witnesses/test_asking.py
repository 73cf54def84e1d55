"""What a witness says, and what it means for the log: who may stop it, and who may only fail."""

import base64
import struct
from datetime import UTC, datetime, timedelta

import pytest

from control_plane.witnesses.asking import MAX_SKEW, MAX_TURNS, Asking
from control_plane.witnesses.domain import (
    Cosignature,
    Cosigned,
    Forked,
    Moved,
    Refusal,
    Refused,
    Stale,
    Witness,
    WitnessPolicy,
    add_checkpoint_body,
    backoff,
)
from shared.checkpoints import (
    COSIGNATURE,
    Checkpoint,
    NoteSignature,
    SignedCheckpoint,
    VerifierKey,
    cosigned_text,
    key_id,
    signature_line,
)
from shared.errors import InvalidInputError
from shared.signatures import PrivateKey
from tests.fakes.clock import FakeClock

KEY, OTHER = PrivateKey.generate_ed25519(), PrivateKey.generate_ed25519()
NAME = "witness.example/one"
WITNESS = Witness(url="http://w", key=VerifierKey(name=NAME, kind=COSIGNATURE, public=KEY.public))
TARGET = SignedCheckpoint(
    checkpoint=Checkpoint(origin="a.test/log", size=20, root=bytes(32)),
    signatures=(NoteSignature(name="a.test/log", key_id=b"abcd", signature=b"s"),),
)
WITHIN = timedelta(seconds=5)
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def cosigned(*, at=None, key=KEY, name=NAME, checkpoint=TARGET.checkpoint):
    at = int(NOW.timestamp()) if at is None else at
    value = struct.pack(">Q", at) + key.sign(cosigned_text(checkpoint, at))
    line = NoteSignature(name=name, key_id=key_id(name, key.public, COSIGNATURE), signature=value)
    return Cosigned(lines=signature_line(line))


class Heads:
    """The log as a test wants it; proofs are of one hash that names where they begin."""

    def __init__(self, signed=20):
        self.signed = signed

    async def newest_size(self):
        return self.signed

    async def proof(self, first, target):
        return () if first in {0, target.checkpoint.size} else (bytes([first]) * 32,)


class Script:
    """A witness that answers as the test says, and remembers what it was shown."""

    def __init__(self, *answers):
        self._answers = list(answers)
        self.bodies = []

    async def add_checkpoint(self, witness, body):
        self.bodies.append(body)
        return self._answers.pop(0)


async def asked(*answers, known=0, signed=20):
    script = Script(*answers)
    asking = Asking(heads=Heads(signed), client=script, clock=FakeClock(NOW))
    return await asking.ask(WITNESS, known, TARGET, within=WITHIN), script


async def test_a_first_checkpoint_needs_no_proof():
    outcome, script = await asked(cosigned())
    assert isinstance(outcome, Cosignature)
    assert (outcome.tree_size, outcome.at) == (20, int(NOW.timestamp()))
    assert script.bodies == [b"old 0\n\n" + TARGET.note]


async def test_growth_is_proved_from_what_the_witness_saw():
    outcome, script = await asked(Stale(size=7), cosigned(), known=5)
    assert isinstance(outcome, Cosignature)
    proofs = [f"old {size}\n{base64.b64encode(bytes([size]) * 32).decode()}\n\n".encode() for size in (5, 7)]
    assert script.bodies == [proof + TARGET.note for proof in proofs]


async def test_one_that_names_another_size_each_time_is_left():
    outcome, script = await asked(*(Stale(size=size) for size in (3, 4, 5, 6)))
    assert outcome == Refused(refusal=Refusal.UNSTABLE)
    assert len(script.bodies) == MAX_TURNS


@pytest.mark.parametrize(("size", "signed", "kind"), [(21, 20, Forked), (21, 21, Moved), (22, 21, Forked)])
async def test_a_larger_head_than_was_signed_is_a_fork_and_one_of_another_replica_is_not(size, signed, kind):
    outcome, _ = await asked(Stale(size=size), signed=signed)
    assert isinstance(outcome, kind)


async def test_what_is_stored_of_a_witness_counts_as_what_it_says():
    outcome, script = await asked(known=21)
    assert isinstance(outcome, Forked)
    assert script.bodies == []


@pytest.mark.parametrize("refusal", [Refusal.BAD_PROOF, Refusal.OTHER_ROOT])
async def test_a_proof_that_holds_and_is_refused_is_a_fork(refusal):
    outcome, _ = await asked(Refused(refusal=refusal), known=5)
    assert isinstance(outcome, Forked)
    first, _ = await asked(Refused(refusal=refusal), known=0)
    assert first == Refused(refusal=refusal)  # nothing was proved to it


@pytest.mark.parametrize("refusal", sorted(set(Refusal) - {Refusal.BAD_PROOF, Refusal.OTHER_ROOT}))
async def test_no_other_refusal_stops_the_log(refusal):
    outcome, _ = await asked(Refused(refusal=refusal), known=5)
    assert outcome == Refused(refusal=refusal)


OTHER_TREE = Checkpoint(origin="a.test/log", size=20, root=bytes([1]) * 32)
WRONG = {
    "another key": cosigned(key=OTHER),
    "another name": cosigned(name="somebody"),
    "another tree": cosigned(checkpoint=OTHER_TREE),
    "a time that has not come": cosigned(at=int((NOW + MAX_SKEW).timestamp()) + 1),
    "no time": cosigned(at=0),
    "nothing": Cosigned(lines=b""),
    "no signature": Cosigned(lines=b"hello\n"),
    "no text": Cosigned(lines=b"\xff\n"),
    "no end": Cosigned(lines=cosigned().lines[:-1]),
    "too many": Cosigned(lines=cosigned().lines * 65),
}


@pytest.mark.parametrize("what", WRONG)
async def test_a_cosignature_that_is_not_right_is_not_kept(what):
    outcome, _ = await asked(WRONG[what])
    assert isinstance(outcome, Refused)
    assert outcome.refusal is Refusal.SIGNATURE


async def test_a_signature_of_the_key_over_something_else_is_refused():
    value = bytearray(base64.b64decode(cosigned().lines.split()[2]))
    value[-1] ^= 1
    outcome, _ = await asked(Cosigned(lines=f"— {NAME} {base64.b64encode(value).decode()}\n".encode()))
    assert isinstance(outcome, Refused)
    assert outcome.refusal is Refusal.SIGNATURE


async def test_a_clock_slightly_ahead_is_let_pass():
    outcome, _ = await asked(cosigned(at=int((NOW + MAX_SKEW).timestamp())))
    assert isinstance(outcome, Cosignature)


async def test_other_lines_beside_its_own_are_passed_over():
    lines = cosigned(key=OTHER, name="somebody").lines + cosigned().lines
    outcome, _ = await asked(Cosigned(lines=lines))
    assert isinstance(outcome, Cosignature)
    assert outcome.line.name == NAME


def test_a_body_is_as_the_protocol_has_it():
    body = add_checkpoint_body(old_size=3, proof=[bytes(32), bytes([255]) * 32], note=b"note\n")
    zeros, ones = base64.b64encode(bytes(32)), base64.b64encode(bytes([255]) * 32)
    assert body == b"old 3\n" + zeros + b"\n" + ones + b"\n\nnote\n"


def test_pauses_grow_within_a_bound():
    every = timedelta(seconds=5)
    assert backoff(0, every, 1.0) == every
    assert backoff(0, every, 0.0) == every / 2
    assert backoff(1, every, 1.0) == 2 * every
    assert backoff(10**6, every, 1.0) == timedelta(minutes=5)


def test_a_quorum_that_can_never_be_is_refused():
    WitnessPolicy(witnesses=(WITNESS,), quorum=1)
    with pytest.raises(InvalidInputError, match="quorum of 2"):
        WitnessPolicy(witnesses=(WITNESS,), quorum=2)
    with pytest.raises(InvalidInputError, match="one name"):
        WitnessPolicy(witnesses=(WITNESS, WITNESS), quorum=1)
