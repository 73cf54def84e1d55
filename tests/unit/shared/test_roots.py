"""Root N hands over to root N+1: a keyset by the new root counts by that chain alone, and never by the old one."""

import json
from dataclasses import replace

import pytest

from shared.canonical import canonical_json
from shared.dsse import decode_envelope, encode_envelope, sign_envelope
from shared.errors import (
    MalformedError,
    PayloadTypeError,
    RollbackError,
    SignatureInvalidError,
    UnknownFieldError,
    UnknownKeyError,
    UnsupportedVersionError,
    VerificationError,
)
from shared.keyset import KEYSET_TYPE, sign_keyset
from shared.roots import (
    HANDOVER_TYPE,
    MAX_HANDOVERS,
    decode_relayed,
    verify_relayed,
)
from tests.builders.roots import handover, with_chain
from tests.fixtures.keys import ed25519_key, rsa_key, signer, trusting
from tests.unit.shared.builders import INSTALLATION, a_keyset

FIRST, SECOND, THIRD, THIEF = (ed25519_key(name) for name in ("root", "root 2", "root 3", "thief"))


async def relayed(root, *handovers, **changes):
    envelope = await sign_keyset(a_keyset(root, **changes), [signer(root)])
    return with_chain(envelope, *handovers)


def verify(data, *, pinned=FIRST, minimum_version=1, installation=INSTALLATION, held=()):
    return verify_relayed(
        data,
        root_keys=trusting(pinned),
        minimum_version=minimum_version,
        installation=installation,
        held=held,
    )


async def test_without_a_handover_it_is_the_envelope_itself():
    data = await relayed(FIRST)

    found = verify(data)

    assert decode_relayed(data).envelope == data
    assert (found.root.key_id, found.followed) == (FIRST.key_id, ())


@pytest.mark.parametrize("pinned", [FIRST, SECOND, THIRD], ids=["first", "second", "third"])
async def test_each_root_of_the_chain_leads_to_the_last(pinned):
    chain = [await handover(FIRST, SECOND), await handover(SECOND, THIRD)]

    found = verify(await relayed(THIRD, *chain), pinned=pinned)

    assert dict(found.root_keys) == trusting(THIRD)
    assert list(found.followed) == chain[[FIRST, SECOND, THIRD].index(pinned) :]


async def test_an_rsa_root_hands_over_too():
    old, new = rsa_key("root"), rsa_key("root 2")

    assert verify(await relayed(new, await handover(old, new)), pinned=old).root.key_id == new.key_id


async def test_a_new_root_without_a_chain_counts_nothing():
    with pytest.raises(UnknownKeyError):
        verify(await relayed(SECOND))


async def test_root_rollback():
    """The old root signs nothing any more, in the same message or once the new one is believed."""
    old = await sign_keyset(a_keyset(FIRST, version=9), [signer(FIRST)])
    chained = with_chain(old, await handover(FIRST, SECOND))

    with pytest.raises(UnknownKeyError):
        verify(chained)
    with pytest.raises(UnknownKeyError):
        verify(old, pinned=SECOND)


async def test_a_chain_that_leads_back_is_refused():
    chain = [await handover(FIRST, SECOND), await handover(SECOND, FIRST)]

    with pytest.raises(RollbackError, match="check 2"):
        verify(await relayed(FIRST, *chain))
    with pytest.raises(RollbackError, match="check 2"):
        verify(await relayed(SECOND, chain[0], chain[0]))
    # Nor for those who believe the later one: the others could not follow.
    with pytest.raises(RollbackError, match="check 2"):
        verify(await relayed(FIRST, *chain), pinned=SECOND)
    with pytest.raises(RollbackError, match="check 2"):
        verify(await relayed(FIRST, chain[1]), pinned=SECOND, held=chain[:1])
    longer = [chain[0], await handover(SECOND, THIRD), await handover(THIRD, FIRST)]
    with pytest.raises(RollbackError, match="check 2"):
        verify(await relayed(FIRST, *longer), pinned=THIRD)


async def test_a_skipped_link_is_refused():
    with pytest.raises(UnknownKeyError):
        verify(await relayed(THIRD, await handover(SECOND, THIRD)))
    with pytest.raises(UnknownKeyError):
        verify(await relayed(THIEF, await handover(FIRST, SECOND), await handover(THIRD, THIEF)))


async def test_links_in_another_order_are_refused():
    with pytest.raises(RollbackError):
        verify(await relayed(THIRD, await handover(SECOND, THIRD), await handover(FIRST, SECOND)))


async def test_a_forged_link_is_refused():
    alone = await handover(FIRST, THIEF, by=(THIEF, SECOND))
    with pytest.raises(UnknownKeyError):
        verify(await relayed(THIEF, alone))

    forged = decode_envelope(await handover(FIRST, THIEF, by=(THIEF, SECOND)))
    signature = replace(forged.signatures[0], key_id=FIRST.key_id)
    with pytest.raises(SignatureInvalidError):
        verify(await relayed(THIEF, encode_envelope(replace(forged, signatures=(signature,)))))


async def test_an_altered_link_is_refused():
    made = decode_envelope(await handover(FIRST, SECOND))
    altered = replace(made, payload=made.payload.replace(b'"local"', b'"locax"'))

    with pytest.raises(SignatureInvalidError):
        verify(await relayed(SECOND, encode_envelope(altered)))


async def test_a_link_that_the_new_root_did_not_sign_is_refused():
    with pytest.raises(UnknownKeyError):
        verify(await relayed(SECOND, await handover(FIRST, SECOND, by=(FIRST, THIEF))))


async def test_a_link_in_the_name_of_another_root_is_refused():
    with pytest.raises(VerificationError, match="not signed by it"):
        verify(await relayed(THIRD, await handover(SECOND, THIRD, by=(FIRST, THIEF))))


async def test_a_link_of_another_installation_is_refused():
    data = await relayed(SECOND, await handover(FIRST, SECOND, installation="theirs"))

    with pytest.raises(VerificationError, match="check 4"):
        verify(data)
    with pytest.raises(VerificationError, match="check 4"):
        verify(data, installation=None)


async def test_a_keyset_is_no_handover_and_a_handover_no_keyset():
    statement = await handover(FIRST, SECOND)
    keyset = await sign_keyset(a_keyset(FIRST), [signer(FIRST)])

    with pytest.raises(PayloadTypeError):
        verify(statement)
    with pytest.raises(PayloadTypeError):
        verify(await relayed(SECOND, keyset))


async def test_a_thief_of_an_old_root_makes_no_fork_for_those_who_went_on():
    fork = await relayed(THIEF, await handover(FIRST, THIEF), version=9)

    assert verify(fork).root.key_id == THIEF.key_id
    with pytest.raises(UnknownKeyError):
        verify(fork, pinned=SECOND)


async def test_a_payload_with_an_unknown_field_or_of_another_version_is_refused():
    document = json.loads(decode_envelope(await handover(FIRST, SECOND)).payload)
    for change, error in (({"more": 1}, UnknownFieldError), ({"type": "v2"}, UnsupportedVersionError)):
        link = await sign_envelope(
            HANDOVER_TYPE, canonical_json(document | change), [signer(FIRST), signer(SECOND)]
        )
        with pytest.raises(error):
            verify(await relayed(SECOND, link))


async def test_parts_have_one_form():
    envelope = (await sign_keyset(a_keyset(SECOND), [signer(SECOND)])).decode()
    link = (await handover(FIRST, SECOND)).decode()
    whole = {"type": "agentfactory.relayed-keyset.v1", "handovers": [link], "keyset": envelope}
    assert verify(canonical_json(whole)).root.key_id == SECOND.key_id
    refused = [
        (canonical_json(whole) + b" ", MalformedError),
        (canonical_json(whole | {"handovers": []}), MalformedError),
        (canonical_json(whole | {"handovers": [link] * (MAX_HANDOVERS + 1)}), MalformedError),
        (canonical_json(whole | {"handovers": ["é"]}), MalformedError),
        (canonical_json(whole | {"more": 1}), UnknownFieldError),
        (canonical_json(whole | {"type": KEYSET_TYPE}), UnsupportedVersionError),
        (b"[]", MalformedError),
        (b"", MalformedError),
    ]
    for data, error in refused:
        with pytest.raises(error):
            verify(data)


async def test_a_chain_has_an_end():
    earlier = [await handover(ed25519_key(str(n)), FIRST) for n in range(MAX_HANDOVERS)]
    data = await relayed(SECOND, await handover(FIRST, SECOND))

    assert len(verify(data, held=earlier[1:]).relayed.handovers) == MAX_HANDOVERS
    with pytest.raises(VerificationError, match="bound"):
        verify(data, held=earlier)
