import json
from dataclasses import replace
from datetime import timedelta

import pytest

from shared.canonical import canonical_json
from shared.dsse import KEYSET_TYPE, sign_envelope
from shared.errors import (
    InvalidInputError,
    KeyRevokedError,
    MalformedError,
    RollbackError,
    SignatureInvalidError,
    UnknownFieldError,
    UnknownKeyError,
    UnsupportedVersionError,
    VerificationError,
)
from shared.keyset import KeyPurpose, encode_keyset, sign_keyset, verify_keyset
from tests.fakes.clock import START
from tests.fixtures.keys import ed25519_key, rsa_key, signer, trusting
from tests.unit.shared.builders import INSTALLATION, a_keyset, an_entry

ROOT = ed25519_key("root")
INSTANT = timedelta(microseconds=1)


async def signed(keyset, root=ROOT) -> bytes:
    return await sign_keyset(keyset, [signer(root)])


async def signed_document(change) -> bytes:
    document = json.loads(encode_keyset(a_keyset(ROOT)))
    change(document)
    return await sign_envelope(KEYSET_TYPE, canonical_json(document), [signer(ROOT)])


def verify(envelope, *, minimum_version=1, installation=INSTALLATION, root=ROOT):
    return verify_keyset(
        envelope, root_keys=trusting(root), minimum_version=minimum_version, installation=installation
    )


async def test_signed_keyset_comes_back_whole():
    keyset = a_keyset(
        ROOT,
        an_entry(),
        an_entry(purpose=KeyPurpose.PUBLISHER, key=rsa_key("publisher").public),
        an_entry(purpose=KeyPurpose.LOG, key=ed25519_key("log").public),
        an_entry(key=rsa_key("old").public, revoked_at=START + timedelta(days=1), revoked_log_position=17),
    )
    assert verify(await signed(keyset)) == keyset


@pytest.mark.parametrize("key", [ed25519_key("root"), rsa_key("root")])
async def test_root_key_may_be_ed25519_or_rsa(key):
    assert verify(await signed(a_keyset(key), key), root=key).root_key_id == key.key_id


async def test_keyset_of_another_root_is_refused():
    mallory = ed25519_key("mallory")
    with pytest.raises(UnknownKeyError):
        verify(await signed(a_keyset(mallory), mallory))


async def test_keyset_that_names_another_root_than_its_signer_is_refused():
    with pytest.raises(VerificationError, match="check 3"):
        verify(await signed(a_keyset(rsa_key("root"))))


async def test_altered_keyset_is_refused():
    envelope = json.loads(await signed(a_keyset(ROOT)))
    other = json.loads(await signed(a_keyset(ROOT, version=4)))
    envelope["payload"] = other["payload"]
    with pytest.raises(SignatureInvalidError):
        verify(canonical_json(envelope))


async def test_keyset_of_another_installation_is_refused_but_at_first_contact():
    envelope = await signed(a_keyset(ROOT))
    with pytest.raises(VerificationError, match="check 4"):
        verify(envelope, installation="elsewhere")
    assert verify(envelope, installation=None).installation == INSTALLATION


async def test_rollback_to_an_older_version_is_refused():
    envelope = await signed(a_keyset(ROOT, version=3))
    assert verify(envelope, minimum_version=3).version == 3
    with pytest.raises(RollbackError, match="check 5"):
        verify(envelope, minimum_version=4)


async def test_key_listed_under_the_id_of_another_is_refused():
    envelope = await signed_document(
        lambda d: d["keys"][0].update(spki_pem=rsa_key("mallory").public.to_pem().decode())
    )
    with pytest.raises(MalformedError, match="check 6"):
        verify(envelope)


@pytest.mark.parametrize("where", [lambda d: d, lambda d: d["keys"][0]])
async def test_unknown_field_is_refused(where):
    with pytest.raises(UnknownFieldError, match="'extra'"):
        verify(await signed_document(lambda d: where(d).update(extra=1)))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(version=0),
        lambda d: d.update(version="3"),
        lambda d: d.update(version=True),
        lambda d: d.update(installation=""),
        lambda d: d.update(issued_at="2026-01-01T00:00:00Z"),
        lambda d: d.update(issued_at="2026-02-30T00:00:00.000000Z"),
        lambda d: d.pop("epoch"),
        lambda d: d["keys"].append(d["keys"][0]),
        lambda d: d["keys"][0].update(purpose="anything"),
        lambda d: d["keys"][0].update(purpose="log"),
        lambda d: d["keys"][0].update(algorithm="ed25519"),
        lambda d: d["keys"][0].update(spki_pem="nonsense"),
        lambda d: d["keys"][0].update(not_after=d["keys"][0]["not_before"]),
        lambda d: d["keys"][0].update(revoked_log_position=3),
        lambda d: d["keys"][0].update(revoked_at=None),
    ],
)
async def test_malformed_keyset_is_refused_though_well_signed(change):
    with pytest.raises(MalformedError):
        verify(await signed_document(change))


async def test_keyset_of_a_later_format_is_refused():
    with pytest.raises(UnsupportedVersionError):
        verify(await signed_document(lambda d: d.update(type="agentfactory.keyset.v2")))


async def test_keyset_that_is_not_canonical_is_refused():
    payload = json.dumps(json.loads(encode_keyset(a_keyset(ROOT)))).encode()
    with pytest.raises(MalformedError, match="RFC 8785"):
        verify(await sign_envelope(KEYSET_TYPE, payload, [signer(ROOT)]))


def test_key_counts_from_not_before_until_not_after():
    entry = an_entry()
    keyset = a_keyset(ROOT, entry)

    def listed(at):
        return set(keyset.keys_for(KeyPurpose.ORDER, at))

    assert listed(entry.not_before - INSTANT) == set()
    assert listed(entry.not_before) == {entry.key_id}
    assert listed(entry.not_after - INSTANT) == {entry.key_id}
    assert listed(entry.not_after) == set()


def test_key_counts_for_its_purpose_only():
    keyset = a_keyset(ROOT, an_entry())
    assert keyset.keys_for(KeyPurpose.PUBLISHER, START) == {}
    with pytest.raises(UnknownKeyError, match="purpose publisher"):
        keyset.require(KeyPurpose.PUBLISHER, rsa_key("order").key_id, START)


def test_revoked_key_counts_until_its_revocation_and_is_named_revoked():
    revoked_at = START + timedelta(days=1)
    entry = an_entry(revoked_at=revoked_at)
    keyset = a_keyset(ROOT, entry)
    assert keyset.require(KeyPurpose.ORDER, entry.key_id, revoked_at - INSTANT) == entry.key
    assert keyset.keys_for(KeyPurpose.ORDER, revoked_at) == {}
    with pytest.raises(KeyRevokedError):
        keyset.require(KeyPurpose.ORDER, entry.key_id, revoked_at)


@pytest.mark.parametrize("purpose", [KeyPurpose.ORDER, KeyPurpose.PUBLISHER])
def test_orders_and_templates_are_signed_with_rsa(purpose):
    with pytest.raises(InvalidInputError, match="not accepted"):
        an_entry(purpose=purpose, key=ed25519_key().public)


def test_number_of_keys_is_bounded():
    with pytest.raises(InvalidInputError, match="the bound is 256"):
        replace(a_keyset(ROOT), entries=(an_entry(),) * 257)
