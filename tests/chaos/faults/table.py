"""Every fault that `make chaos` injects, in order, and the few of the short form."""

from tests.chaos.faults import database, nodes
from tests.chaos.faults.fault import Fault

FAULTS: dict[str, type[Fault]] = {
    fault.name: fault
    for fault in (
        nodes.KilledNode,
        nodes.StoppedNode,
        nodes.BlackHole,
        nodes.SlowNode,
        database.PostgresRestart,
        database.TerminatedConnections,
        database.CutConnections,
    )
}

SHORT = (nodes.KilledNode.name, database.PostgresRestart.name)
