"""Has outside witnesses cosign the log's head, and stops its signing when one of them saw another log.

Never on the path of an execution or of the integration: a witness that is away costs its cosignature alone.
"""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, Final, NoReturn, TypeAlias

from control_plane.audit.domain import SYSTEM_ACTOR, NewAuditEntry
from control_plane.audit.ports import AuditLog
from control_plane.database.ports import Database, Transaction
from control_plane.installation.domain import DEFAULT_TENANT
from control_plane.log.ports import LogStore
from control_plane.witnesses.asking import Asking, Heads
from control_plane.witnesses.domain import (
    ASK_AGAIN,
    Cosignature,
    Forked,
    Moved,
    Outcome,
    Refused,
    Witness,
    WitnessPolicy,
    WitnessState,
    backoff,
)
from control_plane.witnesses.ports import WitnessClient, WitnessObserver, WitnessStore
from shared.checkpoints import SignedCheckpoint, with_cosignatures
from shared.clock import Clock, Random
from shared.errors import AgentFactoryError, ProofInvalidError
from shared.ids import AUDIT_ENTRY, new_id
from shared.logs import get_logger

logger = get_logger(__name__)

START_RETRY: Final = timedelta(seconds=1)
"""Until a replica looks again whether its log is whole, where Postgres did not answer."""

FORKED: Final = "LOG_FORKED"

Wanted: TypeAlias = Callable[[WitnessState, SignedCheckpoint], bool]
"""Whether a witness is to be shown a checkpoint."""


class WitnessService:
    """Implements `Witnesses`: what the log asks before it signs, and what it shows of cosignatures."""

    def __init__(
        self,
        *,
        database: Database,
        store: WitnessStore,
        logs: LogStore,
        client: WitnessClient,
        policy: WitnessPolicy,
        origin: str,
        audit: AuditLog,
        observer: WitnessObserver,
        clock: Clock,
        random: Random,
    ) -> None:
        self._database = database
        self._store = store
        self._policy = policy
        self._origin = origin
        self._audit = audit
        self._observer = observer
        self._clock = clock
        self._random = random
        self._heads = Heads(database=database, logs=logs)
        self._asking = Asking(heads=self._heads, client=client, clock=clock)
        self._started = False
        self._broken = ""

    async def may_sign(self, tx: Transaction) -> bool:
        """See `Witnesses.may_sign`."""
        return self._started and not await self.stopped_by(tx)

    async def stopped_by(self, tx: Transaction) -> str:
        """See `Witnesses.stopped_by`."""
        if self._broken or not self._policy.witnesses:
            return self._broken
        states = await self._store.states(tx, self._origin, self._policy.ids)
        return next((f"{named}: {state.fork}" for named, state in states.items() if state.fork), "")

    async def newest(self, tx: Transaction) -> tuple[int, bytes] | None:
        """See `Witnesses.newest`."""
        if not self._policy.quorum:
            return None
        found = await self._store.newest_quorum(tx, self._origin, self._policy.ids, self._policy.quorum)
        return None if found is None else (found[0], with_cosignatures(found[1], found[2]))

    async def run(self) -> NoReturn:
        """Look whether the log is whole, let it sign, and show it to its witnesses until cancelled."""
        while not self._started:
            if not await self._tried(self.start):
                await asyncio.sleep(START_RETRY.total_seconds())
        while True:
            await asyncio.sleep(self._policy.every.total_seconds())
            if self._policy.witnesses:
                await self._tried(self.round)

    async def start(self) -> None:
        """Let this replica sign, once its log is at least what was signed and what witnesses saw (rule 16).

        Every witness is asked, whoever asks otherwise: a database that went back knows nothing of them. One
        that does not answer in time holds up nothing.

        Raises:
            DatabaseUnavailableError: The log cannot be read now.
        """
        try:
            await self._heads.require_whole()
            await self._ask_all(_trusted)
        except ProofInvalidError as error:
            await self._break(str(error))
        await self._observe()
        self._started = True

    async def round(self) -> bool:
        """Show the newest checkpoint to the witnesses that are due; False: another replica does.

        Raises:
            DatabaseUnavailableError: It cannot be read or written now.
        """
        hold = self._policy.every + 2 * self._policy.timeout
        async with self._database.transaction() as tx:
            mine = await self._store.take_round(tx, self._origin, self._policy.ids, hold=hold)
        try:
            if mine:
                await self._ask_all(_due)
        except ProofInvalidError as error:
            await self._break(str(error))
        await self._observe()
        return mine

    async def _ask_all(self, is_wanted: Wanted) -> None:
        async with self._database.transaction() as tx:
            # In this order: what witnesses are known to have seen was signed before.
            states = await self._store.states(tx, self._origin, self._policy.ids)
            target = await self._heads.newest(tx)
        known = [(witness, states[witness.witness_id]) for witness in self._policy.witnesses]
        if target is None:
            wanted = [(witness, state) for witness, state in known if state.tree_size]
            outcomes: list[Outcome] = [_nothing_signed(state) for _, state in wanted]
        else:
            wanted = [one for one in known if is_wanted(one[1], target)]
            outcomes = await asyncio.gather(*(self._ask(*one, target) for one in wanted))
        async with self._database.transaction() as tx:
            await self._store.alone(tx)
            for (witness, state), outcome in zip(wanted, outcomes, strict=True):
                await self._record(tx, witness, state, outcome)
            await self._store.end_round(tx, self._origin, self._policy.ids, pause=self._policy.every)

    async def _ask(self, witness: Witness, state: WitnessState, target: SignedCheckpoint) -> Outcome:
        outcome = await self._asking.ask(witness, state.tree_size, target, within=self._policy.timeout)
        self._observer.witness_answered(witness, outcome)
        return outcome

    async def _record(self, tx: Transaction, witness: Witness, state: WitnessState, outcome: Outcome) -> None:
        named = witness.witness_id
        match outcome:
            case Cosignature():
                await self._store.cosigned(tx, self._origin, named, outcome)
                if state.failures:
                    logger.info("witness cosigns again", witness=witness.name, size=outcome.tree_size)
            case Moved():
                await self._store.seen(tx, self._origin, named, outcome.size)
            case Refused():
                jitter = self._random.token_bytes(1)[0] / 255
                pause = backoff(state.failures, self._policy.every, jitter)
                await self._store.failed(tx, self._origin, named, pause=pause)
                logger.warning(
                    "witness did not cosign, asked again later",
                    witness=witness.name,
                    reason=str(outcome.refusal),
                    detail=outcome.detail,
                    failures=state.failures + 1,
                    pause_seconds=round(pause.total_seconds(), 1),
                )
            case Forked():
                if await self._store.forked(tx, self._origin, named, outcome.detail):
                    await self._alarm(tx, witness=named, size=outcome.size, detail=outcome.detail)

    async def _break(self, detail: str) -> None:
        """Sign nothing until a new start finds the log whole: the tiles are not what was signed."""
        if self._broken:
            return
        self._broken = detail
        async with self._database.transaction() as tx:
            await self._alarm(tx, witness="", size=0, detail=detail)

    async def _alarm(self, tx: Transaction, *, witness: str, size: int, detail: str) -> None:
        logger.error(
            "THE LOG IS FORKED and signs nothing any more; see docs/log.md",
            origin=self._origin,
            witness=witness,
            size=size,
            detail=detail,
        )
        self._observer.log_stopped(1)
        entry = NewAuditEntry(
            audit_entry_id=new_id(AUDIT_ENTRY, self._clock, self._random),
            tenant_id=DEFAULT_TENANT,
            actor=SYSTEM_ACTOR,
            action="log.forked",
            subject=self._origin,
            result=FORKED,
            details={"witness": witness, "witness_size": size, "detail": detail},
        )
        await self._audit.append(tx, [entry])

    async def _observe(self) -> None:
        async with self._database.transaction() as tx:
            states = await self._store.states(tx, self._origin, self._policy.ids)
            newest = await self.newest(tx)
        for witness in self._policy.witnesses:
            self._observer.witness_is(witness, states[witness.witness_id])
        self._observer.log_stopped(int(bool(self._broken) or any(one.fork for one in states.values())))
        self._observer.witnessed(newest[0] if newest is not None else 0)

    async def _tried(self, step: Callable[[], Coroutine[Any, Any, object]]) -> bool:
        try:
            await step()
        except AgentFactoryError as error:
            logger.warning("witnesses not asked, tried again", error=str(error))
            return False
        return True


def _trusted(state: WitnessState, _: SignedCheckpoint) -> bool:
    return not state.fork


def _due(state: WitnessState, target: SignedCheckpoint) -> bool:
    is_new = state.tree_size != target.checkpoint.size
    is_old = state.success_age is None or state.success_age >= ASK_AGAIN
    return not state.fork and state.is_due and (is_new or is_old)


def _nothing_signed(state: WitnessState) -> Forked:
    return Forked(
        size=state.tree_size, detail=f"it has seen {state.tree_size} leaves, and none of ours is signed"
    )
