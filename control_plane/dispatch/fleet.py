"""The live sessions of this replica and the choice among them. Memory only."""

from collections.abc import Iterable, Iterator

from control_plane.dispatch.session import AttemptKey, LiveSession
from shared.digests import Digest
from shared.errors import SessionSupersededError
from shared.ids import NodeId


class Fleet:
    """Own sessions by node. At most one per node: the newest epoch."""

    def __init__(self) -> None:
        self._sessions: dict[NodeId, LiveSession] = {}
        self.required_keyset_version = 0
        """Sessions that have not acknowledged this keyset get no orders (design rule 12)."""

    def __iter__(self) -> Iterator[LiveSession]:
        return iter(tuple(self._sessions.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    def get(self, node_id: NodeId) -> LiveSession | None:
        return self._sessions.get(node_id)

    def add(self, session: LiveSession) -> None:
        """Take a session in; an older one of the same node ends.

        Raises:
            SessionSupersededError: A newer session of the node is here already.
        """
        older = self._sessions.get(session.node_id)
        if older is not None:
            if older.session_epoch > session.session_epoch:
                raise SessionSupersededError(
                    f"session {session.session_epoch} of node {session.node_id} is older than"
                    f" {older.session_epoch}"
                )
            session.inherit(older)
            older.end(_superseded(older))
        self._sessions[session.node_id] = session

    def remove(self, session: LiveSession) -> bool:
        """Forget a session; False when a newer one has taken its place."""
        if self._sessions.get(session.node_id) is not session:
            return False
        del self._sessions[session.node_id]
        return True

    def supersede(self, node_id: NodeId, session_epoch: int) -> bool:
        """End an own session that is older than `session_epoch`; False when there is none."""
        session = self._sessions.get(node_id)
        if session is None or session.session_epoch >= session_epoch:
            return False
        session.end(_superseded(session))
        return True

    def release(self, node_id: NodeId, key: AttemptKey) -> bool:
        """Give an attempt's slot back; False when no own session held it."""
        session = self._sessions.get(node_id)
        return session is not None and session.release(key)

    def require_keyset(self, version: int) -> None:
        """Give orders only to sessions that have acknowledged this keyset or a newer one; never goes back."""
        self.required_keyset_version = max(self.required_keyset_version, version)

    def free_slots(self, session: LiveSession, now: float) -> int:
        """Return how many orders a session may get now, its keyset considered."""
        if session.keyset_version < self.required_keyset_version:
            return 0
        return session.free_slots(now)

    def with_free_slots(self, now: float) -> list[LiveSession]:
        """Return the sessions that can take an order, least loaded first."""
        free = [session for session in self._sessions.values() if self.free_slots(session, now) > 0]
        return sorted(free, key=_load)

    def pick(
        self,
        *,
        module_digest: Digest,
        now: float,
        zone: str = "",
        excluded: Iterable[NodeId] = (),
    ) -> LiveSession | None:
        """Return the best session for a newcomer, or None when nobody has a free slot.

        In this order: a free slot and not excluded, the module on its disk, the wanted zone, the least
        loaded.
        """
        refused = frozenset(excluded)
        best: LiveSession | None = None
        best_rank: tuple[bool, bool, float] | None = None
        for session in self._sessions.values():
            if session.node_id in refused or self.free_slots(session, now) <= 0:
                continue
            rank = (not session.has_cached(module_digest), session.zone != zone, _load(session))
            if best_rank is None or rank < best_rank:
                best, best_rank = session, rank
        return best


def _load(session: LiveSession) -> float:
    return session.held_count / session.slots


def _superseded(session: LiveSession) -> SessionSupersededError:
    return SessionSupersededError(
        f"session {session.session_epoch} of node {session.node_id} was taken over by a newer one"
    )
