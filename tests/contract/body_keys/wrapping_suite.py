"""What every custodian of key-encryption keys promises, whatever it is made of."""

import pytest

from control_plane.body_keys.domain import BodyKeyId
from shared.errors import KeyUnavailableError

NAME, OTHER = "body-red-0", "body-blue-0"
KEY_ID = BodyKeyId("bky_01900000-0000-7000-8000-000000000001")
OTHER_ID = BodyKeyId("bky_01900000-0000-7000-8000-000000000002")
KEY = bytes(range(32))


class WrappingSuite:
    """Inherited by the tests of each adapter; `wrapping` is one that holds no key."""

    async def test_gives_back_what_it_wrapped(self, wrapping):
        await wrapping.prepare(NAME)
        wrapped = await wrapping.wrap(NAME, KEY_ID, KEY)
        assert KEY not in wrapped
        assert await wrapping.unwrap(NAME, KEY_ID, wrapped) == KEY

    async def test_preparing_twice_keeps_the_key(self, wrapping):
        await wrapping.prepare(NAME)
        wrapped = await wrapping.wrap(NAME, KEY_ID, KEY)
        await wrapping.prepare(NAME)
        assert await wrapping.unwrap(NAME, KEY_ID, wrapped) == KEY

    async def test_wraps_nothing_under_a_key_that_nobody_made(self, wrapping):
        with pytest.raises(KeyUnavailableError):
            await wrapping.wrap("body-nobody-0", KEY_ID, KEY)

    async def test_a_wrapped_key_is_bound_to_its_id_and_its_tenant(self, wrapping):
        await wrapping.prepare(NAME)
        await wrapping.prepare(OTHER)
        wrapped = await wrapping.wrap(NAME, KEY_ID, KEY)
        for name, key_id in ((NAME, OTHER_ID), (OTHER, KEY_ID)):
            with pytest.raises(KeyUnavailableError):
                await wrapping.unwrap(name, key_id, wrapped)

    @pytest.mark.parametrize("wrapped", [b"", b"vault:v1:", b"x" * 60])
    async def test_refuses_what_it_never_wrapped(self, wrapping, wrapped):
        await wrapping.prepare(NAME)
        with pytest.raises(KeyUnavailableError):
            await wrapping.unwrap(NAME, KEY_ID, wrapped)

    async def test_what_a_destroyed_key_wrapped_is_lost_for_good(self, wrapping):
        await wrapping.prepare(NAME)
        wrapped = await wrapping.wrap(NAME, KEY_ID, KEY)
        await wrapping.destroy(NAME)
        await wrapping.destroy(NAME)  # a repeat
        with pytest.raises(KeyUnavailableError):
            await wrapping.unwrap(NAME, KEY_ID, wrapped)
        await wrapping.prepare(NAME)
        with pytest.raises(KeyUnavailableError):
            await wrapping.unwrap(NAME, KEY_ID, wrapped)
