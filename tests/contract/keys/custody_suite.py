"""What every custodian of keys promises, whatever it is made of."""

from dataclasses import replace

import pytest

from shared.errors import InvalidInputError, KeyUnavailableError
from shared.keyset import KeyPurpose
from shared.signatures import Algorithm
from tests.fixtures.keys import rsa_key

ORDER, LOG, POLICY = KeyPurpose.ORDER, KeyPurpose.LOG, KeyPurpose.POLICY


class CustodySuite:
    """Inherited by the tests of each adapter; `custody` is one that holds no key."""

    async def test_holds_nothing_at_first(self, custody):
        assert list(await custody.keys(ORDER)) == []
        await custody.check()

    async def test_makes_a_key_shows_it_and_signs_with_it(self, custody):
        made = await custody.create(ORDER)
        assert (made.purpose, made.version) == (ORDER, 1)
        assert made.public.algorithm is Algorithm.RSA_PKCS1_SHA256
        assert list(await custody.keys(ORDER)) == [made]
        signature = await custody.sign(made, b"an order")
        assert (signature.key_id, signature.key_version) == (made.key_id, 1)
        made.public.verify(signature.value, b"an order")

    @pytest.mark.parametrize("purpose", [LOG, POLICY])
    async def test_log_and_policy_keys_are_ed25519(self, custody, purpose):
        made = await custody.create(purpose)
        assert made.public.algorithm is Algorithm.ED25519
        signature = await custody.sign(made, b"")
        made.public.verify(signature.value, b"")

    async def test_a_key_more_leaves_the_older_one_signing(self, custody):
        older, newer = await custody.create(ORDER), await custody.create(ORDER)
        assert older.key_id != newer.key_id
        assert [key.version for key in await custody.keys(ORDER)] == [1, 2]
        for key in (older, newer):
            key.public.verify((await custody.sign(key, b"data")).value, b"data")

    async def test_keys_of_one_purpose_are_not_those_of_another(self, custody):
        await custody.create(ORDER)
        assert list(await custody.keys(LOG)) == []

    @pytest.mark.parametrize("purpose", [KeyPurpose.FRESHNESS, KeyPurpose.PUBLISHER, KeyPurpose.COMPILER])
    async def test_refuses_keys_that_belong_elsewhere(self, custody, purpose):
        with pytest.raises(InvalidInputError, match="not kept by the control plane"):
            await custody.create(purpose)
        with pytest.raises(InvalidInputError, match="not kept by the control plane"):
            await custody.keys(purpose)

    async def test_does_not_sign_as_a_key_that_it_does_not_hold(self, custody):
        made = await custody.create(ORDER)
        foreign = replace(made, public=rsa_key("foreign").public)
        with pytest.raises(KeyUnavailableError):
            await custody.sign(foreign, b"data")
        with pytest.raises(KeyUnavailableError):
            await custody.sign(replace(made, version=7), b"data")

    async def test_a_new_process_finds_the_same_keys(self, custody, reopened):
        made = await custody.create(ORDER)
        again = reopened()
        assert list(await again.keys(ORDER)) == [made]
        made.public.verify((await again.sign(made, b"data")).value, b"data")
