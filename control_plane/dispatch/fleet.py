"""The live sessions of this replica and the choice among them. Memory only."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, TypeVar

from control_plane.dispatch.session import AttemptKey, LiveSession
from shared.digests import Digest
from shared.errors import SessionSupersededError
from shared.ids import NodeId

MAX_COMPARED: Final = 16
"""Sessions of one list that are compared for one newcomer: its cost must not grow with the fleet."""

_Rank = tuple[bool, bool, bool, float]
_NOT_PERFECT: Final[_Rank] = (False, False, True, 0.0)
"""Whatever ranks before it has an idle slot, the module and the zone: others are less loaded at best."""

_Key = TypeVar("_Key")


class Fleet:
    """Own sessions by node. At most one per node: the newest epoch."""

    def __init__(self) -> None:
        self._sessions: dict[NodeId, LiveSession] = {}
        self._turns = Rotation()
        self._zones: dict[str, Rotation] = {}
        self._holders: dict[Digest, Rotation] = {}
        """Sessions by a module that is on their disk."""
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
            self._unlist(older)
            older.end(_superseded(older))
        self._sessions[session.node_id] = session
        self._list(session)

    def remove(self, session: LiveSession) -> bool:
        """Forget a session; False when a newer one has taken its place."""
        if self._sessions.get(session.node_id) is not session:
            return False
        del self._sessions[session.node_id]
        self._unlist(session)
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

    def lowest_keyset_version(self) -> int | None:
        """Return the lowest version in force. Sessions that offered nothing yet hold no order: left out."""
        heard = (session for session in self if session.heartbeat_at is not None)
        return min((session.keyset_version for session in heard), default=None)

    def free_slots(self, session: LiveSession, now: float) -> int:
        """Return how many orders a session may get now, its keyset considered."""
        if session.keyset_version < self.required_keyset_version:
            return 0
        return session.free_slots(now)

    def with_free_slots(self, now: float) -> list[LiveSession]:
        """Return the sessions that can take an order, least loaded first; of equals another one each time."""
        self._turns.upcoming(1)
        return sorted((one for one in self._turns if self.free_slots(one, now) > 0), key=_load)

    def pick(
        self,
        *,
        module_digest: Digest,
        now: float,
        zone: str = "",
        excluded: Iterable[NodeId] = (),
    ) -> LiveSession | None:
        """Return a good session for a newcomer, or None when nobody has a free slot.

        In this order: a slot that is idle (not a place in a node's queue), the module on its disk, the wanted
        zone, the least loaded. A large fleet is not searched for the very best: the best of a few that have
        the module, a few of the zone and a few of all is taken, others each time.
        """
        refused = frozenset(excluded)
        best: LiveSession | None = None
        best_rank: _Rank | None = None
        for turns in (self._holders.get(module_digest), self._zones.get(zone), self._turns):
            for session in turns.upcoming(MAX_COMPARED) if turns is not None else ():
                if session.node_id in refused or self.free_slots(session, now) <= 0:
                    continue
                rank = _rank(session, module_digest, zone)
                if best_rank is None or rank < best_rank:
                    best, best_rank = session, rank
            if best_rank is not None and best_rank < _NOT_PERFECT:
                return best
        return best or self._first_free(refused, now)

    def _first_free(self, refused: frozenset[NodeId], now: float) -> LiveSession | None:
        """Look at every session: before a newcomer is told to wait, which ends the looking."""
        for session in self._sessions.values():
            if session.node_id not in refused and self.free_slots(session, now) > 0:
                return session
        return None

    # --- where to look first

    def _list(self, session: LiveSession) -> None:
        self._turns.add(session)
        self._zones.setdefault(session.zone, Rotation()).add(session)
        for digest in session.cached():
            self._holders.setdefault(digest, Rotation()).add(session)
        session.on_cached = self._cached

    def _unlist(self, session: LiveSession) -> None:
        session.on_cached = None
        self._turns.remove(session)
        _remove(self._zones, session.zone, session)
        for digest in session.cached():
            _remove(self._holders, digest, session)

    def _cached(self, session: LiveSession, digest: Digest, *, there: bool) -> None:
        if there:
            self._holders.setdefault(digest, Rotation()).add(session)
        else:
            _remove(self._holders, digest, session)


class Rotation:
    """Sessions in the order of whose turn it is to be looked at."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[NodeId, LiveSession] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[LiveSession]:
        return iter(self._sessions.values())

    def add(self, session: LiveSession) -> None:
        self._sessions[session.node_id] = session

    def remove(self, session: LiveSession) -> None:
        if self._sessions.get(session.node_id) is session:
            del self._sessions[session.node_id]

    def upcoming(self, count: int) -> list[LiveSession]:
        """Return the next `count`, whose turn comes again after that of all others."""
        chosen = list(islice(self._sessions.values(), count))
        if len(chosen) < len(self._sessions):
            for session in chosen:
                self._sessions.move_to_end(session.node_id)
        return chosen


def _remove(lists: dict[_Key, Rotation], key: _Key, session: LiveSession) -> None:
    turns = lists.get(key)
    if turns is not None:
        turns.remove(session)
        if not turns:
            del lists[key]


def _rank(session: LiveSession, module_digest: Digest, zone: str) -> _Rank:
    return (
        session.idle_slots() <= 0,
        not session.has_cached(module_digest),
        session.zone != zone,
        _load(session),
    )


def _load(session: LiveSession) -> float:
    return session.held_count / session.slots


def _superseded(session: LiveSession) -> SessionSupersededError:
    return SessionSupersededError(
        f"session {session.session_epoch} of node {session.node_id} was taken over by a newer one"
    )
