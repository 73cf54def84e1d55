"""What agents keep, in memory. Part of the fake store of executions, and as strict as Postgres."""

from dataclasses import dataclass, field

from control_plane.executions.domain import AttemptResult
from control_plane.executions.encoding import capabilities_of_bytes
from control_plane.executions.lifecycle import Execution
from control_plane.kv.domain import DEFAULT_QUOTA, Holdings, KvQuota
from control_plane.kv.settlement import judge, written
from shared.ids import AgentId, TenantId


@dataclass
class FakeKv:
    """Committed values of all agents."""

    quota: KvQuota = DEFAULT_QUOTA
    values: dict[tuple[TenantId, AgentId, str], bytes] = field(default_factory=dict)

    def judge(self, result: AttemptResult, execution: Execution, capabilities: bytes) -> AttemptResult:
        """Return the result as it counts."""
        if not written(result):
            return result
        return judge(
            result,
            self._holdings(execution.tenant_id, execution.agent_id),
            self.quota,
            granted=capabilities_of_bytes(capabilities).kv,
        )

    def write(self, result: AttemptResult, execution: Execution) -> None:
        """Keep what an accepted result wrote."""
        for one in written(result):
            place = (execution.tenant_id, execution.agent_id, one.key)
            if one.value is None:
                self.values.pop(place, None)
            else:
                self.values[place] = one.value

    def _holdings(self, tenant_id: TenantId, agent_id: AgentId) -> Holdings:
        sizes = {
            key: len(key.encode()) + len(value)
            for (tenant, agent, key), value in self.values.items()
            if (tenant, agent) == (tenant_id, agent_id)
        }
        return Holdings(keys=len(sizes), size_bytes=sum(sizes.values()), sizes=sizes)
