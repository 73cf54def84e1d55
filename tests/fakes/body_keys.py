"""A custodian and a store of body keys in memory, with outages."""

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from control_plane.body_keys.domain import BodyKey, Erasure
from shared.errors import KeyUnavailableError


class FakeWrapping:
    """Keeps the plain keys by what it gave out for them."""

    def __init__(self):
        self.names, self.kept, self.away, self.asked = set(), {}, False, Counter()

    def _answer(self, name=None):
        self.asked["all"] += 1
        if self.away or (name is not None and name not in self.names):
            raise KeyUnavailableError("the custodian is away")

    async def prepare(self, name):
        self._answer()
        self.names.add(name)

    async def wrap(self, name, key_id, key):
        self._answer(name)
        wrapped = f"{name}/{key_id}".encode()
        self.kept[wrapped] = key
        return wrapped

    async def unwrap(self, name, key_id, wrapped):
        self._answer(name)
        if wrapped not in self.kept or wrapped != f"{name}/{key_id}".encode():
            raise KeyUnavailableError("not the key of this id")
        return self.kept[wrapped]

    async def destroy(self, name):
        self._answer()
        self.names.discard(name)


@dataclass
class FakeBodyKeyStore:
    encrypting: set = field(default_factory=set)
    keys: dict = field(default_factory=dict)
    newest: dict = field(default_factory=dict)

    async def active(self):
        return {tenant: self.newest.get(tenant) for tenant in self.encrypting}

    async def destroyed(self, key_ids):
        return frozenset(one for one in key_ids if self.keys[one].destroyed_at is not None)

    async def find(self, key_id):
        return self.keys.get(key_id)

    async def has_newest(self, tenant_id):
        return tenant_id in self.newest

    async def generation(self, tenant_id):
        return 0

    async def add(self, tx, key):
        self.keys[key.body_key_id] = key
        self.newest[key.tenant_id] = key.body_key_id

    async def has_live_executions(self, tx, tenant_id):
        return False

    async def destroy(self, tx, tenant_id):
        gone = [one for one in self.keys.values() if one.tenant_id == tenant_id]
        for one in gone:
            self.keys[one.body_key_id] = replace(one, wrapped=b"", destroyed_at=datetime.now(UTC))
        self.newest.pop(tenant_id, None)
        return Erasure(keys=tuple(one.body_key_id for one in gone), generation=1)


async def add_key(store, wrapping, tenant_id, key_id, key):
    """Give a tenant one more key."""
    name = f"body-{tenant_id}-0"
    await wrapping.prepare(name)
    wrapped = await wrapping.wrap(name, key_id, key)
    await store.add(None, BodyKey(body_key_id=key_id, tenant_id=tenant_id, generation=0, wrapped=wrapped))
