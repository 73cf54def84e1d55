"""Valid values of the shared formats, to change one thing in."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from shared import ids
from shared.digests import sha256_digest
from shared.keyset import KeyPurpose, Keyset, KeysetEntry
from shared.limits import Limits
from shared.manifest import Manifest, ModuleFile, Profile
from shared.orders import Order
from shared.outcomes import Outcome
from shared.receipts import AttemptIdentity, EngineIdentity, ReceiptPredicate, Rejection
from shared.resources import ResourcesUsed
from shared.signatures import PrivateKey
from tests.fakes.clock import START, FakeClock, FakeRandom
from tests.fixtures.keys import rsa_key

INSTALLATION = "local"
MODULE = b"\x00asm\x01\x00\x00\x00" + bytes(range(200))

_clock, _random = FakeClock(), FakeRandom("builders")
NODE = ids.new_id(ids.NODE, _clock, _random)
BOOT = ids.new_id(ids.BOOT, _clock, _random)


def an_order(**changes: Any) -> Order:
    order = Order(
        id=ids.new_id(ids.ORDER, _clock, _random),
        installation=INSTALLATION,
        epoch=1,
        tenant_id=ids.new_id(ids.TENANT, _clock, _random),
        caller="spiffe://local/caller/tickets",
        agent_id=ids.new_id(ids.AGENT, _clock, _random),
        agent_name="redact",
        parameters_digest=sha256_digest(b"{}"),
        execution_id=ids.new_id(ids.EXECUTION, _clock, _random),
        attempt_number=1,
        fencing_token=7,
        node_id=NODE,
        boot_id=BOOT,
        template_digest=sha256_digest(b"template"),
        module_digest=sha256_digest(b"module"),
        input_commitment=sha256_digest(b"input"),
        input_bytes=5,
        media_type="application/json",
        profile=Profile.DEFAULT,
        seed=bytes(32),
        clock_start_at=START,
        limits=Limits(),
        decision_id=ids.new_id(ids.DECISION, _clock, _random),
        policy_digest=sha256_digest(b"policy"),
        traceparent="",
        not_before=START,
        expires_at=START + timedelta(seconds=60),
        nonce=bytes(16),
        lease=timedelta(seconds=4),
        heartbeat_number=3,
        retry_is_safe=False,
    )
    return replace(order, **changes)


def a_receipt(**changes: Any) -> ReceiptPredicate:
    receipt = ReceiptPredicate(
        installation=INSTALLATION,
        node_id=NODE,
        boot_id=BOOT,
        sequence=1,
        previous=None,
        order_digest=sha256_digest(b"order"),
        attempt=AttemptIdentity(
            order_id=ids.new_id(ids.ORDER, _clock, _random),
            execution_id=ids.new_id(ids.EXECUTION, _clock, _random),
            attempt_number=1,
            fencing_token=7,
        ),
        template_digest=sha256_digest(b"template"),
        module_digest=sha256_digest(b"module"),
        input_commitment=sha256_digest(b"input"),
        output_commitment=sha256_digest(b"output"),
        outcome=Outcome.SUCCEEDED,
        exit_code=0,
        resources=ResourcesUsed(wall=timedelta(milliseconds=3), output_bytes=10),
        engine=EngineIdentity(name="wasmer", version="7.4.2", config_digest=sha256_digest(b"engine")),
        received_at=START,
        started_at=START,
        finished_at=START + timedelta(milliseconds=3),
    )
    return replace(receipt, **changes)


def a_rejection(rejection: Rejection, **changes: Any) -> ReceiptPredicate:
    """A receipt of an order that could not be believed."""
    nothing = dict.fromkeys(
        (
            "attempt",
            "template_digest",
            "module_digest",
            "input_commitment",
            "output_commitment",
            "exit_code",
            "engine",
            "started_at",
        )
    )
    return a_receipt(outcome=Outcome.REJECTED, rejection=rejection, **nothing, **changes)


def a_keyset(root: PrivateKey, *entries: KeysetEntry, **changes: Any) -> Keyset:
    keyset = Keyset(
        version=3,
        installation=INSTALLATION,
        epoch=1,
        root_key_id=root.key_id,
        issued_at=START,
        entries=entries or (an_entry(),),
    )
    return replace(keyset, **changes)


def an_entry(**changes: Any) -> KeysetEntry:
    entry = KeysetEntry(
        purpose=KeyPurpose.ORDER,
        key=rsa_key("order").public,
        not_before=START,
        not_after=START + timedelta(days=90),
    )
    return replace(entry, **changes)


def a_manifest(module: bytes = MODULE, **changes: Any) -> Manifest:
    manifest = Manifest(
        name="redact",
        version="1.2.0",
        media_type="application/json",
        module=ModuleFile(file_name="redact.wasm", digest=sha256_digest(module), size_bytes=len(module)),
    )
    return replace(manifest, **changes)
