"""Every fault that `make chaos` injects, in order, and the few of the short form."""

from tests.chaos.faults import database, nodes, parts, replicas
from tests.chaos.faults.fault import Fault

FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        nodes.KilledNode,
        nodes.StoppedNode,
        nodes.BlackHole,
        nodes.SlowNode,
        replicas.KilledReplica,
        replicas.KilledReplicas,
        replicas.StoppedReplica,
        database.PostgresRestart,
        database.TerminatedConnections,
        database.CutConnections,
        database.Failover,
        parts.KeysAway,
        parts.ClockOff,
        parts.ClockJumps,
        parts.FullDisk,
        parts.CorruptArtifact,
        parts.ShuffledMessages,
        replicas.RollingRestart,
        replicas.BadDay,
    )
}

SHORT = (nodes.KilledNode.name, replicas.BadDay.name)
