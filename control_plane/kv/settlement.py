"""Settles what accepted results write, inside the transaction that accepts them (rules 2 and 6).

A run that exits with 0 writes everything it put, or, when that would pass its agent's quota, nothing and
ends killed by the quota. What fails, is stopped or comes too late writes nothing. Of runs side by side the
one whose result is accepted last wins, key by key.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from control_plane.database.unit_of_work import DriverConnection
from control_plane.executions.domain import AttemptResult, Outcome
from control_plane.executions.encoding import capabilities_of_bytes
from control_plane.kv import sql
from control_plane.kv.domain import (
    EXCESS_REASON,
    UNGRANTED_REASON,
    Holdings,
    KvExcess,
    KvQuota,
    KvWrite,
)
from shared.ids import AgentId, TenantId


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Results as they are to be recorded, and what those write that come to be accepted."""

    results: Sequence[AttemptResult]
    writers: Mapping[int, tuple[TenantId, AgentId]]
    """By place in `results`: for whom it writes. Others write nothing."""
    before: Mapping[AgentId, tuple[int, int]]
    """Keys and bytes of each live agent."""
    sizes: Mapping[AgentId, Mapping[str, int]]
    """Of the values that are there of the keys that these runs name."""

    def holdings(self) -> dict[AgentId, Holdings]:
        """Return what the agents keep before these results."""
        return {
            agent_id: Holdings(keys=keys, size_bytes=size_bytes, sizes=self.sizes.get(agent_id, {}))
            for agent_id, (keys, size_bytes) in self.before.items()
        }


class KvSettlement:
    """Two halves around the statement that finishes; all three in one transaction."""

    def __init__(self, quota: KvQuota) -> None:
        self._quota = quota

    async def settle(self, connection: DriverConnection, results: Sequence[AttemptResult]) -> Settled:
        """Lock what these results decide and the agents that they write for, and judge what they write.

        Executions are locked before agents, each in the order of their keys: groups never wait in a circle.
        """
        rows = await connection.fetch(
            sql.LOCK_DECIDED,
            [one.execution_id for one in results],
            [one.fencing_token for one in results],
            [one.order_id for one in results],
            [one.order_digest for one in results],
            [one.node_id for one in results],
            [one.sequence for one in results],
        )
        writers: dict[int, tuple[TenantId, AgentId]] = {}
        ungranted = set()
        for row in rows:
            place = row["n"] - 1
            if not row["decides"] or not written(results[place]):
                continue
            writers[place] = (row["tenant_id"], row["agent_id"])
            if not capabilities_of_bytes(row["capabilities"]).kv:
                ungranted.add(place)
        before = await self._lock_agents(connection, {agent_id for _, agent_id in writers.values()})
        named = {(*writers[place], one.key) for place in writers for one in written(results[place])}
        sizes = await self._sizes(connection, sorted(named))
        settled = Settled(results=results, writers=writers, before=before, sizes=sizes)
        return self._judged(settled, ungranted)

    async def write(self, connection: DriverConnection, settled: Settled, accepted: Container[int]) -> None:
        """Write for the results at these places, which now are accepted."""
        holdings = settled.holdings()
        newest: dict[tuple[TenantId, AgentId, str], tuple[KvWrite, str]] = {}
        for place, (tenant_id, agent_id) in sorted(settled.writers.items()):
            result = settled.results[place]
            if place not in accepted or not written(result):
                continue
            holdings[agent_id].write(written(result))
            for one in written(result):
                newest[tenant_id, agent_id, one.key] = (one, result.execution_id)
        if not newest:
            return
        keys = sorted(newest)
        changed = {agent_id for _, agent_id, _ in keys}
        await connection.execute(
            sql.WRITE,
            [tenant_id for tenant_id, _, _ in keys],
            [agent_id for _, agent_id, _ in keys],
            [key for _, _, key in keys],
            [newest[one][0].value for one in keys],
            [newest[one][0].kept_bytes for one in keys],
            [newest[one][1] for one in keys],
            list(changed),
            [holdings[one].keys for one in changed],
            [holdings[one].size_bytes for one in changed],
        )

    def _judged(self, settled: Settled, ungranted: Container[int]) -> Settled:
        holdings = settled.holdings()
        results = list(settled.results)
        writers: dict[int, tuple[TenantId, AgentId]] = {}
        for place, (tenant_id, agent_id) in sorted(settled.writers.items()):
            if agent_id not in holdings:  # deleted, and its values with it
                continue
            judged = judge(results[place], holdings[agent_id], self._quota, granted=place not in ungranted)
            results[place] = judged
            if written(judged):
                writers[place] = (tenant_id, agent_id)
        return Settled(results=results, writers=writers, before=settled.before, sizes=settled.sizes)

    async def _lock_agents(
        self, connection: DriverConnection, agents: set[AgentId]
    ) -> dict[AgentId, tuple[int, int]]:
        if not agents:
            return {}
        rows = await connection.fetch(sql.LOCK_AGENTS, sorted(agents))
        return {row["agent_id"]: (row["kv_keys"], row["kv_bytes"]) for row in rows}

    async def _sizes(
        self, connection: DriverConnection, named: Sequence[tuple[TenantId, AgentId, str]]
    ) -> dict[AgentId, dict[str, int]]:
        found: dict[AgentId, dict[str, int]] = {}
        if not named:
            return found
        tenants, agents, keys = zip(*named, strict=True)
        for row in await connection.fetch(sql.SIZES, tenants, agents, keys):
            found.setdefault(row["agent_id"], {})[row["key"]] = row["size_bytes"]
        return found


def written(result: AttemptResult) -> tuple[KvWrite, ...]:
    """Return what a result writes if it is accepted: a run that did not succeed takes everything back."""
    return result.kv_writes if result.outcome is Outcome.SUCCEEDED else ()


def judge(result: AttemptResult, holdings: Holdings, quota: KvQuota, *, granted: bool) -> AttemptResult:
    """Return the result as it counts, and count what it writes as kept.

    One whose writes do not fit, or that nothing allowed to write, becomes killed by that limit.
    """
    writes = written(result)
    if not granted:
        return result.over(KvExcess.KEYS, reason=UNGRANTED_REASON)
    excess = holdings.excess(writes, quota)
    if excess is not None:
        return result.over(excess, reason=EXCESS_REASON)
    holdings.write(writes)
    return result
